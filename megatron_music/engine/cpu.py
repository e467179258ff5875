"""Lets megatron-core run where there is no CUDA: over gloo, on CPUs, with the numbers unchanged.

Megatron-core names ``torch.cuda`` where it means "the device that I run on". ``install`` points those names at the CPU:
the current device, streams and events (a CPU has one queue, in order), generators, tensor factories called with
``device="cuda"``, and the type names that its optimizers check. All of it is here, nothing of it is installed where
CUDA is present, and no other module knows.
"""

import contextlib
import functools
import logging

import torch

CPU = torch.device("cpu")
_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "rand", "randn", "zeros_like", "empty_like")


class _Stream:
    """The CPU's one queue: whatever was issued before is done."""

    def __init__(self, *_args, **_kwargs):
        self.device = CPU

    def wait_stream(self, _stream) -> None:
        """Nothing to wait for."""

    def wait_event(self, _event) -> None:
        """Nothing to wait for."""

    def record_event(self, event=None):
        """Returns an event that has already happened."""
        return event or _Event()

    def synchronize(self) -> None:
        """Nothing to wait for."""


class _Event(_Stream):
    def record(self, _stream=None) -> None:
        """Nothing to mark."""

    def wait(self, _stream=None) -> None:
        """Nothing to wait for."""

    def query(self) -> bool:
        """An event on the CPU has always happened."""
        return True


def _is_cuda(device: object) -> bool:
    return isinstance(device, str) and device.startswith("cuda") or getattr(device, "type", None) == "cuda"


def _on_cpu(factory):
    @functools.wraps(factory)
    def create(*args, **kwargs):
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)  # for copies to a GPU
        return factory(*args, **kwargs)

    return create


def _get_state(*_args, **_kwargs) -> torch.Tensor:
    return torch.default_generator.get_state()


def _set_state(state: torch.Tensor, *_args, **_kwargs) -> None:
    torch.default_generator.set_state(state)


@functools.cache
def install() -> None:
    """Points megatron-core's CUDA calls at the CPU, once a process; call it before any network is built.

    Raises RuntimeError where CUDA is present, since it would hide the GPU.
    """
    if torch.cuda.is_available():
        raise RuntimeError("the CPU adapter was asked for on a machine with CUDA")
    stream = _Stream()
    cuda = torch.cuda
    cuda.current_device = lambda: CPU
    # A function of its own for each name: torch.compile's tables refuse one object under two names.
    for name in ("set_device", "synchronize", "empty_cache"):
        setattr(cuda, name, lambda *_args, **_kwargs: None)
    cuda.Stream, cuda.Event = _Stream, _Event
    for name in ("current_stream", "default_stream"):
        setattr(cuda, name, lambda *_args, **_kwargs: stream)
    cuda.stream = lambda _stream: contextlib.nullcontext()
    # The generator's own method: torch.manual_seed would call back into torch.cuda and never return.
    cuda.manual_seed = torch.default_generator.manual_seed
    cuda.get_rng_state, cuda.set_rng_state = _get_state, _set_state
    torch.Tensor.cuda = lambda self, *_args, **_kwargs: self
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))

    type_of = torch.Tensor.type

    def cuda_type(self, *args, **kwargs):
        if args or kwargs:
            return type_of(self, *args, **kwargs)
        return type_of(self).replace("torch.", "torch.cuda.", 1)

    torch.Tensor.type = cuda_type

    from megatron.core.tensor_parallel import random

    random._get_cuda_rng_state, random._set_cuda_rng_state = _get_state, _set_state
    # Its own generator is the CPU's here, so the warning that the CPU's state moved tells nothing.
    logging.getLogger(random.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())
