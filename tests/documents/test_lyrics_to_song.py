import hashlib
from dataclasses import replace

import numpy as np
import pytest

from megatron_music.documents.document import DocumentContext
from megatron_music.documents.lyrics_to_song import INSTRUCTION, LyricsOptions, documents
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.song import Rejected, Segment
from megatron_music.vocabulary.grammar import AudioGrammar
from megatron_music.vocabulary.kinds import Kind
from megatron_music.vocabulary.text import TextTokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

EOD, SOA, EOA, XCODEC = 32000, 32001, 32002, 32016


def _make(song, context, seed=0, **options):
    return documents(song, context, np.random.default_rng(seed), LyricsOptions(**options))


def _expected(song, context, spans, header=True, texts=None):
    """The document written down from its definition, id by id, with plain lists."""
    encode = context.tokenizer.encode
    vocals = np.load(song.folder / song.codes["vocals"])[0].tolist()
    accompaniment = np.load(song.folder / song.codes["accompaniment"])[0].tolist()
    texts = texts or [segment.text for segment in song.segments]
    ids = encode(f"{INSTRUCTION}\n[Genre] {song.genres}\n" + "\n".join(texts)) if header else []
    for text, (start, end) in spans:
        ids += encode("[start_of_segment]") if header else []
        ids += encode(text) + [SOA, XCODEC]
        for vocal, other in zip(vocals[start:end], accompaniment[start:end], strict=True):
            ids += [45334 + vocal, 45334 + other]
        ids += [EOA] + (encode("[end_of_segment]") if header else [])
    return [*ids, EOD]


def test_the_known_digest(repository, yue_data):
    vocabulary = Vocabulary.load(repository / "tokenizers" / "yue.yaml")
    context = DocumentContext(vocabulary, TextTokenizer(yue_data / "tokenizer.model", vocabulary), vocabulary.codec())
    made = [document for song in read_manifest(yue_data / "songs.jsonl") for document in _make(song, context)]
    ids = np.concatenate([document.ids for document in made])
    assert (len(made), len(ids), ids.dtype) == (4, 34652, np.int32)
    digest = hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()
    assert digest == "d5828fa906ef87aec8586fb98098dc208004ca193d7a80062886996a79d02c18"


def test_a_document_is_its_definition(songs, context):
    song = songs.song()
    (document,) = _make(song, context)
    first, second = song.segments
    assert document.song_id == "song"
    assert document.ids.tolist() == _expected(song, context, [(first.text, (0, 1000)), (second.text, (1000, 3000))])


def test_every_id_has_its_kind(songs, context):
    (document,) = _make(songs.song(genres="folk <EOA> song"), context)
    ids, kinds = document.ids, document.kinds
    assert kinds.dtype == np.uint8 and len(kinds) == len(ids)
    assert np.array_equal(kinds == Kind.TEXT, ids < 32000)
    assert np.array_equal(kinds == Kind.SPECIAL, (ids >= 32000) & (ids < 32022))
    audio = kinds[ids >= 45334]
    assert audio.tolist() == [Kind.VOCAL, Kind.ACCOMPANIMENT] * 3000


def test_spans_follow_the_grammar(songs, context):
    grammar = AudioGrammar(context.vocabulary, context.codec, tracks=2)
    (document,) = _make(songs.song(frames=400), context)
    for index, id in enumerate(document.ids):
        position = grammar.position(document.ids[:index])
        assert position is None or grammar.is_allowed(int(id), position)


def test_the_form_without_a_header(songs, context):
    song = songs.song()
    (document,) = _make(song, context, header=False)
    texts = [f"{INSTRUCTION}\n{segment.text}" for segment in song.segments]
    spans = list(zip(texts, [(0, 1000), (1000, 3000)], strict=True))
    assert document.ids.tolist() == _expected(song, context, spans, header=False)


