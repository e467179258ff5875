import numpy as np
import pytest

from megatron_music.vocabulary.grammar import AudioGrammar, ResidualGrammar
from megatron_music.vocabulary.kinds import Kind
from megatron_music.vocabulary.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def yue(repository) -> Vocabulary:
    return Vocabulary.load(repository / "tokenizers" / "yue.yaml")


CODEBOOK_0, END = range(45334, 46358), range(32002, 32003)


def test_a_single_track_may_end_behind_any_frame(yue):
    grammar = AudioGrammar(yue, tracks=1)
    assert grammar.allowed(0) == [CODEBOOK_0]
    assert grammar.allowed(1) == grammar.allowed(2) == [CODEBOOK_0, END]


def test_two_tracks_may_end_behind_whole_frames_only(yue):
    grammar = AudioGrammar(yue, yue.codec(), tracks=2)
    assert [END in grammar.allowed(position) for position in range(6)] == [False, False, True, False, True, False]


def test_a_span_is_taken_apart_into_its_tracks(yue):
    span = [45334 + code for code in (5, 6, 7, 8, 9)]
    tracks = AudioGrammar(yue, tracks=2).tracks(span)
    assert {kind: codes.tolist() for kind, codes in tracks.items()} == {Kind.VOCAL: [5, 7], Kind.ACCOMPANIMENT: [6, 8]}
    assert AudioGrammar(yue, tracks=1).tracks(np.array(span))[Kind.MIX].tolist() == [5, 6, 7, 8, 9]
    assert [len(codes) for codes in AudioGrammar(yue).tracks([]).values()] == [0, 0]
    with pytest.raises(ValueError, match="are not all codes of xcodec codebook 0"):
        AudioGrammar(yue).tracks([45334, 46358])


def test_the_second_part_of_stage_2_goes_through_the_codebooks(yue):
    grammar = ResidualGrammar(yue, "xcodec", codebooks=8)
    assert [grammar.allowed(position)[0] for position in range(9)] == [
        yue.codec().codebook_ids(position % 8) for position in range(9)
    ]
    assert [END in grammar.allowed(position) for position in (0, 7, 8, 9, 16)] == [False, False, True, False, True]
    without_first = ResidualGrammar(yue, "xcodec", codebooks=8, first_codebook=1)
    assert without_first.allowed(0) == [yue.codec().codebook_ids(1)]
    assert without_first.allowed(7) == [yue.codec().codebook_ids(1), END]


@pytest.mark.parametrize("make", [lambda v: AudioGrammar(v, tracks=2), lambda v: ResidualGrammar(v, codebooks=4)])
def test_masks_are_the_allowed_ids(yue, make):
    grammar = make(yue)
    for position in [*range(12), 1001, 40000]:
        mask = grammar.mask(position)
        assert mask.shape == (yue.padded_size,)
        assert np.flatnonzero(mask).tolist() == sorted(id for ids in grammar.allowed(position) for id in ids)
        assert all(grammar.is_allowed(int(id), position) for id in np.flatnonzero(mask)[[0, -1]])
    assert not grammar.is_allowed(0, 0)


def test_the_position_in_an_open_span(yue):
    grammar = AudioGrammar(yue, tracks=2)
    text, start, marker, end = [518, 13], 32001, 32016, 32002
    assert grammar.position([*text, start, marker]) == 0
    assert grammar.position([*text, start, marker, 45334, 45335, end, *text, start, marker, 45334]) == 1
    for closed in (text, [start, marker, 45334, end], [start], [start, 32013, 45334]):
        assert grammar.position(closed) is None


def test_impossible_spans_are_refused(yue):
    with pytest.raises(ValueError, match="1 or 2 tracks"):
        AudioGrammar(yue, tracks=3)
    with pytest.raises(ValueError, match="not the second part"):
        ResidualGrammar(yue, codebooks=1, first_codebook=1)
    for ask in (AudioGrammar(yue).allowed, AudioGrammar(yue).mask):
        with pytest.raises(ValueError, match="before the span"):
            ask(-1)
