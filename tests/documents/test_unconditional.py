import numpy as np
import pytest

from megatron_music.documents.unconditional import UnconditionalOptions, documents
from megatron_music.songs.song import Rejected
from megatron_music.vocabulary.kinds import Kind


def _make(song, context, **options):
    (document,) = documents(song, context, np.random.default_rng(0), UnconditionalOptions(**options))
    return document


def _split(document):
    start, end = np.flatnonzero(document.ids == 32001)[0], np.flatnonzero(document.ids == 32002)[0]
    assert document.ids[start + 1] == 32016
    assert document.ids[end:].tolist() == [32002, 32000]
    return document.ids[:start].tolist(), document.ids[start + 2 : end], document.kinds[start + 2 : end]


def test_a_mix(songs, context):
    song = songs.song(genres="folk", segments=[])
    text, ids, kinds = _split(_make(song, context))
    assert text == context.tokenizer.encode("Generate music based on the given tags\n[Genre] folk")
    assert np.array_equal(ids, np.load(song.folder / "mix.npy")[0] + 45334)
    assert set(kinds) == {Kind.MIX}


def test_two_tracks(songs, context):
    song = songs.song(genres="folk", segments=[])
    text, ids, kinds = _split(_make(song, context, tracks="dual"))
    assert text == context.tokenizer.encode("Generate music in dual-track format based on the given tags\n[Genre] folk")
    assert np.array_equal(ids[0::2], np.load(song.folder / "vocals.npy")[0] + 45334)
    assert np.array_equal(ids[1::2], np.load(song.folder / "accompaniment.npy")[0] + 45334)
    assert kinds.tolist() == [Kind.VOCAL, Kind.ACCOMPANIMENT] * 3000


def test_tags_are_shuffled_by_default(songs, context):
    song = songs.song()
    text, _, _ = _split(_make(song, context))
    tags = context.tokenizer.decode(text).split("[Genre] ")[1]
    assert sorted(tags.split()) == ["female", "folk", "gentle", "guitar"]
    text, _, _ = _split(_make(song, context, tags="as_written", instruction="Play"))
    assert context.tokenizer.decode(text) == "Play\n[Genre] folk, female, gentle, guitar"


def test_rules(songs, context):
    with pytest.raises(Rejected, match="code_rate"):
        _make(songs.song(duration_s=100.0), context)
    song = songs.song()
    del song.codes["mix"]
    with pytest.raises(Rejected, match="codes_missing: the song names no mix codes"):
        _make(song, context)
    assert _make(song, context, tracks="dual")
