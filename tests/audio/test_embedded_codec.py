import json

import numpy as np
import pytest

from megatron_music.audio.codec import Codec, load_codec
from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.audio.files import read_audio
from megatron_music.audio.spectrum import ShortTimeSpectrum, mel_filters
from megatron_music.errors import InputError


def mel_distance_db(samples: np.ndarray, other: np.ndarray) -> float:
    """Root mean square difference of log-mel spectra; another analysis than the codec's own."""
    length = min(len(samples), len(other))
    spectrum, filters_MF = ShortTimeSpectrum(800, 200), mel_filters(64, 800, 16_000)
    levels = [20 * np.log10(np.abs(spectrum(x[:length])) @ filters_MF.T + 1e-4) for x in (samples, other)]
    return float(np.sqrt(((levels[0] - levels[1]) ** 2).mean()))


def peak_hz(samples: np.ndarray) -> float:
    return np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 8 * len(samples))).argmax() * 2_000 / len(samples)


@pytest.fixture(scope="module")
def codec(sing) -> EmbeddedCodec:
    return EmbeddedCodec.fit((sing(20, seed) for seed in range(3)), codebooks=8, codebook_size=64, seed=1)


def test_codes_have_the_promised_form(codec, sing):
    assert isinstance(codec, Codec)
    assert (codec.name, codec.sample_rate, codec.frames_per_second) == ("embedded", 16_000, 50)
    assert (codec.codebooks, codec.codebook_size) == (8, 64)
    samples = sing(3, 9)[:-7]
    codes_KT = codec.encode(samples)
    assert codes_KT.dtype == np.int16 and codes_KT.shape == (8, 150)
    assert 0 <= codes_KT.min() and codes_KT.max() < 64
    decoded = codec.decode(codes_KT)
    assert decoded.dtype == np.float32 and decoded.shape == (48_000,)
    np.testing.assert_array_equal(decoded, codec.decode(codes_KT))


def test_each_further_codebook_lowers_the_error(codec, sing):
    samples = sing(10, 9)
    codes_KT = codec.encode(samples)
    errors = [mel_distance_db(samples, codec.decode(codes_KT[:kept])) for kept in range(1, 9)]
    assert (np.diff(errors) < 0).all(), errors
    assert errors[-1] < 0.75 * errors[0]


def test_each_further_codebook_lowers_the_error_of_a_real_song(yue_data):
    song = read_audio(yue_data / "yue.mp3", 16_000)
    codec = EmbeddedCodec.fit([song], codebooks=8, codebook_size=256)
    codes_KT = codec.encode(song)
    assert len(np.unique(codes_KT[0])) >= 200
    excerpt, codes_KT = song[: 20 * 16_000], codes_KT[:, : 20 * 50]
    errors = [mel_distance_db(excerpt, codec.decode(codes_KT[:kept])) for kept in range(1, 9)]
    assert (np.diff(errors) < 0).all(), errors
    assert errors[-1] < 0.6 * errors[0]


def test_almost_every_code_is_in_use(codec, sing):
    codes_KT = np.concatenate([codec.encode(sing(20, seed)) for seed in range(3)], axis=1)
    assert [len(np.unique(codes_T)) >= 56 for codes_T in codes_KT] == [True] * 8


def test_the_first_codebook_changes_less_often_than_the_nearest_code_would(codec, sing):
    samples = sing(20, 9)
    hasty = EmbeddedCodec(codec.codebooks_KCM, change_cost=0.0)
    changes = [np.count_nonzero(np.diff(c.encode(samples)[0])) for c in (codec, hasty)]
    assert changes[0] < changes[1]


def test_a_tone_keeps_its_pitch_and_loudness(sing):
    times = np.arange(32_000) / 16_000
    pitches_hz = [110, 220, 330, 440, 660, 880]
    tones = [(0.3 * np.sin(2 * np.pi * pitch * times)).astype(np.float32) for pitch in pitches_hz]
    codec = EmbeddedCodec.fit([sing(20, 0), *tones], codebooks=4, codebook_size=128)
    for pitch, tone in zip(pitches_hz, tones, strict=True):
        decoded = codec.decode(codec.encode(tone))
        assert abs(12 * np.log2(peak_hz(decoded) / pitch)) < 0.5, "semitones"
        level_db = 10 * np.log10((decoded[2000:-2000] ** 2).mean() / (tone[2000:-2000] ** 2).mean())
        assert abs(level_db) < 3


def test_silence_stays_silent(codec):
    codes_KT = codec.encode(np.zeros(16_000, np.float32))
    np.testing.assert_array_equal(codes_KT, np.zeros((8, 50), np.int16))
    assert np.abs(codec.decode(codes_KT)).max() < 1e-6


