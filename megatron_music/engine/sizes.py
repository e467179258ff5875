"""What is prepared on a GPU for micro-batches of one size, and made anew where a phase brings another.

These are Transformer Engine's buffers for communication between tensor-parallel processes, and the CUDA graphs of the
layers. Nothing of it exists where the layout asks for neither.
"""

import contextlib
from collections.abc import Iterator

import torch
from megatron.core.transformer.cuda_graphs import delete_cuda_graphs
from megatron.core.transformer.transformer_config import TransformerConfig

_MANAGER = "cudagraph_manager"
"""The part of a layer that megatron-core gives it for CUDA graphs, and asks for in every call."""


class Sizes:
    """The buffers and graphs of this process' ``chunks``."""

    def __init__(self, config: TransformerConfig, chunks: list[torch.nn.Module]):
        self._config = config
        self._buffer_tokens: int | None = None
        self._graphed: tuple[int, int, int] | None = None
        self._layers = []
        if config.cuda_graph_impl != "none":
            self._layers = [module for chunk in chunks for module in chunk.modules() if hasattr(module, _MANAGER)]

    def prepare_training(self, sequences: int, context_tokens: int, micro_batches: int) -> None:
        """Called before every step, with the size of a micro-batch and the number of them on this process."""
        self._prepare_buffers(sequences * context_tokens)
        size = sequences, context_tokens, micro_batches
        if self._layers and size != self._graphed:
            if self._graphed is not None:
                self._renew_graphs()
            # Layers are captured by megatron-core in the first step, and from then on replayed.
            self._graphed = size

    @contextlib.contextmanager
    def evaluating(self, sequences: int, context_tokens: int) -> Iterator[None]:
        """Runs layers kernel by kernel, since sizes vary and graphs know one."""
        self._prepare_buffers(sequences * context_tokens)
        managers = [layer._modules.pop(_MANAGER) for layer in self._layers]
        try:
            yield
        finally:
            for layer, manager in zip(self._layers, managers, strict=True):
                layer._modules[_MANAGER] = manager

    def _renew_graphs(self) -> None:
        # Managers start a stream of their own, which does not wait for the one before it.
        torch.cuda.synchronize()
        delete_cuda_graphs()
        for layer in self._layers:
            layer.create_mcore_cudagraph_manager(self._config)
        torch.cuda.synchronize()

    def _prepare_buffers(self, tokens: int) -> None:
        """``tokens`` of a micro-batch of whole sequences."""
        if not self._config.tp_comm_overlap or tokens == self._buffer_tokens:
            return
        from transformer_engine.pytorch.module import base

        if self._buffer_tokens is not None:
            torch.cuda.synchronize()
            base.destroy_ub()
        modes = base.UserBufferQuantizationMode
        base.initialize_ub(
            [tokens // self._config.context_parallel_size, self._config.hidden_size],
            self._config.tensor_model_parallel_size,
            quantization_modes=[modes.FP8 if self._config.fp8 else modes.NONE],
            bootstrap_backend="nccl",
        )
        self._buffer_tokens = tokens