def test_prepended_lyrics_stand_in_the_header_alone(songs, context):
    song = songs.song()
    song.segments = [Segment("[verse]\nla\n\n", 10, 900), Segment("[outro]\n\n", 900, 910),
                     Segment("[chorus]\nlo\n\n", 1000, 3000)]  # fmt: skip
    (document,) = _make(song, context, lyrics="prepended")
    encode = context.tokenizer.encode
    vocals, others = (np.load(song.folder / song.codes[track])[0] for track in ("vocals", "accompaniment"))
    expected = encode(f"{INSTRUCTION}\n[Genre] {song.genres}\n[verse]\nla\n\n\n[outro]\n\n\n[chorus]\nlo\n\n")
    expected += [SOA, XCODEC]
    for frame in [*range(10, 900), *range(1000, 3000)]:
        expected += [45334 + vocals[frame], 45334 + others[frame]]
    assert document.ids.tolist() == [*expected, EOA, EOD]
    (by_segment,) = _make(song, context)
    is_audio = by_segment.ids >= 45334
    assert document.ids[document.ids >= 45334].tolist() == by_segment.ids[is_audio].tolist()
    assert document.kinds[document.ids >= 45334].tolist() == by_segment.kinds[is_audio].tolist()
    assert document.seconds == by_segment.seconds == 2890 / 50


def test_the_mix_in_place_of_two_tracks(songs, context):
    song = songs.song()
    (document,) = _make(song, context, tracks="mix")
    encode, mix = context.tokenizer.encode, np.load(song.folder / song.codes["mix"])[0]
    first, second = (segment.text for segment in song.segments)
    expected = encode(f"{INSTRUCTION}\n[Genre] {song.genres}\n{first}\n{second}")
    for text, span in ((first, slice(0, 1000)), (second, slice(1000, 3000))):
        expected += [*encode("[start_of_segment]"), *encode(text), SOA, XCODEC]
        expected += [*(45334 + mix[span]), EOA, *encode("[end_of_segment]")]
    assert document.ids.tolist() == [*expected, EOD]
    assert set(document.kinds[document.ids >= 45334].tolist()) == {Kind.MIX}
    assert document.seconds == 60


def test_lyrics_that_would_stand_nowhere_are_refused():
    with pytest.raises(ValueError, match="lyrics: prepended without a header leaves no lyrics"):
        LyricsOptions(lyrics="prepended", header=False)


def test_instructions_are_dropped_at_their_rate(songs, context):
    song = songs.song(frames=300)
    song.segments = [Segment("[verse]\nla\n\n", 0, 60)] * 400
    marks = context.tokenizer.encode("Generate")
    lengths = [len(_make(song, context, header=False, instruction_dropout=rate)[0].ids) for rate in (0.0, 0.5, 1.0)]
    assert lengths[0] > lengths[1] > lengths[2]
    assert abs(lengths[1] - (lengths[0] + lengths[2]) / 2) < 0.15 * (lengths[0] - lengths[2])
    assert not np.isin(_make(song, context, header=False, instruction_dropout=1.0)[0].ids, marks[:1]).any()


def test_the_same_seed_gives_the_same_document(songs, context):
    song = songs.song()
    first, second, other = (_make(song, context, seed=seed, tags="shuffled")[0].ids.tolist() for seed in (1, 1, 3))
    assert first == second != other


def test_tracks_are_trimmed_to_the_shorter_one(songs, context):
    longer = np.random.default_rng(1).integers(0, 1024, (8, 3010))
    song = songs.song(codes={"vocals": longer})
    (document,) = _make(song, context)
    first, second = song.segments
    assert document.ids.tolist() == _expected(song, context, [(first.text, (0, 1000)), (second.text, (1000, 3000))])


@pytest.mark.parametrize("track", ["vocals", "accompaniment"])
def test_tracks_of_different_length_are_rejected(songs, context, track):
    longer = np.zeros((8, 3011), dtype=np.int16)
    with pytest.raises(Rejected, match="length_difference: vocals and accompaniment have"):
        _make(songs.song(codes={track: longer}), context)
    assert _make(songs.song(codes={track: longer}), context, max_length_difference_frames=11)