def test_rests_between_notes_stay_quiet(codec, sing):
    samples = sing(6, 9)
    samples[32_000:64_000] = 0
    decoded = codec.decode(codec.encode(samples))
    assert np.abs(decoded[36_000:60_000]).max() < 1e-3


@pytest.mark.parametrize(("samples", "frames"), [(0, 0), (1, 1), (2, 1), (320, 1), (321, 2)])
def test_very_short_audio(codec, samples, frames):
    codes_KT = codec.encode(np.full(samples, 0.1, np.float32))
    assert codes_KT.shape == (8, frames)
    assert codec.decode(codes_KT).shape == (frames * 320,)


def test_codes_that_never_stood_together_stay_within_bounds(codec):
    codes_KT = np.random.default_rng(0).integers(0, 64, (8, 200))
    decoded = codec.decode(codes_KT)
    assert np.isfinite(decoded).all() and np.abs(decoded).max() < 50


@pytest.mark.parametrize("codes_KT", [np.zeros((9, 4), int), np.zeros(4, int), [[64]], [[-1]], np.zeros((0, 4), int)])
def test_other_codes_are_refused(codec, codes_KT):
    with pytest.raises(ValueError, match="codes"):
        codec.decode(codes_KT)


def test_the_seed_decides(sing):
    def fit(seed):
        return EmbeddedCodec.fit([sing(5, 0)], codebooks=2, codebook_size=16, seed=seed).codebooks_KCM

    np.testing.assert_array_equal(fit(3), fit(3))
    assert (fit(3) != fit(4)).any()


def test_frames_beyond_the_limit_are_drawn_from_all_waveforms(sing, monkeypatch):
    monkeypatch.setattr("megatron_music.audio.embedded.MAX_FIT_FRAMES", 300)
    low, high = (np.sin(2 * np.pi * f * np.arange(160_000) / 16_000).astype(np.float32) for f in (200, 3000))
    codec = EmbeddedCodec.fit([low, high], codebooks=1, codebook_size=8)
    assert len(np.unique(codec.encode(low)[0, 5:-5])) == len(np.unique(codec.encode(high)[0, 5:-5])) == 1
    assert codec.encode(low)[0, 100] != codec.encode(high)[0, 100]


@pytest.mark.parametrize(
    ("waveforms", "options"),
    [
        ([np.zeros(160_000, np.float32)], {}),
        ([np.ones(640, np.float32)], {"codebook_size": 16}),
        ([], {}),
        ([], {"codebooks": 9}),
        ([], {"codebook_size": 1025}),
    ],
)
def test_what_cannot_be_fitted_is_told(waveforms, options):
    with pytest.raises(InputError, match="embedded codec"):
        EmbeddedCodec.fit(waveforms, **options)


def test_a_saved_codec_gives_the_same_codes(codec, sing, tmp_path):
    codec.save(tmp_path / "codec")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codec"]
    samples = sing(3, 9)
    loaded = load_codec("embedded", tmp_path / "codec")
    np.testing.assert_array_equal(loaded.encode(samples), codec.encode(samples))
    fewer = load_codec("embedded", tmp_path / "codec", codebooks=3)
    np.testing.assert_array_equal(fewer.encode(samples), codec.encode(samples)[:3])
    with pytest.raises(InputError, match="has 8 codebooks"):
        load_codec("embedded", tmp_path / "codec", codebooks=9)


def remove_description(folder):
    (folder / "codec.json").unlink()


def remove_tensors(folder):
    (folder / "codebooks.safetensors").unlink()


def truncate_tensors(folder):
    path = folder / "codebooks.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(folder):
    path = folder / "codebooks.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def edit(field, value):
    def damage(folder):
        description = json.loads((folder / "codec.json").read_text())
        description[field] = value
        (folder / "codec.json").write_text(json.dumps(description))

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        remove_description,
        remove_tensors,
        truncate_tensors,
        flip_a_bit,
        edit("codebooks", 7),
        edit("change_cost", None),
        edit("mel_bands", 80),
        lambda folder: (folder / "codec.json").write_text("[]"),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(codec, tmp_path, damage):
    codec.save(tmp_path / "codec")
    damage(tmp_path / "codec")
    with pytest.raises(InputError) as caught:
        EmbeddedCodec.load(tmp_path / "codec")
    assert str(tmp_path / "codec") in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("mp3", None, "name one of embedded, xcodec, encodec, dac"),
        ("embedded", None, "--weights"),
        ("xcodec", None, "--weights"),
        ("dac", None, "--weights"),
        ("embedded", "no/such/folder", "no such folder"),
    ],
)
def test_what_cannot_be_loaded_names_the_mend(name, weights, message):
    with pytest.raises(InputError, match=message):
        load_codec(name, weights)
