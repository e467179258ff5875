"""Parameters and floating-point operations of a network, by one stated convention."""

from megatron_music.recipe.recipe import Network


def parameter_count(network: Network, vocabulary_size: int) -> int:
    """All parameters, with separate input and output embeddings of ``vocabulary_size`` rows."""
    return multiplying_parameters(network, vocabulary_size) + vocabulary_size * network.hidden_size


def multiplying_parameters(network: Network, vocabulary_size: int) -> int:
    """Parameters that take part in a multiplication for every token: all but the input embedding."""
    hidden = network.hidden_size
    query_key_value = hidden * network.head_size * (network.attention_heads + 2 * network.key_value_heads)
    attention = query_key_value + hidden * hidden
    feed_forward = 3 * hidden * network.ffn_hidden_size
    return network.layers * (attention + feed_forward + 2 * hidden) + hidden + vocabulary_size * hidden


def flops_per_token(network: Network, vocabulary_size: int, context_tokens: int) -> float:
    """Operations of forward and backward for one token, causal attention counted at half the square.

    6 x (parameters that multiply) + 6 x layers x hidden x context. llm-foundry counts twice the attention term, so its
    percentages of the peak are higher for the same speed.
    """
    attention = 6 * network.layers * network.hidden_size * context_tokens
    return 6 * multiplying_parameters(network, vocabulary_size) + attention
