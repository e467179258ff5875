"""The GPUs that a plan can be made for: memory, and the peak that MFU is counted against."""

from dataclasses import dataclass

from megatron_music.errors import InputError

GiB = 2**30


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        memory_bytes: what the driver leaves to a process; a little less than the name says.
        bf16_flops: dense BF16 peak, operations a second.
    """

    name: str
    memory_bytes: int
    bf16_flops: float


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("H100 PCIe", 79 * GiB, 756e12),
        Gpu("H100", 79 * GiB, 989e12),
        Gpu("H800", 79 * GiB, 989e12),
        Gpu("A100", 79 * GiB, 312e12),
        Gpu("H200", 139 * GiB, 989e12),
    )
}
"""SXM boards where the name does not say PCIe, the A100 with 80 GB; figures of NVIDIA's data sheets."""


def gpu_named(name: str) -> Gpu:
    """The GPU of this name; raises InputError for one that is not known."""
    if name not in GPUS:
        raise InputError("--gpu", f"{name!r} is not known", f"choose one of {', '.join(GPUS)}")
    return GPUS[name]


def gpu_of_device(device: str) -> Gpu | None:
    """The GPU that a device's name, such as "NVIDIA H100 80GB HBM3", tells of; None for one that is not known."""
    return next((gpu for gpu in GPUS.values() if gpu.name in device), None)
