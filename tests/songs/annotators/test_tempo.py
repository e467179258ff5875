import numpy as np
import pytest

from megatron_music.audio.files import write_audio
from megatron_music.songs.annotators import load_annotator
from megatron_music.songs.annotators.tempo import SAMPLE_RATE, tempo_bpm
from megatron_music.songs.song import Song


def _clicks(bpm: float, seconds: float, noise: float = 0.0) -> np.ndarray:
    """Decaying bursts of noise, one a beat, every fourth louder."""
    generator = np.random.default_rng(0)
    samples = (
        generator.normal(0, noise, round(seconds * SAMPLE_RATE)) if noise else np.zeros(round(seconds * SAMPLE_RATE))
    )
    burst = generator.normal(0, 0.2, 1600) * np.exp(-np.arange(1600) / 300)
    for beat in range(int(seconds * bpm / 60)):
        at = round(beat * 60 / bpm * SAMPLE_RATE)
        piece = samples[at : at + len(burst)]
        piece += burst[: len(piece)] * (1.5 if beat % 4 == 0 else 1.0)
    return samples.astype(np.float32)


@pytest.mark.parametrize("bpm", [60.0, 72.5, 90.0, 100.0, 119.3, 128.0, 140.0, 160.0])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_tempo_of_clicks(bpm, noise):
    assert tempo_bpm(_clicks(bpm, 40.0, noise)) == pytest.approx(bpm, abs=0.2)


def test_above_170_half_of_the_tempo_is_found():
    assert tempo_bpm(_clicks(190.0, 40.0)) == pytest.approx(95.0, abs=0.2)


@pytest.mark.parametrize(
    "samples",
    [
        np.zeros(10 * SAMPLE_RATE, np.float32),
        _clicks(120.0, 3.0),
        np.sin(np.arange(20 * SAMPLE_RATE) / 20).astype(np.float32),
    ],
)
def test_no_tempo_where_there_is_no_beat(samples):
    assert tempo_bpm(samples) is None


def test_the_field_of_a_song(tmp_path):
    write_audio(tmp_path / "a.wav", _clicks(100.0, 20.0), SAMPLE_RATE)
    song = Song("a", audio={"mix": "a.wav"}, folder=tmp_path)
    assert load_annotator("tempo").annotate(song, tmp_path).extra == {"tempo_bpm": 100.0}
    known = Song("a", audio={"mix": "a.wav"}, folder=tmp_path, extra={"tempo_bpm": 50})
    assert load_annotator("tempo").annotate(known, tmp_path) == known
    assert load_annotator("tempo", {"overwrite": "true"}).annotate(known, tmp_path).extra == {"tempo_bpm": 100.0}
