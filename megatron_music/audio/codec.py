"""What every codec offers, and loading one by its name."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from megatron_music.errors import InputError

CODEC_NAMES = ("embedded", "xcodec", "encodec", "dac")


@runtime_checkable
class Codec(Protocol):
    """Turns mono audio into residual codes and back.

    Attributes:
        name: the name that ``load_codec`` and a vocabulary's codec ranges know it by.
        sample_rate: of the audio that it takes and gives, in Hz.
        frames_per_second: columns of codes a second.
        codebooks: rows of codes that ``encode`` gives, coarse to fine.
        codebook_size: codes run from 0 to ``codebook_size - 1``.
    """

    name: str
    sample_rate: int
    frames_per_second: float
    codebooks: int
    codebook_size: int

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """float32 (S,), full scale = 1 -> codes_KT int16 (codebooks, about S / sample_rate * frames_per_second)."""
        ...

    def encode_batch(self, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        """What ``encode`` gives of each, but with fewer calls of a network where several are of one length."""
        ...

    def decode(self, codes_KT: np.ndarray) -> np.ndarray:
        """Codes of the first K' <= codebooks codebooks, int (K', T) -> float32 (S,); ValueError on other codes."""
        ...


def family_of(name: str) -> str:
    """``dac`` of ``dac44k``: a codec's name without the sample rate that tells its models apart."""
    family = re.sub(r"\d+k$", "", name)
    return family if family in ("encodec", "dac") else name


def load_codec(
    name: str, weights: str | Path | None = None, device: str = "cpu", codebooks: int | None = None
) -> Codec:
    """Loads a codec.

    Args:
        name: one of ``CODEC_NAMES``; of EnCodec and DAC also with the sample rate, as the codec names itself and its
            codes (``encodec32k``, ``dac44k``).
        weights: for ``embedded`` a folder that ``EmbeddedCodec.save`` wrote; otherwise a folder or a hub name of a
            transformers model, or for ``xcodec`` also YuE's own checkpoint file. Only a hub name uses the network.
        device: a torch device, for the codecs that are networks.
        codebooks: how many of the codec's codebooks ``encode`` gives; by default 8 of X-Codec's (as YuE uses) and
            all of the others'.

    Raises:
        InputError: an unknown name, no weights named, or weights that are missing, damaged or of another codec.
    """
    if family_of(name) not in CODEC_NAMES:
        raise InputError(f"codec '{name}'", "is not known", f"name one of {', '.join(CODEC_NAMES)}")
    if weights is None:
        these = {
            "embedded": "the folder of a fitted codec (`encode` saves one beside the codes)",
            "xcodec": "YuE's checkpoint file, a folder or a hub name",
        }.get(name, "a folder or a hub name")
        mend = f"name {these} with --weights, which is --codec-weights beside a model"
        raise InputError(f"codec '{name}'", "needs weights and none were named", mend)
    if name == "embedded":
        from megatron_music.audio.embedded import EmbeddedCodec

        codec = EmbeddedCodec.load(weights)
        kept = codebooks_to_keep(codebooks, codec.codebooks, str(weights))
        return EmbeddedCodec(codec.codebooks_KCM[:kept], codec.change_cost)
    from megatron_music.audio.huggingface import load_network_codec

    return load_network_codec(name, weights, device, codebooks)


def codebooks_to_keep(asked: int | None, available: int, where: str) -> int:
    """``asked`` or, where that is None, all that are ``available``; InputError where the codec has fewer."""
    if asked is None:
        return available
    if not 1 <= asked <= available:
        raise InputError(where, f"has {available} codebooks and {asked} were asked for", f"ask for 1 to {available}")
    return asked


def checked_codes(codes_KT: np.ndarray, codebooks: int, codebook_size: int) -> np.ndarray:
    """Codes to decode, (K', T); ValueError for more codebooks than there are, or a code out of range."""
    codes_KT = np.asarray(codes_KT)
    if codes_KT.ndim != 2 or not 1 <= len(codes_KT) <= codebooks:
        raise ValueError(f"codes of shape {codes_KT.shape}, expected (1 to {codebooks}, frames)")
    if codes_KT.size and (codes_KT.min() < 0 or codes_KT.max() >= codebook_size):
        raise ValueError(f"codes from {codes_KT.min()} to {codes_KT.max()}, expected 0 to {codebook_size - 1}")
    return codes_KT
