import numpy as np
import pytest

from megatron_music.audio.spectrum import ShortTimeSpectrum, mel_filters


@pytest.mark.parametrize("samples", [1, 2, 319, 320, 321, 16_000])
def test_inverse_gives_the_signal_back(samples):
    signal = np.random.default_rng(0).uniform(-1, 1, samples).astype(np.float32)
    spectrum = ShortTimeSpectrum(1024, 320)
    spectrum_TF = spectrum(signal)
    assert spectrum_TF.shape == (-(-samples // 320), 513) and spectrum_TF.dtype == np.complex64
    rebuilt = spectrum.invert(spectrum_TF)
    assert rebuilt.shape == (320 * len(spectrum_TF),)
    np.testing.assert_allclose(rebuilt[:samples], signal, atol=1e-5)


def test_full_scale_sine_has_amplitude_one():
    sine = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    amplitudes_TF = np.abs(ShortTimeSpectrum(1024, 320)(sine))
    assert amplitudes_TF[20].argmax() == 64
    assert amplitudes_TF[20, 64] == pytest.approx(1, abs=1e-4)


def test_filters_cover_the_spectrum_in_order():
    filters_MF = mel_filters(80, 1024, 16_000)
    np.testing.assert_allclose(filters_MF.sum(axis=1), 1, atol=1e-5)
    centres = filters_MF.argmax(axis=1)
    assert (np.diff(centres) >= 1).all()
    # Slaney's scale: 15 mels for the first kHz and 27 / ln 6.4 a factor of e above it.
    mels_at_8k = 15 + 27 * np.log(8) / np.log(6.4)
    assert centres[np.searchsorted(centres * 15.625, 1000)] * 15.625 == pytest.approx(1000, abs=40)
    assert (centres * 15.625 < 1000).sum() == pytest.approx(81 * 15 / mels_at_8k, abs=1)


def test_griffin_lim_rebuilds_amplitudes_and_repeats():
    spectrum = ShortTimeSpectrum(1024, 320)
    times = np.arange(16_000) / 16_000
    signal = (0.3 * np.sin(2 * np.pi * 440 * times) + 0.2 * np.sin(2 * np.pi * 1330 * times)).astype(np.float32)
    amplitudes_TF = np.abs(spectrum(signal))
    rebuilt = spectrum.griffin_lim(amplitudes_TF, 60)
    error = np.linalg.norm(np.abs(spectrum(rebuilt)) - amplitudes_TF) / np.linalg.norm(amplitudes_TF)
    assert error < 0.15
    np.testing.assert_array_equal(rebuilt, spectrum.griffin_lim(amplitudes_TF, 60))
