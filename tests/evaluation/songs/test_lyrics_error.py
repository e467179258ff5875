"""Error rates against jiwer on known texts, and a Whisper of random weights that really hears."""

import sys

import jiwer
import numpy as np
import pytest
from tiny_whisper import write_whisper

from megatron_music.errors import InputError
from megatron_music.evaluation.songs.lyrics_error import hear_words, load_recogniser, lyrics_error
from megatron_music.songs.alignment import normalised_words

LYRICS = "Staring at the sunset,\ncolors paint the sky.\nThoughts of you keep swirling;\nI can't deny"


def test_words_as_they_were_written_have_no_errors():
    found = lyrics_error(
        LYRICS, ["staring at the SUNSET colors", "paint the sky thoughts of you keep swirling I cant deny!"]
    )
    assert (found.word_error, found.character_error) == (0.0, 0.0)
    assert found.windows == [
        {"start": 0.0, "end": 30.0, "words": 5, "errors": 0},
        {"start": 30.0, "end": 60.0, "words": 11, "errors": 0},
    ]


def test_rates_are_jiwers_and_errors_fall_into_their_windows():
    heard = ["staring at a sunset", "colors paint the blue sky thoughts", "of keep swirling"]
    found = lyrics_error(LYRICS, heard)
    reference, words = " ".join(normalised_words(LYRICS)), " ".join(heard)
    assert found.word_error == 100 * jiwer.wer(reference, words) == 100 * 6 / 16
    assert found.character_error == 100 * jiwer.cer(reference, words)
    # A substitution; an insertion; and `you` and the three words that were never heard.
    assert [(window["words"], window["errors"]) for window in found.windows] == [(4, 1), (5, 1), (7, 4)]


def test_silence_instead_of_lyrics_and_words_instead_of_silence():
    nothing = lyrics_error("one two", ["", ""])
    assert (nothing.word_error, nothing.character_error) == (100.0, 100.0)
    assert nothing.windows[0] | {"errors": 2, "words": 2} == nothing.windows[0]
    assert lyrics_error("one", ["one two three"]).word_error == 200.0
    assert lyrics_error("...\n", ["one"]) is None


def test_signs_count_one_by_one_where_no_spaces_are_written():
    found = lyrics_error("好一朵美丽的茉莉花", ["好一朵美丽", "的末莉花"])
    assert found.word_error == pytest.approx(100 / 9)
    assert [window["errors"] for window in found.windows] == [0, 1]


def test_a_whisper_from_disk_hears_30_s_at_a_time(tmp_path):
    recogniser = load_recogniser(write_whisper(tmp_path))
    samples = np.random.default_rng(0).normal(0, 0.1, 61 * 16_000).astype(np.float32)
    samples[30 * 16_000 : 60 * 16_000] = 0
    heard = hear_words(recogniser, samples, "en")
    assert len(heard) == 3 and heard[0] and not heard[1]
    assert heard[2] == recogniser.hear(samples[60 * 16_000 :], "en").strip()
    assert lyrics_error(LYRICS, heard).word_error > 50


def test_a_recogniser_that_is_not_there_is_told(monkeypatch, tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        load_recogniser(str(tmp_path / "nowhere"))
    monkeypatch.setitem(sys.modules, "nemo", None)
    for name in ("nvidia/parakeet-tdt-0.6b-v3", "a.nemo"):
        with pytest.raises(InputError, match=r"needs nemo-toolkit .*; pip install 'megatron-music\[nemo\]'"):
            load_recogniser(name)
