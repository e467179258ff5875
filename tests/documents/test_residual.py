from dataclasses import replace

import numpy as np
import pytest

from megatron_music.documents.residual import ResidualOptions, documents
from megatron_music.errors import InputError
from megatron_music.songs.song import Rejected
from megatron_music.vocabulary.grammar import ResidualGrammar
from megatron_music.vocabulary.kinds import CODEBOOK_KINDS, Kind

SOA, EOA, STAGE_1, STAGE_2, EOD = 32001, 32002, 32013, 32017, 32000


def _make(song, context, **options):
    return documents(song, context, np.random.default_rng(0), ResidualOptions(**options))


def _expected(codes_KT, starts, first):
    """The document written down from its definition, id by id."""
    ids = []
    for start in starts:
        frames = range(start, start + 300)
        ids += [SOA, STAGE_1, *(45334 + int(codes_KT[0, frame]) for frame in frames), STAGE_2]
        for frame in frames:
            ids += [45334 + 1024 * k + int(codes_KT[k, frame]) for k in range(first, 8)]
        ids.append(EOA)
    return [*ids, EOD]


@pytest.mark.parametrize(("repeat", "first"), [(True, 0), (False, 1)])
@pytest.mark.parametrize("codebooks", [8, 12])
def test_both_variants_are_their_definition(songs, context, repeat, first, codebooks):
    song = songs.song(frames=1000, codebooks=codebooks)
    (document,) = _make(song, context, tracks=["mix"], repeat_codebook_0=repeat)
    assert document.ids.dtype == np.int32
    assert document.ids.tolist() == _expected(np.load(song.folder / "mix.npy"), [0, 300, 600], first)


@pytest.mark.parametrize("repeat", [True, False])
def test_every_id_has_its_kind(songs, context, repeat):
    song = songs.song(frames=650)
    made = _make(song, context, repeat_codebook_0=repeat)
    for document, kind in zip(made, (Kind.MIX, Kind.VOCAL, Kind.ACCOMPANIMENT), strict=True):
        assert document.kinds.dtype == np.uint8 and len(document.kinds) == len(document.ids)
        frame = [kind, *CODEBOOK_KINDS] if repeat else [*CODEBOOK_KINDS]
        window = [Kind.SPECIAL] * 2 + [kind] * 300 + [Kind.SPECIAL] + frame * 300 + [Kind.SPECIAL]
        assert document.kinds.tolist() == window * 2 + [Kind.SPECIAL]
        assert (document.ids == EOD).sum() == 1


@pytest.mark.parametrize("first", [0, 1])
def test_second_parts_follow_the_grammar(songs, context, first):
    (document,) = _make(songs.song(frames=300), context, tracks=["vocals"], repeat_codebook_0=first == 0)
    grammar = ResidualGrammar(context.vocabulary, context.codec, codebooks=8, first_codebook=first)
    behind = document.ids[np.flatnonzero(document.ids == STAGE_2)[0] + 1 : -1]
    assert all(grammar.is_allowed(int(id), position) for position, id in enumerate(behind))


def test_windows_of_little_variety_are_dropped(songs, context):
    codes_KT = np.random.default_rng(0).integers(0, 1024, (8, 1200))
    codes_KT[0, 300:600] = np.arange(300) % 24
    codes_KT[0, 600:900] = np.arange(300) % 25
    song = songs.song(frames=1200, codes={"mix": codes_KT})
    (document,) = _make(song, context, tracks=["mix"])
    assert document.ids.tolist() == _expected(codes_KT, [0, 600, 900], 0)
    assert document.left_out == {"windows of fewer than 25 distinct codes": 1}
    (document,) = _make(song, context, tracks=["mix"], min_distinct_codes=24)
    assert document.ids.tolist() == _expected(codes_KT, [0, 300, 600, 900], 0)


def test_a_track_without_a_window_gives_no_document(songs, context):
    song = songs.song(frames=600, codes={"vocals": np.zeros((8, 600))})
    mix, accompaniment = _make(song, context)
    assert Kind.MIX in mix.kinds and Kind.ACCOMPANIMENT in accompaniment.kinds
    assert mix.left_out == {"windows of fewer than 25 distinct codes": 2} and accompaniment.left_out == {}
    with pytest.raises(Rejected, match="no_windows"):
        _make(song, context, tracks=["vocals"])
    with pytest.raises(Rejected, match="no_windows"):
        _make(songs.song(frames=299), context)


def test_options_reach_the_windows(songs, context):
    (document,) = _make(songs.song(frames=120), context, tracks=["mix"], window_s=1.0, codebooks=3)
    assert len(document.ids) == 2 * (2 + 50 + 1 + 150 + 1) + 1


def test_rules(songs, context):
    with pytest.raises(Rejected, match="codes_shape: mix has 1 codebooks, fewer than 8"):
        _make(songs.song(codebooks=1), context)
    with pytest.raises(Rejected, match="code_rate"):
        _make(songs.song(duration_s=100.0), context, code_rate_tolerance=1.0)
    assert _make(songs.song(duration_s=100.0), context)
    song = songs.song()
    del song.codes["vocals"]
    with pytest.raises(Rejected, match="codes_missing"):
        _make(song, context)


def test_a_codec_with_too_few_codebooks_is_told(songs, context):
    flat = replace(context, codec=context.vocabulary.codec("mert"))
    with pytest.raises(InputError, match="mert has 1"):
        _make(songs.song(), flat)
