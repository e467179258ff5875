"""The rungs of a ladder: a recipe at another size, by a rule that is written down beside it.

The rule, from a recipe to one of ``size`` parameters in its layers and ``ratio`` tokens for each of them:

- network: head size, feed-forward channels a hidden channel and query heads a key-value head stay. Of all widths, each
  with the depth that comes nearest to the size, the one whose width over depth is nearest to the recipe's (Kaplan et
  al. 2020, https://arxiv.org/abs/2001.08361: at a given size the shape matters little).
- initial weights: standard deviation over 1 / sqrt(width), so that activations keep their scale.
- phases: tokens in proportion; contexts, mixtures and shapes of the learning rate stay.
- learning rate over C^-0.125 and batch, in tokens, over C^0.3271, C the operations of the run without embeddings: the
  exponents of DeepSeek LLM (https://arxiv.org/abs/2401.02954, section 3.1), from the recipe's own values.
"""

import math
from dataclasses import dataclass

from megatron_music.errors import InputError
from megatron_music.recipe.flops import multiplying_parameters
from megatron_music.recipe.phase import Phase
from megatron_music.recipe.recipe import FP8_MULTIPLE, Network, Recipe
from megatron_music.scaling.counts import run_flops

LEARNING_RATE_EXPONENT, BATCH_EXPONENT = -0.125, 0.3271
PHASE_STEPS = 10
"""A batch leaves every phase at least so many steps."""
_FARTHEST = 1.35
"""A network may be larger or smaller than its size by this factor: the least one has one head and one layer."""


@dataclass(frozen=True)
class Rule:
    """How learning rate and batch follow a run's operations C: over C to these powers."""

    learning_rate_exponent: float = LEARNING_RATE_EXPONENT
    batch_exponent: float = BATCH_EXPONENT

    def __post_init__(self):
        """Raises InputError for an exponent that no rule has: operations differ by factors of thousands."""
        for name, value in vars(self).items():
            if not -1 <= value <= 1:
                option = "--" + name.replace("_", "-")
                raise InputError(option, f"{value:g} is no exponent", "name one from -1 to 1")

    def __str__(self) -> str:
        known = (self.learning_rate_exponent, self.batch_exponent) == (LEARNING_RATE_EXPONENT, BATCH_EXPONENT)
        source = " (DeepSeek LLM, arXiv 2401.02954)" if known else ""
        return (
            "network: head size, feed-forward and key-value ratios of the recipe, width over depth as near to it as "
            "the size lets; init_std over 1 / sqrt(width); tokens of the phases in proportion; learning rate over "
            f"C^{self.learning_rate_exponent:g} and batch tokens over C^{self.batch_exponent:g}{source}, from the "
            "recipe's own, with C the run's operations without embeddings; a batch that leaves every phase at least "
            f"{PHASE_STEPS} steps, no batch_ramp"
        )


def network_of_size(family: Network, size: int) -> Network:
    """The network of the family whose layers have about ``size`` parameters; raises InputError where there is none."""
    shape = family.hidden_size / family.layers
    candidates = []
    for heads in range(1, 8 * family.attention_heads + 1):
        layers = max(1, round(size / multiplying_parameters(_of_width(family, heads, 1), 0)))
        network = _of_width(family, heads, layers)
        off = abs(math.log(multiplying_parameters(network, 0) / size))
        if off <= math.log(_FARTHEST):
            candidates.append((abs(math.log(network.hidden_size / layers / shape)), off, network))
    if not candidates:
        least = multiplying_parameters(_of_width(family, 1, 1), 0)
        raise InputError("--sizes", f"{size:,} parameters make no network with heads of {family.head_size} channels "
                         f"(the least has {least:,})", "choose another size, or a recipe with other heads")  # fmt: skip
    return min(candidates, key=lambda candidate: candidate[:2])[2]


def _of_width(family: Network, heads: int, layers: int) -> Network:
    hidden = heads * family.head_size
    most = max(1, heads * family.key_value_heads // family.attention_heads)
    ffn = family.ffn_hidden_size * hidden / family.hidden_size
    return family.model_copy(
        update={
            "hidden_size": hidden,
            "layers": layers,
            "attention_heads": heads,
            "key_value_heads": next(count for count in range(most, 0, -1) if heads % count == 0),
            "ffn_hidden_size": max(1, round(ffn / FP8_MULTIPLE)) * FP8_MULTIPLE,
            # Four digits: a recipe that people read.
            "init_std": float(f"{family.init_std * math.sqrt(family.hidden_size / hidden):.4g}"),
        }
    )


def scale_recipe(recipe: Recipe, size: int, tokens_per_parameter: float, rule: Rule) -> Recipe:
    """The recipe at another size by the rule above; its name, run folder and layout are still those of ``recipe``."""
    network = network_of_size(recipe.network, size)
    tokens = multiplying_parameters(network, 0) * tokens_per_parameter
    share = tokens / sum(phase.tokens for phase in recipe.phases)
    small = recipe.model_copy(
        update={"network": network, "phases": [_shorter(phase, share) for phase in recipe.phases]}
    )
    # By the budgets: the steps, which the batch decides, end a little behind them.
    ratio = _flops(small) / _flops(recipe)
    rates = ratio**rule.learning_rate_exponent
    # One factor for all phases, so that their batches keep their proportions.
    most = min(phase.tokens / (PHASE_STEPS * phase.step_tokens) for phase in small.phases)
    batches = min(ratio**rule.batch_exponent, most)
    return small.model_copy(update={"phases": [_learning(phase, rates, batches) for phase in small.phases]})


def _flops(recipe: Recipe) -> float:
    one_sequence = [
        phase.model_copy(update={"batch_sequences": 1, "micro_batch_sequences": 1, "batch_ramp": None})
        for phase in recipe.phases
    ]
    return run_flops(recipe.model_copy(update={"phases": one_sequence}), 0)


def _shorter(phase: Phase, share: float) -> Phase:
    return phase.model_copy(update={"tokens": max(1, round(phase.tokens * share)), "batch_ramp": None})


def _learning(phase: Phase, rates: float, batches: float) -> Phase:
    rate = phase.learning_rate
    scaled = rate.model_copy(update={end: float(f"{getattr(rate, end) * rates:.4g}") for end in ("start", "end")})
    sequences = _round_batch(phase.batch_sequences * batches, phase.tokens // (PHASE_STEPS * phase.context_tokens))
    micro = math.gcd(phase.micro_batch_sequences, sequences)
    update = {"learning_rate": scaled, "batch_sequences": sequences, "micro_batch_sequences": micro}
    return phase.model_copy(update=update)


def _round_batch(sequences: float, most: int) -> int:
    """The nearest of 1, 2, 3, 4, 6, 8, 12, 16, ... up to ``most``: many numbers of GPUs divide them."""
    sequences, most = max(sequences, 1), max(most, 1)
    power = 2 ** math.floor(math.log2(sequences))
    sizes = [size for size in (power, power * 3 // 2, power * 2) if size <= most]
    return min(sizes or [1], key=lambda size: abs(math.log(size / sequences)))
