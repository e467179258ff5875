"""YuE's 44.1 kHz vocoders: from X-Codec's quantised latents to sound with the highs that 16 kHz can't hold.

There are two networks of one shape, for vocals and for accompaniment, of the Vocos kind (Siuzdak 2023,
arXiv 2306.00814): a stack of ConvNeXt blocks at the codec's frame rate, and a head that gives magnitude and phase of
every frame's spectrum, which an inverse short-time Fourier transform turns into samples. All sizes are read off the
tensors. What is below 5.5 kHz is taken from the codec's own reconstruction, as YuE's program takes it.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from megatron_music.audio.files import resample
from megatron_music.errors import InputError
from megatron_music.weights import load_pickled

if TYPE_CHECKING:
    from megatron_music.audio.codec import Codec

VOCODER_FILES = {"vocals": "decoder_131000.pth", "accompaniment": "decoder_151000.pth"}
CROSSOVER_HZ = 5500.0
LARGEST_MAGNITUDE = 100.0
_OVERLAP = 4
_MEND = "name a folder with decoder_131000.pth and decoder_151000.pth (m-a-p/YuE-upsampler)"
_PIECE_FRAMES, _CONTEXT_FRAMES = 6000, 64


class _ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, and two layers over channels, scaled and added to the input."""

    def __init__(self, channels: int, hidden: int, kernel: int):
        super().__init__()
        self.dwconv = nn.Conv1d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.pwconv1, self.pwconv2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x_BCT: torch.Tensor) -> torch.Tensor:
        h_BTC = self.norm(self.dwconv(x_BCT).transpose(1, 2))
        return x_BCT + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(h_BTC)))).transpose(1, 2)