def test_a_segment_that_ends_in_what_was_trimmed(songs, context):
    longer = np.random.default_rng(1).integers(0, 1024, (8, 3004))
    song = songs.song(codes={"vocals": longer})
    first, second = song.segments
    second.end_frame = 3004
    (dropped,) = _make(song, context)
    assert dropped.ids.tolist() == _expected(song, context, [(first.text, (0, 1000))])
    (clipped,) = _make(song, context, overhang="clip")
    assert clipped.ids.tolist() == _expected(song, context, [(first.text, (0, 1000)), (second.text, (1000, 3000))])


def test_a_segment_far_behind_the_codes(songs, context):
    song = songs.song()
    first, second = song.segments
    second.end_frame = 10**30
    (dropped,) = _make(song, context)
    assert dropped.ids.tolist() == _expected(song, context, [(first.text, (0, 1000))])
    second.end_frame = 3011
    assert _make(song, context, max_overhang_frames=11)
    with pytest.raises(Rejected, match="segment_frames: segment 1 ends at frame 3011, the tracks have 3000"):
        _make(song, context, max_overhang_frames=10)


def test_short_segments_keep_their_text_in_the_header(songs, context):
    song = songs.song()
    song.segments = [Segment("[intro]\n\n", 0, 49), Segment("[verse]\nla\n\n", 49, 99), Segment("[outro]\n\n", 99, 99)]
    (document,) = _make(song, context)
    assert document.ids.tolist() == _expected(song, context, [("[verse]\nla\n\n", (49, 99))])


def test_lyrics_may_be_empty(songs, context):
    song = songs.song()
    song.segments = [Segment("", 0, 3000)]
    (document,) = _make(song, context)
    assert document.ids.tolist() == _expected(song, context, [("", (0, 3000))], texts=[""])


@pytest.mark.parametrize(
    ("changes", "options", "rule"),
    [
        ({"segments": []}, {}, "no_segments"),
        ({"segments": [Segment("la", 0, 20)]}, {}, "no_segments"),
        ({"segments": [Segment("la", 0, 3011)]}, {}, "no_segments"),
        ({"segments": [Segment("la", 0, 3011)]}, {"max_overhang_frames": 10}, "segment_frames"),
        ({"duration_s": 3000 / 51.1}, {}, "code_rate"),
        ({"duration_s": 3000 / 48.9}, {}, "code_rate"),
        ({"duration_s": None}, {}, "code_rate"),
        ({}, {"min_lyric_lines": 3}, "few_lyrics"),
    ],
)
def test_rules(songs, context, changes, options, rule):
    with pytest.raises(Rejected) as caught:
        _make(songs.song(**changes), context, **options)
    assert caught.value.rule == rule


def test_rules_are_options(songs, context):
    assert _make(songs.song(duration_s=3000 / 51), context)
    assert _make(songs.song(duration_s=None), context, code_rate_tolerance=None)
    assert _make(songs.song(duration_s=1.0), context, code_rate_tolerance=None, min_segment_s=0)
    assert _make(songs.song(segments=[Segment("la", 0, 20)]), context, min_segment_s=0.3)
    assert _make(songs.song(), context, min_lyric_lines=2)


def test_codes_that_can_not_be_used_are_rejected(songs, context):
    song = songs.song()
    (song.folder / "vocals.npy").write_bytes((song.folder / "vocals.npy").read_bytes()[:-1])
    with pytest.raises(Rejected, match="codes_unreadable"):
        _make(song, context)
    (song.folder / "vocals.npy").unlink()
    with pytest.raises(Rejected, match="codes_missing"):
        _make(song, context)
    with pytest.raises(Rejected, match="codes_range"):
        _make(songs.song(codes={"accompaniment": np.full((8, 3000), 1024)}), context)


def test_irrelevant_text_can_be_removed(songs, context):
    song = songs.song()
    clean = _make(song, context)[0].ids.tolist()
    song.segments[0] = replace(song.segments[0], text="[verse]\nLyrics by: X\nRow your boat\nhttps://example.org\n\n")
    assert _make(song, context, remove_irrelevant_text=True)[0].ids.tolist() == clean
    assert _make(song, context)[0].ids.tolist() != clean
