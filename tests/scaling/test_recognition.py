"""Words after a codec beside those before, heard by a Whisper of random weights."""

import json

import jiwer
import numpy as np
import pytest
import yaml
from tiny_whisper import write_whisper

from megatron_music.audio.embedded import EmbeddedCodec
from megatron_music.audio.files import read_audio, write_audio
from megatron_music.evaluation.songs.lyrics_error import hear_words, load_recogniser
from megatron_music.scaling.bake_off import run_bake_off
from megatron_music.scaling.comparison import comparison_text
from megatron_music.scaling.recognition import Hearing, word_errors
from megatron_music.songs.alignment import normalised_words


def test_word_errors_by_hand():
    lyrics = "Are you going to Scarborough Fair,\nparsley and sage"
    # "oh" for "fair" and "gray" for "sage"; capitals and commas are no errors.
    assert word_errors(lyrics, ["are you going to scarborough oh", "parsley and gray"]) == {"errors": 2, "words": 9}
    # Two words too many, and one other.
    assert word_errors(lyrics, ["Are you going to Scarborough Fair", "oh oh parsley and gray"])["errors"] == 3
    assert word_errors(lyrics, [""]) == {"errors": 9, "words": 9}
    assert word_errors("...", ["la"]) == {"errors": 0, "words": 0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A song of noise with lyrics and a codec fitted on it."""
    folder = tmp_path_factory.mktemp("words")
    samples = (0.1 * np.random.default_rng(0).standard_normal(48_000)).astype(np.float32)
    write_audio(folder / "mix.wav", samples, 16_000, "FLOAT")
    EmbeddedCodec.fit([samples], 1, 8).save(folder / "codec")
    segments = [{"line_content": "[verse]\nla lo la\n\n", "codec_frame_start": 0, "codec_frame_end": 150}]
    song = {"id": "a", "audio": "mix.wav", "language": "en", "splitted_lyrics": {"segmented_lyrics": segments}}
    (folder / "songs.jsonl").write_text(json.dumps(song))
    content = {"songs": "songs.jsonl", "recogniser": {"weights": write_whisper(folder)},
               "codecs": {"tiny": {"codec": "embedded", "weights": "codec"}}}  # fmt: skip
    (folder / "codecs.yaml").write_text(yaml.safe_dump(content))
    return folder


def test_a_codec_is_heard_and_kept(place, monkeypatch):
    comparison = run_bake_off(place / "codecs.yaml", place / "out")
    recogniser = load_recogniser(yaml.safe_load((place / "codecs.yaml").read_text())["recogniser"]["weights"])
    samples, codec = read_audio(place / "mix.wav", 16_000), EmbeddedCodec.load(place / "codec")
    expected = {}
    for when, audio in (("before", samples), ("after", codec.decode(codec.encode(samples)))):
        heard = " ".join(normalised_words(" ".join(hear_words(recogniser, audio, "en"))))
        found = jiwer.process_words("la lo la", heard)
        expected[when] = {"errors": found.substitutions + found.deletions + found.insertions, "words": 3}
    (row,) = comparison["codecs"]["tiny"]["songs"]
    assert row["words"] == expected
    mix = comparison["codecs"]["tiny"]["tracks"]["mix"]
    assert mix["word_error_before"] == expected["before"]["errors"] / 3
    assert mix["word_error_after"] == expected["after"]["errors"] / 3
    assert [one["measure"] for one in comparison["missing"]] == ["loss and invalid tokens"]
    added = mix["word_error_after"] - mix["word_error_before"]
    assert f"{mix['word_error_before']:.1%}" in comparison_text(comparison) and f"{added:+.1%}" in comparison_text(
        comparison
    )

    def never(*_):
        raise AssertionError("heard again")

    monkeypatch.setattr(Hearing, "words", never)
    assert run_bake_off(place / "codecs.yaml", place / "out") == comparison
    # A recogniser that is told another language hears other words.
    before = (place / "songs.jsonl").read_text()
    (place / "songs.jsonl").write_text(json.dumps(json.loads(before) | {"language": "de"}))
    with pytest.raises(AssertionError, match="heard again"):
        run_bake_off(place / "codecs.yaml", place / "out")
    (place / "songs.jsonl").write_text(before)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seconds": 1}, "where in the lyrics the first seconds of a song end is not known"),
        ({"recogniser": None}, "no recogniser is named"),
    ],
)
def test_what_keeps_words_from_being_counted_is_told(place, change, why):
    content = yaml.safe_load((place / "codecs.yaml").read_text()) | change
    (place / "other.yaml").write_text(yaml.safe_dump(content))
    comparison = run_bake_off(place / "other.yaml", place / "other")
    assert comparison["missing"][0] | {"how": ""} == {"measure": "word errors", "why": why, "how": ""}
    assert "word_error_after" not in comparison["codecs"]["tiny"]["tracks"]["mix"]
