"""Transcription with a Whisper of random weights, converted by CTranslate2 and loaded as a real one is."""

from types import SimpleNamespace

import numpy as np
import pytest
from faster_whisper.tokenizer import _LANGUAGE_CODES
from faster_whisper.transcribe import Segment, Word
from tiny_whisper import write_whisper

from megatron_music.audio.files import write_audio
from megatron_music.errors import InputError
from megatron_music.songs.annotators import load_annotator
from megatron_music.songs.annotators.transcribe import timed_words
from megatron_music.songs.song import Rejected, Song


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_whisper(tmp_path_factory.mktemp("whisper"))


def test_a_model_from_disk_hears_words_within_the_audio(weights, tmp_path):
    samples = np.random.default_rng(0).normal(0, 0.1, 16000 * 4).astype(np.float32)
    write_audio(tmp_path / "mix.wav", np.zeros(16000 * 4, np.float32), 16000)
    write_audio(tmp_path / "vocals.wav", samples, 16000)
    song = Song("a", audio={"mix": "mix.wav", "vocals": "vocals.wav"}, language="en", folder=tmp_path)
    annotator = load_annotator("transcribe", {"weights": weights, "beam": "1"})
    heard = annotator.annotate(song, tmp_path)
    assert heard.extra["transcript_language"] == "en"
    words = heard.extra["transcript"]
    assert words and all(0 <= start <= end <= 4.0 and isinstance(word, str) for start, end, word in words)
    assert annotator.annotate(song, tmp_path) == heard
    assert annotator.transcribe(samples[:8000], "xx")[1] in _LANGUAGE_CODES


def test_a_song_that_has_a_transcript_is_not_heard(weights, tmp_path):
    song = Song("a", extra={"transcript": []}, folder=tmp_path)
    assert load_annotator("transcribe", {"weights": weights}).annotate(song, tmp_path) == song
    with pytest.raises(Rejected, match="audio_missing"):
        load_annotator("transcribe", {"weights": weights, "overwrite": "true"}).annotate(song, tmp_path)


def test_words_of_segments():
    """As faster-whisper gives them: words with the space before them, times of numpy, sometimes past the end."""
    segment = dict(id=1, seek=0, start=0.0, end=2.0, text="", tokens=[], avg_logprob=-0.3, compression_ratio=1.0)
    segment |= dict(no_speech_prob=0.0, temperature=0.0)
    segments = [
        Segment(**segment, words=[Word(np.float64(0.104), 0.5, " Amazing", 0.9), Word(0.5, 0.9, " grace", 0.9)]),
        Segment(**segment, words=None),
        Segment(**segment, words=[Word(3.0, 12.0, "我", 0.5), Word(2.0, 1.0, "!", 0.5), Word(2.5, 2.6, "  ", 0.5)]),
        Segment(**segment, words=[Word(float("nan"), 1.0, "x", 0.5)]),
    ]
    assert timed_words(segments, 10.0) == [
        [0.1, 0.5, " Amazing"], [0.5, 0.9, " grace"], [2.0, 2.0, "!"], [3.0, 10.0, "我"]
    ]  # fmt: skip
    assert timed_words(iter(()), 10.0) == []


def test_a_model_that_fails_on_a_song_rejects_it(weights, tmp_path, monkeypatch):
    annotator = load_annotator("transcribe", {"weights": weights})

    def failing(samples, **options):
        def segments():
            raise RuntimeError("CUDA out of memory")
            yield

        return segments(), SimpleNamespace(language="en")

    monkeypatch.setattr(annotator.model, "transcribe", failing)
    with pytest.raises(Rejected, match="transcription_failed: CUDA out of memory"):
        annotator.transcribe(np.zeros(16000, np.float32))


def test_bad_weights_are_told_in_one_line(weights, tmp_path):
    with pytest.raises(InputError, match="needs weights .* weights=Systran/faster-whisper-large-v3"):
        load_annotator("transcribe")
    with pytest.raises(InputError, match="no such file or folder"):
        load_annotator("transcribe", {"weights": str(tmp_path / "nowhere")})
    with pytest.raises(InputError, match="has no model.bin; ct2-transformers-converter"):
        load_annotator("transcribe", {"weights": str(tmp_path)})
    for name in ("model.bin", "config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="can't be loaded by faster-whisper"):
        load_annotator("transcribe", {"weights": str(tmp_path)})
    with pytest.raises(InputError, match="language: 'xx' is not known to this model"):
        load_annotator("transcribe", {"weights": weights, "language": "xx"})
