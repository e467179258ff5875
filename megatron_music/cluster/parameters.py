"""Parameters of one process, by part of the network: what a pipeline stage holds of matrices cut by tensor parallelism.

Counted by arithmetic alone; ``engine.dry_run`` builds the network and has to find the same numbers.
"""

from dataclasses import asdict, dataclass

from megatron_music.recipe.flops import parameters_by_part, qkv_channels
from megatron_music.recipe.recipe import Recipe


@dataclass(frozen=True)
class Parameters:
    """Counts of parameters, by part.

    Attributes:
        adapters: matrices A and B of low-rank adapters, in all layers.
        trained: those of all parts that take a gradient.
    """

    embedding: int = 0
    attention: int = 0
    feed_forward: int = 0
    norms: int = 0
    output: int = 0
    adapters: int = 0
    trained: int = 0

    @property
    def by_part(self) -> dict[str, int]:
        """The counts of the parts, which together are all parameters."""
        return {part: count for part, count in asdict(self).items() if part != "trained"}

    @property
    def total(self) -> int:
        """All parameters."""
        return sum(self.by_part.values())

    @property
    def in_layers(self) -> int:
        """Parameters of the layers' matrices: what FP8 keeps copies of."""
        return self.attention + self.feed_forward


def parameters_of_stage(recipe: Recipe, vocabulary_size: int, stage: int) -> Parameters:
    """What each process of pipeline stage ``stage`` holds; the first also has the embedding, the last the output."""
    network, layout = recipe.network, recipe.layout
    return _parameters(
        recipe,
        layers=network.layers // layout.pipeline,
        tensor=layout.tensor,
        embedding_rows=vocabulary_size // layout.tensor if stage == 0 else 0,
        output_rows=vocabulary_size // layout.tensor if stage == layout.pipeline - 1 else 0,
    )


def whole_parameters(recipe: Recipe, vocabulary_size: int) -> Parameters:
    """The parameters of the whole model."""
    return _parameters(recipe, recipe.network.layers, 1, vocabulary_size, vocabulary_size)


def _parameters(recipe: Recipe, layers: int, tensor: int, embedding_rows: int, output_rows: int) -> Parameters:
    network, hidden = recipe.network, recipe.network.hidden_size
    counts = parameters_by_part(network, layers, tensor, embedding_rows, output_rows)
    lora = recipe.lora
    if lora is None:
        return Parameters(**counts, trained=sum(counts.values()))
    qkv, ffn = qkv_channels(network) // tensor, network.ffn_hidden_size // tensor
    # A matrix cut by outputs has A whole and B cut, one cut by inputs A cut and B whole.
    sides = {
        "attention": (hidden + qkv) + (hidden // tensor + hidden),
        "mlp": (hidden + 2 * ffn) + (ffn + hidden),
    }
    adapters = layers * lora.rank * sum(sides[target] for target in lora.targets)
    trained = adapters + (counts["embedding"] + counts["output"] if lora.full_embeddings else 0)
    return Parameters(**counts, adapters=adapters, trained=trained)
