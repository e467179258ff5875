"""Short-time spectra, mel filters and their inversion: what the embedded codec hears and speaks through."""

import numpy as np
import scipy.fft


def mel_filters(bands: int, window_samples: int, sample_rate: int) -> np.ndarray:
    """Triangular filters, evenly spaced on Slaney's mel scale (linear to 1 kHz, logarithmic above) up to Nyquist.

    Each filter's weights sum to one, so that a band holds the weighted mean amplitude of its bins.

    Returns:
        float32 (bands, window_samples // 2 + 1).
    """
    knee_hz, mels_per_hz, log_step = 1000.0, 3 / 200, np.log(6.4) / 27
    knee_mel = knee_hz * mels_per_hz
    top_hz = sample_rate / 2
    top_mel = top_hz * mels_per_hz if top_hz < knee_hz else knee_mel + np.log(top_hz / knee_hz) / log_step
    mels = np.linspace(0.0, top_mel, bands + 2)
    edges_hz = np.where(mels < knee_mel, mels / mels_per_hz, knee_hz * np.exp((mels - knee_mel) * log_step))
    low, centre, high = edges_hz[:-2, None], edges_hz[1:-1, None], edges_hz[2:, None]
    bins_hz = np.fft.rfftfreq(window_samples, 1 / sample_rate)
    filters = np.maximum(0.0, np.minimum((bins_hz - low) / (centre - low), (high - bins_hz) / (high - centre)))
    return (filters / np.maximum(filters.sum(axis=1, keepdims=True), 1e-9)).astype(np.float32)


class ShortTimeSpectrum:
    """A Hann-windowed spectrum whose frame t is centred on the middle of samples [t * hop, (t + 1) * hop).

    A signal of S samples has ceil(S / hop) frames; ``invert`` gives back frames * hop samples. Amplitudes are scaled
    so that a full-scale sine has amplitude one in its bin.
    """

    def __init__(self, window_samples: int, hop_samples: int):
        self.window_samples, self.hop_samples = window_samples, hop_samples
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_samples) / window_samples)
        self._window = window.astype(np.float32)
        self._scale = np.float32(2 / window.sum())
        self._lead = (window_samples - hop_samples) // 2
        self._hops_per_window = -(-window_samples // hop_samples)

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """float32 (S,) -> complex64 (T, bins)."""
        frames = -(-len(samples) // self.hop_samples)
        padded = np.zeros((frames - 1) * self.hop_samples + self.window_samples, np.float32)
        padded[self._lead : self._lead + len(samples)] = samples
        frames_TN = np.lib.stride_tricks.sliding_window_view(padded, self.window_samples)[:: self.hop_samples]
        return scipy.fft.rfft(frames_TN * (self._window * self._scale), axis=1)

    def invert(self, spectrum_TF: np.ndarray) -> np.ndarray:
        """The signal whose spectrum is nearest to complex64 (T, bins) in least squares: float32 (T * hop,).

        Overlap-add with the squared window divided out (Griffin and Lim 1984, equation 6).
        """
        frames = len(spectrum_TF)
        spread = np.zeros((frames, self._hops_per_window * self.hop_samples), np.float32)
        spread[:, : self.window_samples] = scipy.fft.irfft(spectrum_TF, self.window_samples, axis=1)
        spread[:, : self.window_samples] *= self._window / self._scale
        weights = np.zeros(self._hops_per_window * self.hop_samples, np.float32)
        weights[: self.window_samples] = self._window**2
        total = np.zeros((frames + self._hops_per_window - 1, self.hop_samples), np.float32)
        divisor = np.zeros_like(total)
        for shift in range(self._hops_per_window):
            part = slice(shift * self.hop_samples, (shift + 1) * self.hop_samples)
            total[shift : shift + frames] += spread[:, part]
            divisor[shift : shift + frames] += weights[part]
        signal = (total / np.maximum(divisor, 1e-6)).reshape(-1)
        return signal[self._lead : self._lead + frames * self.hop_samples]

    def griffin_lim(self, amplitudes_TF: np.ndarray, iterations: int, momentum: float = 0.99) -> np.ndarray:
        """A signal with about these amplitudes (float32 (T, bins)), float32 (T * hop,); the same on every call.

        Fast Griffin-Lim (Perraudin, Balazs and Sondergaard 2013) from seeded random phases, in the form in which the
        previous estimate is subtracted with weight momentum / (1 + momentum).
        """
        angles = np.random.default_rng(0).random(amplitudes_TF.shape, dtype=np.float32) * np.float32(2 * np.pi)
        phases_TF = np.exp(1j * angles).astype(np.complex64)
        previous_TF = np.zeros_like(phases_TF)
        weight = np.float32(momentum / (1 + momentum))
        for _ in range(iterations):
            rebuilt_TF = self(self.invert(amplitudes_TF * phases_TF))
            phases_TF = rebuilt_TF - weight * previous_TF
            phases_TF /= np.maximum(np.abs(phases_TF), np.float32(1e-12))
            previous_TF = rebuilt_TF
        return self.invert(amplitudes_TF * phases_TF)
