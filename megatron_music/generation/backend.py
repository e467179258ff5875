"""What runs the two networks: transformers' weights under our decoder, or vLLM. The sampling is the same."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from megatron_music.errors import InputError
from megatron_music.generation.models import ModelFolder
from megatron_music.generation.plan import Plan, Stage1Song
from megatron_music.generation.request import Watch
from megatron_music.generation.sampling import SamplingSettings

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from megatron_music.generation.stage2 import WindowForm

BACKENDS = ("transformers", "vllm")


class Backend(Protocol):
    """Both stages of singing."""

    def sing(self, plans: Sequence[Plan], settings: SamplingSettings, watch: Watch | None = None) -> list[Stage1Song]:
        """See ``stage1.sing``."""

    def refine(
        self,
        tracks: Sequence[np.ndarray],
        form: "WindowForm",
        windows_at_once: int | None = None,
        watch: Watch | None = None,
    ) -> list[np.ndarray]:
        """See ``stage2.refine``."""


def open_backend(name: str, folders: Sequence[ModelFolder], device: str, dtype: str, keep: bool = False) -> Backend:
    """The named backend for the folders of both stages; it reads a network when that is to work.

    Args:
        dtype: "auto" is the type of the stored weights.
        keep: a network stays in the memory when the other stage begins.

    Raises:
        InputError: no such backend, or it can't run here.
    """
    if name not in BACKENDS:
        raise InputError("--backend", f"{name!r} is not known", f"choose {' or '.join(BACKENDS)}")
    if name == "vllm":
        from megatron_music.generation.vllm_backend import VllmBackend

        return VllmBackend(folders, device, dtype, keep)
    return TransformersBackend(folders, device, dtype, keep)


class TransformersBackend:
    """Both stages in the decoder of ``decoder.py``."""

    def __init__(self, folders: Sequence[ModelFolder], device: str, dtype: str, keep: bool = False):
        self._folders, self._device, self._dtype, self._keep = folders, device, dtype, keep
        self._networks: dict[int, LlamaForCausalLM] = {}

    def sing(self, plans: Sequence[Plan], settings: SamplingSettings, watch: Watch | None = None) -> list[Stage1Song]:
        """See ``stage1.sing``."""
        from megatron_music.generation.stage1 import sing

        return sing(self._network(0), self._folders[0].positions, plans, settings, watch)

    def refine(
        self,
        tracks: Sequence[np.ndarray],
        form: "WindowForm",
        windows_at_once: int | None = None,
        watch: Watch | None = None,
    ) -> list[np.ndarray]:
        """See ``stage2.refine``."""
        from megatron_music.generation.stage2 import refine

        return refine(self._folders[1], self._network(1), tracks, form, windows_at_once, watch)

    def _network(self, stage: int) -> "LlamaForCausalLM":
        if stage not in self._networks:
            if not self._keep:
                self._networks.clear()
            self._networks[stage] = self._folders[stage].network(self._device, self._dtype)
        return self._networks[stage]
