import numpy as np
import pytest
import soundfile

from megatron_music.audio.files import read_audio, resample, write_audio
from megatron_music.errors import InputError


def tone(frequency_hz: float, sample_rate: int, seconds: float = 1.0) -> np.ndarray:
    times = np.arange(int(seconds * sample_rate)) / sample_rate
    return (0.5 * np.sin(2 * np.pi * frequency_hz * times)).astype(np.float32)


def peak_hz(samples: np.ndarray, sample_rate: int) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 8 * len(samples)))
    return spectrum.argmax() * sample_rate / (8 * len(samples))


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_lossless_formats_keep_every_sample(tmp_path, suffix):
    samples = np.random.default_rng(0).integers(-32768, 32768, 5000).astype(np.float32) / 32768
    write_audio(tmp_path / f"a{suffix}", samples, 16_000)
    np.testing.assert_array_equal(read_audio(tmp_path / f"a{suffix}", 16_000), samples)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_every_format_keeps_length_loudness_and_pitch(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write_audio(path, tone(440, 44_100, seconds=2), 44_100)
    samples = read_audio(path, 16_000)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - 32_000) <= 16_000 * 0.06
    middle = samples[8_000:24_000]
    assert peak_hz(middle, 16_000) == pytest.approx(440, abs=0.5)
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.5 / np.sqrt(2), rel=0.03)


def test_channels_are_averaged_or_kept(tmp_path):
    channels_CS = np.stack([np.full(100, 0.5), np.full(100, -0.25)]).astype(np.float32)
    write_audio(tmp_path / "a.wav", channels_CS, 8_000, subtype="FLOAT")
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", 8_000), np.full(100, 0.125, np.float32))
    np.testing.assert_array_equal(read_audio(tmp_path / "a.wav", 8_000, mono=False), channels_CS)
    assert read_audio(tmp_path / "a.wav", 16_000, mono=False).shape == (2, 200)


@pytest.mark.parametrize(("from_rate", "to_rate"), [(44_100, 16_000), (8_000, 16_000), (48_000, 24_000)])
def test_resampling_keeps_pitch_and_level(from_rate, to_rate):
    samples = resample(tone(1000, from_rate), from_rate, to_rate)
    assert len(samples) == to_rate
    middle = samples[to_rate // 4 : -to_rate // 4]
    assert peak_hz(middle, to_rate) == pytest.approx(1000, abs=0.5)
    assert np.abs(middle).max() == pytest.approx(0.5, rel=0.01)


def test_resampling_removes_what_the_new_rate_cannot_hold():
    assert np.abs(resample(tone(10_000, 44_100), 44_100, 16_000)[1000:-1000]).max() < 1e-3


def test_two_samples_survive(tmp_path):
    write_audio(tmp_path / "a.wav", np.array([0.5, 0.25]), 48_000, subtype="FLOAT")
    assert read_audio(tmp_path / "a.wav", 48_000).tolist() == [0.5, 0.25]
    assert read_audio(tmp_path / "a.wav", 8_000).tolist() == [0.375]


def test_loud_samples_clip_and_minutes_of_ogg_are_written(tmp_path):
    write_audio(tmp_path / "a.wav", np.array([2.0, -2.0]), 8_000)
    np.testing.assert_allclose(read_audio(tmp_path / "a.wav", 8_000), [1, -1], atol=1e-4)
    write_audio(tmp_path / "a.ogg", tone(200, 8_000, seconds=300), 8_000)
    assert len(read_audio(tmp_path / "a.ogg", 8_000)) == 2_400_000


def missing(path):
    pass


def empty(path):
    path.write_bytes(b"")


def without_samples(path):
    soundfile.write(path, np.zeros(0, np.float32), 16_000, format="WAV")


def text(path):
    path.write_text("not audio at all\n" * 100)


def cut_short(path):
    soundfile.write(path, np.random.default_rng(0).uniform(-1, 1, 50_000), 16_000, format="FLAC")
    path.write_bytes(path.read_bytes()[:40_000])


def not_numbers(path):
    soundfile.write(path, np.array([0.0, np.nan], np.float32), 16_000, format="WAV", subtype="FLOAT")


@pytest.mark.parametrize("damage", [missing, empty, without_samples, text, cut_short, not_numbers, lambda p: p.mkdir()])
def test_unusable_files_are_told_in_one_line(tmp_path, damage):
    path = tmp_path / "song.wav"
    damage(path)
    with pytest.raises(InputError) as caught:
        read_audio(path, 16_000)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_format_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(InputError, match="no audio format"):
        write_audio(tmp_path / "a.song", np.zeros(10), 16_000)
    assert list(tmp_path.iterdir()) == []
