"""f0 of a voice by RMVPE (Wei et al. 2023, arXiv 2306.15412): a U-Net and a GRU over a log-mel spectrogram.

Modules bear the names of the published weights, ``rmvpe.pt``, and compute what the program published with them does.
The U-Net hears long songs in pieces with so much on either side as it can hear; the GRU hears the whole song, so that
pieces change nothing.
"""

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from megatron_music.audio.files import resample
from megatron_music.errors import InputError
from megatron_music.weights import load_pickled, require_content

SAMPLE_RATE, WINDOW, HOP = 16_000, 1024, 160
MELS, LOWEST_HZ, HIGHEST_HZ, LEAST_AMPLITUDE = 128, 30.0, 8000.0, 1e-5
BINS, BIN_CENTS, FIRST_BIN_CENTS, CENTS_ZERO_HZ = 360, 20, 1997.3794084376191, 10.0
"""Bins of salience, 20 cents apart, from 31.7 Hz; cents are counted from 10 Hz."""
NEAR_BINS = 4
"""On either side of the highest bin, that count towards f0."""
LEAST_SALIENCE = 0.03
PIECE_FRAMES = 6016
"""A minute, and 16 s on either side are heard with it; on three minutes of song a process takes 1.3 GiB."""
_MEND = "name RMVPE's weights, rmvpe.pt or a .safetensors file of the same tensors"