class _Backbone(nn.Module):
    def __init__(self, latents: int, channels: int, hidden: int, blocks: int, kernel: int):
        super().__init__()
        self.embed = nn.Conv1d(latents, channels, kernel, padding=kernel // 2)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.convnext = nn.ModuleList(_ConvNeXtBlock(channels, hidden, kernel) for _ in range(blocks))
        self.final_layer_norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, latents_BLT: torch.Tensor) -> torch.Tensor:
        """(B, latents, T) -> (B, T, channels)."""
        x = self.norm(self.embed(latents_BLT).transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            x = block(x)
        return self.final_layer_norm(x.transpose(1, 2))


class _Head(nn.Module):
    def __init__(self, channels: int, window_samples: int):
        super().__init__()
        self.out = nn.Linear(channels, window_samples + 2)


class Vocoder(nn.Module):
    """One network. Windows overlap fourfold, so that a frame is a quarter of a window: 882 samples of YuE's 3,528."""

    def __init__(self, latents: int, channels: int, hidden: int, blocks: int, kernel: int, window_samples: int):
        super().__init__()
        self.backbone = _Backbone(latents, channels, hidden, blocks, kernel)
        self.head = _Head(channels, window_samples)
        self.window_samples, self.hop_samples = window_samples, window_samples // _OVERLAP
        self.register_buffer("window", torch.hann_window(window_samples), persistent=False)

    def forward(self, latents_BLT: torch.Tensor) -> torch.Tensor:
        """(B, latents, T) -> (B, T * hop)."""
        logarithm, phase = self.head.out(self.backbone(latents_BLT)).transpose(1, 2).chunk(2, dim=1)
        magnitude = torch.exp(logarithm).clamp(max=LARGEST_MAGNITUDE)
        return overlap_add(torch.polar(magnitude, phase), self.window, self.hop_samples)


def overlap_add(spectra_BFT: torch.Tensor, window: torch.Tensor, hop_samples: int) -> torch.Tensor:
    """Inverse short-time Fourier transform, complex (B, F, T) -> (B, T * hop).

    Frame t is centred on the samples from ``t * hop`` to ``(t + 1) * hop``; what reaches over either end is cut off.
    """
    frames_BST = torch.fft.irfft(spectra_BFT, n=len(window), dim=1) * window[:, None]
    B, S, T = frames_BST.shape
    length = (T - 1) * hop_samples + S
    fold = {"output_size": (1, length), "kernel_size": (1, S), "stride": (1, hop_samples)}
    summed_BN = F.fold(frames_BST, **fold)[:, 0, 0]
    weights_N = F.fold(window.square()[None, :, None].expand(1, S, T), **fold)[0, 0, 0]
    cut = (S - hop_samples) // 2
    return summed_BN[:, cut : cut + T * hop_samples] / weights_N[cut : cut + T * hop_samples]


def load_vocoders(folder: str | Path, device: str = "cpu") -> dict[str, Vocoder]:
    """The networks for ``vocals`` and ``accompaniment`` from YuE's files in ``folder`` or its ``decoders`` folder.

    Raises:
        InputError: a file is missing or damaged, or holds other tensors than such a network has.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(folder, "no such folder", _MEND)
    inner = folder / "decoders"
    places = {name: (inner if (inner / file).is_file() else folder) / file for name, file in VOCODER_FILES.items()}
    return {name: _load(path).to(device).eval().requires_grad_(False) for name, path in places.items()}


def _load(path: Path) -> Vocoder:
    content = load_pickled(path, _MEND)
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    tensors = {name: tensor.float() for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    # The window is Hann's, which the file repeats.
    tensors.pop("head.istft.window", None)
    try:
        channels, latents, kernel = tensors["backbone.embed.weight"].shape
        hidden = tensors["backbone.convnext.0.pwconv1.weight"].shape[0]
        window_samples = tensors["head.out.weight"].shape[0] - 2
        blocks = len({name.split(".")[2] for name in tensors if name.startswith("backbone.convnext.")})
        if window_samples % (2 * _OVERLAP) or not kernel % 2:
            raise ValueError(f"a window of {window_samples} samples, a kernel of {kernel}")
        vocoder = Vocoder(latents, channels, hidden, blocks, kernel, window_samples)
        vocoder.load_state_dict(tensors)
    except (KeyError, ValueError, IndexError, RuntimeError) as error:
        raise InputError(path, f"is no vocoder of this kind ({error})", _MEND) from None
    return vocoder


def check_vocoders(vocoders: dict[str, Vocoder], codec: "Codec", where: str | Path) -> None:
    """Raises InputError where vocoders can't follow a codec: it has no latents, or others than they take."""
    if codec.name != "xcodec":
        raise InputError(where, f"is a vocoder for xcodec, not for {codec.name}", "leave --vocoder out")
    size = codec.model.quantizer.quantizers[0].codebook.embed.shape[1]
    for vocoder in vocoders.values():
        if vocoder.backbone.embed.in_channels != size:
            found = f"takes latents of {vocoder.backbone.embed.in_channels} numbers, the codec has {size}"
            raise InputError(where, found, "name the vocoder of this codec")


@torch.inference_mode()
def vocode(vocoder: Vocoder, codec: "Codec", codes_KT: np.ndarray) -> np.ndarray:
    """Codes, int (K, T), to float32 (T * hop,) at ``hop * codec.frames_per_second`` Hz.

    Long songs go in pieces, whose neighbours' frames reach as far as the network hears: the sound is that of the whole.
    """
    device = vocoder.window.device
    codes = torch.from_numpy(np.asarray(codes_KT).astype(np.int64)).to(codec.model.device)
    latents_1LT = codec.model.quantizer.decode(codes[:, None]).to(device)
    frames = latents_1LT.shape[-1] if codes.numel() else 0
    pieces = []
    for start in range(0, frames, _PIECE_FRAMES):
        first, end = max(0, start - _CONTEXT_FRAMES), min(frames, start + _PIECE_FRAMES)
        samples = vocoder(latents_1LT[..., first : min(frames, end + _CONTEXT_FRAMES)])[0]
        pieces.append(samples[(start - first) * vocoder.hop_samples :][: (end - start) * vocoder.hop_samples])
    return torch.cat(pieces).float().cpu().numpy() if pieces else np.zeros(0, np.float32)


def cross_over(
    low: np.ndarray, low_rate: int, high: np.ndarray, high_rate: int, crossover_hz: float = CROSSOVER_HZ
) -> np.ndarray:
    """``low`` below ``crossover_hz`` and ``high`` above it, float32 (samples,) at ``high_rate``.

    The filters are complementary: of two equal signals their sum is that signal. ``high`` is first brought to the level
    that ``low`` has below the crossover, by a factor of at most 10 (YuE's program moves ``low``), which keeps the
    balance of the stems.
    """
    low = resample(low, low_rate, high_rate)
    length = min(len(low), len(high))
    if length == 0:
        return np.zeros(0, np.float32)
    padded = length + high_rate // 10  # so that the filter does not reach round to the start
    frequencies = np.fft.rfftfreq(padded, 1 / high_rate)
    # A quarter of an octave wide, and even around the crossover.
    octaves = np.log2(np.maximum(frequencies, 1e-9) / crossover_hz)
    low_pass = 0.5 - 0.5 * np.sin(np.pi * np.clip(octaves / 0.25, -0.5, 0.5))
    low_F, high_F = (np.fft.rfft(samples[:length].astype(np.float64), padded) for samples in (low, high))
    low_level, high_level = (np.sqrt(np.mean(np.abs(spectrum * low_pass) ** 2)) for spectrum in (low_F, high_F))
    audible = min(low_level, high_level) > 1e-4 * length**0.5
    gain = np.clip(low_level / high_level, 0.1, 10.0) if audible else 1.0
    joined = np.fft.irfft(low_F * low_pass + high_F * gain * (1 - low_pass), padded)[:length]
    return joined.astype(np.float32)
