import numpy as np
import pytest

from megatron_music.documents import lyrics_to_song, reference, unconditional
from megatron_music.documents.tags import TagOptions, tag_text
from megatron_music.songs.song import Rejected, Song, split_tags

ANNEALING = ["vocal_gender", "vocal_timbre", "tempo_bpm"]


def _tags(genres, seed=0, extra=None, **options):
    return tag_text(Song("song", genres=genres, extra=extra or {}), np.random.default_rng(seed), TagOptions(**options))


def test_shuffled_tags_are_separated_by_spaces():
    assert _tags("folk, female,gentle") == "folk, female,gentle"
    orders = {_tags("folk, airy vocal,gentle", seed, tags="shuffled") for seed in range(100)}
    assert len(orders) == 6
    assert "folk airy vocal gentle" in orders
    assert sorted(_tags("a b  c", tags="shuffled").split(" ")) == ["a", "b", "c"]
    assert _tags("", tags="shuffled") == ""


def test_tags_are_told_apart_at_commas_or_spaces():
    assert split_tags("folk, airy vocal，gentle、 slow") == ["folk", "airy vocal", "gentle", "slow"]
    assert split_tags(" folk  gentle ") == ["folk", "gentle"]
    assert split_tags("") == []


def test_fields_follow_the_tags_in_their_order():
    extra = {"tempo_bpm": 119.6, "vocal_gender": "female", "vocal_timbre": ["airy vocal", " bright\nvocal "]}
    added = "female, airy vocal, bright vocal, 120 bpm"
    assert _tags("folk, slow", extra=extra) == "folk, slow"
    assert _tags("folk, slow", extra=extra, tag_fields=ANNEALING) == f"folk, slow, {added}"
    assert _tags("folk", extra=extra, tag_fields=ANNEALING) == f"folk, {added}"
    assert _tags("", extra=extra, tag_fields=ANNEALING) == added
    assert _tags("folk slow", extra=extra, tag_fields=ANNEALING) == "folk slow female airy vocal bright vocal 120 bpm"
    assert _tags("folk, slow", extra=extra, tag_fields=["tempo_bpm", "key", "vocal_gender"]) == (
        "folk, slow, 120 bpm, female"
    )
    shuffled = {_tags("folk, slow", seed, extra, tags="shuffled", tag_fields=ANNEALING) for seed in range(50)}
    assert shuffled == {f"{order} female airy vocal bright vocal 120 bpm" for order in ("folk slow", "slow folk")}


def test_a_field_may_lie_within_another():
    extra = {"tags": {"voice": {"gender": "female"}}}
    assert _tags("folk", extra=extra, tag_fields=["tags.voice.gender", "tags.voice.timbre"]) == "folk, female"


def test_a_tag_is_not_repeated():
    extra = {"vocal_gender": "Female", "vocal_timbre": ["airy", "airy", None, ""], "energy": 0.5}
    assert _tags("folk, female", extra=extra, tag_fields=["vocal_gender", "vocal_timbre", "energy"]) == (
        "folk, female, airy, 0.5"
    )


@pytest.mark.parametrize("value", [{"a": 1}, True, float("nan"), float("inf"), 10**400, [["airy"]]])
def test_what_is_no_tag_is_rejected(value):
    with pytest.raises(Rejected, match="wrong_type: vocal_timbre is"):
        _tags("folk", extra={"vocal_timbre": value}, tag_fields=["vocal_timbre"])


def test_half_a_surrogate_pair_is_rejected():
    with pytest.raises(Rejected, match="not_utf8: vocal_timbre"):
        _tags("folk", extra={"vocal_timbre": "\ud800"}, tag_fields=["vocal_timbre"])


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (lyrics_to_song, lyrics_to_song.LyricsOptions),
        (reference, reference.ReferenceOptions),
        (unconditional, unconditional.UnconditionalOptions),
    ],
)
def test_every_task_with_tags_has_the_fields(songs, context, task, options):
    song = songs.song(extra={"vocal_gender": "female voice"})
    made = options(tags="as_written", tag_fields=["vocal_gender"])
    (document,) = task.documents(song, context, np.random.default_rng(0), made)
    text = context.tokenizer.decode(document.ids)
    assert "[Genre] folk, female, gentle, guitar, female voice" in text
