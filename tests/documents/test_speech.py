import numpy as np
import pytest

from megatron_music.documents.speech import SpeechOptions, documents, pack
from megatron_music.songs.song import Rejected, Segment
from megatron_music.vocabulary.kinds import Kind

EOD, SOA, EOA, XCODEC = 32000, 32001, 32002, 32016


def _make(song, context, seed=0, **options):
    (document,) = documents(song, context, np.random.default_rng(seed), SpeechOptions(**options))
    return document


def _clips(songs, context, lengths, **options):
    """A clip of each of these lengths in frames, without its instruction."""
    options = {"instruction_dropout": 1.0, "code_rate_tolerance": None, **options}
    return [_make(songs.song(frames=frames, text="Hi"), context, **options) for frames in lengths]


def _packed(clips, context, context_tokens):
    return list(pack(iter(clips), context, SpeechOptions(context_tokens=context_tokens)))


@pytest.mark.parametrize("track", ["mix", "vocals"])
def test_a_clip_is_its_definition(songs, context, track):
    song = songs.song(frames=150, text="Good morning.")
    document = _make(song, context, instruction_dropout=0.0, track=track)
    codes = np.load(song.folder / f"{track}.npy")[0].tolist()
    text = context.tokenizer.encode("Generate speech: Good morning.")
    assert document.ids.tolist() == [*text, SOA, XCODEC, *(45334 + code for code in codes), EOA, EOD]
    kinds = [Kind.TEXT] * len(text) + [Kind.SPECIAL] * 2 + [Kind.SPEECH] * 150 + [Kind.SPECIAL] * 2
    assert document.kinds.tolist() == kinds
    assert document.seconds == 3.0


def test_the_instruction_is_dropped_half_of_the_time(songs, context):
    song = songs.song(frames=60, text="Good morning.")
    lengths = [len(_make(song, context, seed).ids) for seed in range(400)]
    with_it, without = max(lengths), min(lengths)
    assert with_it - without == len(context.tokenizer.encode("Generate speech: Good morning.")) - len(
        context.tokenizer.encode("Good morning.")
    )
    assert set(lengths) == {with_it, without}
    assert 160 < lengths.count(without) < 240
    assert {len(_make(song, context, seed, instruction_dropout=1.0).ids) for seed in range(20)} == {without}


def test_the_text_may_stand_in_segments(songs, context):
    segments = [Segment("[verse]\nGood morning.\n\n", 0, 50), Segment("Hello \n", 50, 100)]
    in_segments = _make(songs.song(frames=100, segments=segments), context)
    song = songs.song(frames=100, segments=segments, text="Good morning.\nHello")
    assert np.array_equal(in_segments.ids[: -100 - 2], _make(song, context).ids[: -100 - 2])


def test_rules(songs, context):
    with pytest.raises(Rejected, match="no_text"):
        _make(songs.song(text=" \n", segments=[Segment("[intro]\n\n", 0, 100)]), context)
    with pytest.raises(Rejected) as caught:
        _make(songs.song(text="Hi", duration_s=100.0), context)
    assert (caught.value.rule, caught.value.value) == ("code_rate", "30.00")


def test_clips_fill_the_context(songs, context):
    clips = _clips(songs, context, [100] * 10)
    tokens = len(clips[0].ids) - 1
    groups = _packed(clips, context, 3 * tokens + 1)
    assert [len(group) for group in groups] == [3, 3, 3, 1]
    for group in groups:
        ids = np.concatenate([member.ids for member in group])
        assert len(ids) == len(group) * tokens + 1
        assert (ids == EOD).sum() == 1 and ids[-1] == EOD
        assert all(len(member.ids) == len(member.kinds) for member in group)
    joined = [id for group in groups for member in group for id in member.ids.tolist() if id != EOD]
    assert joined == [id for clip in clips for id in clip.ids.tolist() if id != EOD]
    assert [len(group) for group in _packed(clips, context, 3 * tokens)] == [2] * 5


def test_only_a_long_clip_makes_a_long_document(songs, context):
    rng = np.random.default_rng(0)
    clips = _clips(songs, context, [*rng.integers(20, 400, 40), 900, 50])
    groups = _packed(clips, context, 600)
    assert [member.song_id for group in groups for member in group] == ["song"] * 42
    lengths = [sum(len(member.ids) for member in group) for group in groups]
    assert all(length <= 600 or len(group) == 1 for length, group in zip(lengths, groups, strict=True))
    assert max(lengths) > 900
    # What a document leaves free is less than its next clip would have needed.
    for length, following in zip(lengths, groups[1:], strict=False):
        first = following[0].ids
        assert length + len(first) - (first[-1] == EOD) > 600


def test_without_a_context_every_clip_is_alone(songs, context):
    clips = _clips(songs, context, [100, 50, 70])
    assert _packed(clips, context, None) == [[clip] for clip in clips]
    assert _packed([], context, 100) == []
