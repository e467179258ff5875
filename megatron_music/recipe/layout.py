"""The layout of a run: how a model and its sequences are spread over processes, and what is kept in memory."""

from typing import Literal, Self

from pydantic import Field, model_validator

from megatron_music.recipe.fields import Strict


class Layout(Strict):
    """How one model is spread over processes; what is left of the processes is data parallelism."""

    tensor: int = Field(1, gt=0, description="processes that share every matrix")
    pipeline: int = Field(1, gt=0, description="processes that hold consecutive layers")
    interleave: int = Field(1, gt=0, description="runs of layers on each pipeline process")
    context: int = Field(1, gt=0, description="processes that share every sequence")
    sequence: bool = Field(False, description="norms and residuals split along the sequence over `tensor` processes")
    overlap: bool = Field(True, description="reduce gradients and gather parameters while computing")
    tensor_overlap: bool = Field(
        False, description="communicate between `tensor` processes while computing; needs Transformer Engine"
    )
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="what the backward pass computes again: nothing, the feed-forward layers, or whole layers"
    )
    recompute_layers: int | None = Field(
        None, gt=0, description="with recompute: full, how many layers of each run of layers; else all of them"
    )
    cuda_graphs: bool = Field(False, description="replay each layer's kernels as one CUDA graph, on GPUs")

    @property
    def model_processes(self) -> int:
        """Processes that work on the same sequences together."""
        return self.tensor * self.pipeline * self.context

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sequence and self.tensor == 1:
            raise ValueError("sequence parallelism needs tensor above 1; set sequence: false or raise tensor")
        if self.interleave > 1 and self.pipeline == 1:
            raise ValueError("interleave needs pipeline above 1; set interleave: 1 or raise pipeline")
        if self.tensor_overlap and not self.sequence:
            raise ValueError("tensor_overlap needs sequence parallelism; set sequence: true or tensor_overlap: false")
        if self.recompute_layers is not None and self.recompute != "full":
            raise ValueError("recompute_layers needs recompute: full; set that or leave recompute_layers out")
        if self.cuda_graphs and self.recompute != "none":
            raise ValueError("cuda_graphs can't hold recomputation; set recompute: none or cuda_graphs: false")
        return self
