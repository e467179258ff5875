"""X-Codec, EnCodec and DAC through transformers' own models."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import DacModel, EncodecModel, XcodecModel

from megatron_music.audio.codec import checked_codes, codebooks_to_keep, family_of
from megatron_music.audio.xcodec_checkpoint import load_yue_checkpoint
from megatron_music.errors import InputError
from megatron_music.pretrained import load_pretrained, named_weights


class NetworkCodec(ABC):
    """A codec that is a network; satisfies ``megatron_music.audio.codec.Codec``.

    Audio of more than ``longest_piece_seconds`` goes through the network in equal pieces with ``context_seconds`` of
    their neighbours on either side, because four minutes at once take X-Codec about 6 GiB. What that costs: the codes
    of such audio are those of the pieces, and X-Codec's semantic encoder hears no further than its piece.

    Args:
        model: the transformers model.
        sample_rate: in Hz.
        codebooks: how many of the model's codebooks ``encode`` gives.
        device: a torch device.
    """

    name: str
    longest_piece_seconds = 120.0
    context_seconds = 2.0

    def __init__(self, model: torch.nn.Module, sample_rate: int, codebooks: int, device: str):
        self.model = model.eval().requires_grad_(False).to(device)
        self.device = device
        self.sample_rate, self.codebooks = sample_rate, codebooks
        self.codebook_size = model.config.codebook_size
        self.hop_samples = model.config.hop_length
        self.frames_per_second = sample_rate / self.hop_samples

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """float32 (S,) -> int16 (codebooks, about S / hop)."""
        return self.encode_batch([samples])[0]

    def encode_batch(self, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        """float32 (S,) each -> what ``encode`` gives of each; those of one length go through the network together.

        Nothing is padded to the length of another: the networks norm and attend over all of their input, so that their
        codes would change. A device that multiplies batches of several sizes in several orders may still round the
        last bit another way, and then give another code where two are as near.
        """
        by_length: dict[int, list[int]] = {}
        for index, samples in enumerate(batch):
            by_length.setdefault(len(samples), []).append(index)
        codes: list[np.ndarray] = [np.zeros((self.codebooks, 0), np.int16)] * len(batch)
        for length, indices in by_length.items():
            if length:
                samples_BS = np.stack([np.asarray(batch[index], np.float32) for index in indices])
                for index, codes_KT in zip(indices, self._encode_equal(samples_BS), strict=True):
                    codes[index] = codes_KT
        return codes

    def _encode_equal(self, samples_BS: np.ndarray) -> np.ndarray:
        """float32 (B, S) -> int16 (B, codebooks, about S / hop)."""
        frames, pieces = -(-samples_BS.shape[1] // self.hop_samples), []
        for start, end, context_start, context_end in self._pieces(frames):
            piece_BS = samples_BS[:, context_start * self.hop_samples : context_end * self.hop_samples]
            # Less than a hop is less than the networks' first layers need.
            piece_BS = np.pad(piece_BS, ((0, 0), (0, max(0, self.hop_samples - piece_BS.shape[1]))))
            with torch.inference_mode():
                codes_BKT = self._encode(torch.from_numpy(piece_BS).to(self.device)[:, None])
            codes_BKT = codes_BKT[:, : self.codebooks, start - context_start :].cpu().numpy()
            pieces.append(codes_BKT if end == frames else codes_BKT[..., : end - start])
        return np.concatenate(pieces, axis=2).astype(np.int16)

    def decode(self, codes_KT: np.ndarray) -> np.ndarray:
        """int (1 to ``codebooks``, T) -> float32 (T * hop,).

        Raises:
            ValueError: more codebooks than ``encode`` gives, or a code out of range.
        """
        codes_KT = checked_codes(codes_KT, self.codebooks, self.codebook_size)
        if codes_KT.size == 0:
            return np.zeros(0, np.float32)
        samples = np.zeros(codes_KT.shape[1] * self.hop_samples, np.float32)
        for start, end, context_start, context_end in self._pieces(codes_KT.shape[1]):
            piece_KT = torch.from_numpy(codes_KT[:, context_start:context_end].astype(np.int64)).to(self.device)
            with torch.inference_mode():
                decoded = self._decode(piece_KT[None]).flatten().float().cpu().numpy()
            decoded = decoded[(start - context_start) * self.hop_samples :][: (end - start) * self.hop_samples]
            # Transposed convolutions of odd stride give a few samples less than whole hops.
            samples[start * self.hop_samples :][: len(decoded)] = decoded
        return samples

    def _pieces(self, frames: int) -> Iterator[tuple[int, int, int, int]]:
        """(start, end, start with context, end with context) of each piece, in frames."""
        context = round(self.context_seconds * self.frames_per_second)
        count = -(-frames // max(1, round(self.longest_piece_seconds * self.frames_per_second)))
        edges = [frames * piece // count for piece in range(count + 1)]
        for start, end in zip(edges[:-1], edges[1:], strict=True):
            yield start, end, max(0, start - context), min(frames, end + context)

    @abstractmethod
    def _encode(self, samples_BCS: torch.Tensor) -> torch.Tensor:
        """(B, 1, S) -> int64 (B, codebooks of the model, T)."""

    @abstractmethod
    def _decode(self, codes_BKT: torch.Tensor) -> torch.Tensor:
        """(1, K, T) -> one waveform in any shape."""


class XCodec(NetworkCodec):
    """X-Codec (Ye et al. 2024): 16 kHz, 50 frames a second, up to 12 codebooks of 1,024, of which YuE uses 8."""

    name = "xcodec"

    def __init__(self, model: XcodecModel, codebooks: int | None = None, device: str = "cpu", where: str = "xcodec"):
        available = model.config.num_quantizers
        kept = codebooks_to_keep(min(8, available) if codebooks is None else codebooks, available, where)
        super().__init__(model, model.config.sample_rate, kept, device)

    def _encode(self, samples_BCS: torch.Tensor) -> torch.Tensor:
        return self.model.encode(samples_BCS, bandwidth=self.model.config.target_bandwidths[-1]).audio_codes

    def _decode(self, codes_BKT: torch.Tensor) -> torch.Tensor:
        return self.model.decode(codes_BKT).audio_values


class EnCodec(NetworkCodec):
    """EnCodec (Defossez et al. 2022), the mono models of 24 kHz (75 frames a second) and 32 kHz (50).

    Their names are ``encodec24k`` and ``encodec32k``: codes of one mean nothing to the other.
    """

    def __init__(self, model: EncodecModel, codebooks: int | None = None, device: str = "cpu", where: str = "encodec"):
        config = model.config
        if config.audio_channels != 1 or config.normalize or config.chunk_length_s is not None:
            found = "is a stereo or normalising EnCodec, whose audio is more than its codes"
            raise InputError(where, found, "use facebook/encodec_24khz or facebook/encodec_32khz")
        kept = codebooks_to_keep(codebooks, config.num_quantizers, where)
        super().__init__(model, config.sampling_rate, kept, device)
        self.name = _name_with_rate("encodec", self.sample_rate)

    def _encode(self, samples_BCS: torch.Tensor) -> torch.Tensor:
        return self.model.encode(samples_BCS, bandwidth=self.model.config.target_bandwidths[-1]).audio_codes[0]

    def _decode(self, codes_BKT: torch.Tensor) -> torch.Tensor:
        return self.model.decode(codes_BKT[None], [None]).audio_values


class Dac(NetworkCodec):
    """Descript audio codec (Kumar et al. 2023): 16 kHz (12 codebooks), 24 kHz (32) or 44.1 kHz (9).

    Their names are ``dac16k``, ``dac24k`` and ``dac44k``, as in YuE's vocabulary.
    """

    def __init__(self, model: DacModel, codebooks: int | None = None, device: str = "cpu", where: str = "dac"):
        kept = codebooks_to_keep(codebooks, model.config.n_codebooks, where)
        super().__init__(model, model.config.sampling_rate, kept, device)
        self.name = _name_with_rate("dac", self.sample_rate)

    def _encode(self, samples_BCS: torch.Tensor) -> torch.Tensor:
        to_whole_hops = -samples_BCS.shape[-1] % self.hop_samples
        return self.model.encode(torch.nn.functional.pad(samples_BCS, (0, to_whole_hops))).audio_codes

    def _decode(self, codes_BKT: torch.Tensor) -> torch.Tensor:
        return self.model.decode(audio_codes=codes_BKT).audio_values


def _name_with_rate(family: str, sample_rate: int) -> str:
    return f"{family}{sample_rate // 1000}k"


_CODECS = {"xcodec": (XCodec, XcodecModel), "encodec": (EnCodec, EncodecModel), "dac": (Dac, DacModel)}


def load_network_codec(
    name: str, weights: str | Path, device: str = "cpu", codebooks: int | None = None
) -> NetworkCodec:
    """Loads ``xcodec``, ``encodec`` or ``dac`` from a folder, a hub name or, X-Codec only, YuE's checkpoint file.

    A name that says the sample rate as well (``dac44k``) takes weights of that rate alone.

    Raises:
        InputError: the weights are missing or damaged, are another model's, or do not fill every tensor.
    """
    family = family_of(name)
    codec_class, model_class = _CODECS[family]
    if Path(weights).is_file():
        if family != "xcodec":
            raise InputError(weights, "is a file", f"name a folder or a hub name for {name}")
        model = load_yue_checkpoint(weights)
    else:
        weights = named_weights(weights, "owner/name on the hub", family)
        model = load_pretrained(model_class, weights, family, "check the name or the files", dtype=torch.float32)
    codec = codec_class(model, codebooks=codebooks, device=device, where=str(weights))
    if name not in (family, codec.name):
        raise InputError(weights, f"is {codec.name}, not {name}", f"name weights of {name}")
    return codec
