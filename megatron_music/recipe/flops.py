"""Parameters and floating-point operations of a network, by one stated convention."""

from megatron_music.recipe.recipe import Network


def parameter_count(network: Network, vocabulary_size: int) -> int:
    """All parameters, with separate input and output embeddings of ``vocabulary_size`` rows."""
    return multiplying_parameters(network, vocabulary_size) + vocabulary_size * network.hidden_size


def multiplying_parameters(network: Network, vocabulary_size: int) -> int:
    """Parameters that take part in a multiplication for every token: all but the input embedding."""
    return sum(parameters_by_part(network, network.layers, 1, 0, vocabulary_size).values())


def parameters_by_part(
    network: Network, layers: int, tensor: int, embedding_rows: int, output_rows: int
) -> dict[str, int]:
    """Parameters of ``layers`` layers and of the rows of both embeddings, on each of ``tensor`` processes.

    ``tensor`` has to divide heads and feed-forward channels. With rows of output comes the norm before it.
    """
    hidden = network.hidden_size
    qkv, ffn = qkv_channels(network) // tensor, network.ffn_hidden_size // tensor
    return {
        "embedding": embedding_rows * hidden,
        "attention": layers * hidden * (qkv + hidden // tensor),
        "feed_forward": layers * hidden * 3 * ffn,
        "norms": layers * 2 * hidden + (hidden if output_rows else 0),
        "output": output_rows * hidden,
    }


def qkv_channels(network: Network) -> int:
    """Outputs of the matrix that makes queries, keys and values."""
    return (network.attention_heads + 2 * network.key_value_heads) * network.head_size


def flops_per_token(network: Network, vocabulary_size: int, context_tokens: int) -> float:
    """Operations of forward and backward for one token, causal attention counted at half the square.

    6 x (parameters that multiply) + 6 x layers x hidden x context. llm-foundry counts twice the attention term, so its
    percentages of the peak are higher for the same speed.
    """
    attention = 6 * network.layers * network.hidden_size * context_tokens
    return 6 * multiplying_parameters(network, vocabulary_size) + attention