class Rmvpe(nn.Module):
    """The network; by default in the published size, of 90 million parameters.

    Attributes:
        step_frames: what the U-Net halves down to one frame; it hears multiples of that.
        margin_frames: how far it hears, a multiple of ``step_frames`` too.
    """

    def __init__(self, levels: int = 5, blocks: int = 4, middle_levels: int = 4, width: int = 16, gru_width: int = 256):
        super().__init__()
        widths = [width << level for level in range(levels)]
        down = (_Level(first, second, blocks) for first, second in pairwise([1, *widths]))
        middle = (_Level(*ends, blocks) for ends in pairwise([widths[-1], *[2 * widths[-1]] * middle_levels]))
        up = (_Rise(2 * width, width, blocks) for width in reversed(widths))
        self.unet = nn.ModuleDict(
            {
                "encoder": nn.ModuleDict({"bn": nn.BatchNorm2d(1), "layers": nn.ModuleList(down)}),
                "intermediate": nn.ModuleDict({"layers": nn.Sequential(*middle)}),
                "decoder": nn.ModuleDict({"layers": nn.ModuleList(up)}),
            }
        )
        self.cnn = nn.Conv2d(width, 3, 3, padding=1)
        gru = nn.GRU(3 * MELS, gru_width, batch_first=True, bidirectional=True)
        self.fc = nn.ModuleList([nn.ModuleDict({"gru": gru}), nn.Linear(2 * gru_width, BINS)])
        self.step_frames = 1 << levels
        around = (4 * blocks + 2) * (self.step_frames - 1) + 2 * blocks * middle_levels * self.step_frames + 1
        self.margin_frames = -(-around // self.step_frames) * self.step_frames

    @torch.inference_mode()
    def f0(self, samples: np.ndarray, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
        """f0 of float32 (S,), full scale = 1: Hz, float64, 100 a second, NaN where nothing is sung."""
        samples = resample(samples, sample_rate, SAMPLE_RATE)
        if not len(samples):
            return np.zeros(0)
        return f0_of_salience(self.salience(samples).cpu().numpy())[: -(-len(samples) // HOP)]

    @torch.inference_mode()
    def salience(self, samples: np.ndarray) -> Tensor:
        """How much a voice sings each bin's pitch, 0 to 1: float32 (T, 360) of (S,) at 16 kHz, T = S // 160 + 1."""
        frames = len(samples) // HOP + 1
        # The published program makes the spectrogram a multiple of 32 frames long with zeros, and hears them.
        heard = -(-frames // self.step_frames) * self.step_frames
        device = self.cnn.weight.device
        padded = torch.from_numpy(np.pad(samples, WINDOW // 2, mode="reflect").astype(np.float32))
        features = []
        for start in range(0, heard, PIECE_FRAMES):
            end = min(start + PIECE_FRAMES, heard)
            first, last = max(0, start - self.margin_frames), min(end + self.margin_frames, heard)
            sounding = min(last, frames)
            mel_TM = log_mel(padded[first * HOP : (sounding - 1) * HOP + WINDOW].to(device))
            mel_TM = pad(mel_TM, (0, 0, 0, last - sounding))
            features.append(self._features(mel_TM)[start - first : end - first])
        hidden, _ = self.fc[0]["gru"](torch.cat(features)[None])
        return self.fc[1](hidden)[0, :frames].sigmoid()

    def _features(self, mel_TM: Tensor) -> Tensor:
        """What the GRU hears of a spectrogram (T, 128): (T, 384)."""
        x, beside = self.unet["encoder"]["bn"](mel_TM[None, None]), []
        for level in self.unet["encoder"]["layers"]:
            x = level(x)
            beside.append(x)
            x = avg_pool2d(x, 2)
        x = self.unet["intermediate"]["layers"](x)
        for rise in self.unet["decoder"]["layers"]:
            x = rise(x, beside.pop())
        return self.cnn(x)[0].transpose(0, 1).flatten(1)


class _Block(nn.Module):
    """Two convolutions, and what came in beside them: (1, inputs, T, F) -> (1, outputs, T, F)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.conv = nn.Sequential(first, nn.BatchNorm2d(outputs), nn.ReLU(), second, nn.BatchNorm2d(outputs), nn.ReLU())
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.shortcut(x)


class _Level(nn.Module):
    """Blocks in a row."""

    def __init__(self, inputs: int, outputs: int, blocks: int):
        super().__init__()
        self.conv = _blocks(inputs, outputs, blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Rise(nn.Module):
    """To twice the frames and bands, then blocks over that and what the encoder had there."""

    def __init__(self, inputs: int, outputs: int, blocks: int):
        super().__init__()
        up = nn.ConvTranspose2d(inputs, outputs, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.conv1 = nn.Sequential(up, nn.BatchNorm2d(outputs), nn.ReLU())
        self.conv2 = _blocks(2 * outputs, outputs, blocks)

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        return self.conv2(torch.cat((self.conv1(x), beside), dim=1))


def _blocks(inputs: int, outputs: int, count: int) -> nn.Sequential:
    return nn.Sequential(_Block(inputs, outputs), *(_Block(outputs, outputs) for _ in range(count - 1)))


def load_rmvpe(path: str | Path, device: str = "cpu") -> Rmvpe:
    """The network with the weights of ``rmvpe.pt``, or of a safetensors file with the same tensors.

    Raises:
        InputError: there is no such file, it can't be read, its tensors are not RMVPE's, or the device can't be used.
    """
    tensors = _read_tensors(Path(path))
    with torch.device("meta"):
        network = Rmvpe()
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    if foreign := sorted(tensors.keys() - shapes.keys()):
        raise InputError(path, f"is not RMVPE's: it holds {foreign[0]!r}", _MEND)
    wrong = [name for name, shape in shapes.items() if name not in tensors or tensors[name].shape != shape]
    if wrong:
        what = f"{len(wrong)} of {len(shapes)} tensors are missing or of another shape, first {wrong[0]}"
        raise InputError(path, f"is not RMVPE's: {what}", _MEND)
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(path, f"{name} holds numbers that are not finite", "fetch the file again")
    floats = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    network.load_state_dict(floats, assign=True)
    try:
        return network.eval().requires_grad_(False).to(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError("--device", f"{device} can't be used ({error})", "name cpu, or cuda if there is one") from None


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        require_content(path, _MEND)
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(path, f"can't be read as weights ({error})", "fetch the file again") from None
    content = load_pickled(path, _MEND)
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise InputError(path, "holds other things than tensors by name", _MEND)
    return content


def log_mel(samples: Tensor) -> Tensor:
    """Logarithms of mel amplitudes, at least 1e-5: (S,) at 16 kHz -> (T, 128), T = (S - 1024) // 160 + 1."""
    window = torch.hann_window(WINDOW, device=samples.device)
    spectrum_FT = torch.stft(samples, WINDOW, HOP, window=window, center=False, return_complex=True)
    return (_mel_filters().to(samples.device) @ spectrum_FT.abs()).clamp(min=LEAST_AMPLITUDE).log().T


@cache
def _mel_filters() -> Tensor:
    """Triangles of area 1 over Hz, evenly spaced on HTK's mel scale: (128, 513)."""
    low, high = (np.log1p(hz / 700) for hz in (LOWEST_HZ, HIGHEST_HZ))
    edges_hz = 700 * np.expm1(np.linspace(low, high, MELS + 2))
    left, centre, right = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    bins_hz = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE)
    filters = np.minimum((bins_hz - left) / (centre - left), (right - bins_hz) / (right - centre))
    return torch.from_numpy((filters.clip(min=0) * 2 / (right - left)).astype(np.float32))


def f0_of_salience(salience_TB: np.ndarray) -> np.ndarray:
    """Hz of each frame's highest bin and four on either side, weighted by their salience (T, 360): float64 (T,).

    NaN where no bin is above 0.03.
    """
    bins_TN = salience_TB.argmax(axis=1)[:, None] + np.arange(-NEAR_BINS, NEAR_BINS + 1)
    near_TN = np.take_along_axis(salience_TB, bins_TN.clip(0, BINS - 1), axis=1).astype(np.float64)
    near_TN[(bins_TN < 0) | (bins_TN >= BINS)] = 0.0
    bin_T = (near_TN * bins_TN).sum(axis=1) / near_TN.sum(axis=1).clip(min=1e-9)
    f0_hz = CENTS_ZERO_HZ * 2 ** ((FIRST_BIN_CENTS + BIN_CENTS * bin_T) / 1200)
    return np.where(salience_TB.max(axis=1) > LEAST_SALIENCE, f0_hz, np.nan)
