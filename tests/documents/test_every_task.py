"""What holds of every document of every task, on songs of every shape."""

import json

import numpy as np
import pytest

from megatron_music.corpus.build import build_corpus
from megatron_music.corpus.contents import read_contents
from megatron_music.corpus.indexed import IndexedSource
from megatron_music.documents.tasks import TASKS
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.song import Rejected
from megatron_music.vocabulary.kinds import CODEBOOK_KINDS, Kind

FIRST_CODEBOOK = (Kind.VOCAL, Kind.ACCOMPANIMENT, Kind.MIX, Kind.SPEECH)
VARIANTS = [
    ("lyrics_to_song", {}, {Kind.VOCAL, Kind.ACCOMPANIMENT}),
    ("lyrics_to_song", {"tags": "shuffled", "overhang": "clip"}, {Kind.VOCAL, Kind.ACCOMPANIMENT}),
    ("lyrics_to_song", {"header": False, "instruction_dropout": 0.5}, {Kind.VOCAL, Kind.ACCOMPANIMENT}),
    ("lyrics_to_song", {"tracks": "mix"}, {Kind.MIX}),
    ("lyrics_to_song", {"lyrics": "prepended"}, {Kind.VOCAL, Kind.ACCOMPANIMENT}),
    ("reference", {"mode": "dual"}, {Kind.VOCAL, Kind.ACCOMPANIMENT}),
    ("reference", {"mode": "mix", "order": "reference_first"}, {Kind.VOCAL, Kind.ACCOMPANIMENT, Kind.MIX}),
    ("reference", {"mode": "random"}, {Kind.VOCAL, Kind.ACCOMPANIMENT, Kind.MIX}),
    ("unconditional", {"tracks": "mix"}, {Kind.MIX}),
    ("unconditional", {"tracks": "dual"}, {Kind.VOCAL, Kind.ACCOMPANIMENT}),
    ("speech", {}, {Kind.SPEECH}),
    ("speech", {"track": "vocals"}, {Kind.SPEECH}),
    ("residual", {}, {Kind.MIX, Kind.VOCAL, Kind.ACCOMPANIMENT, *CODEBOOK_KINDS}),
    ("residual", {"repeat_codebook_0": False, "speech": True, "tracks": ["mix"]}, {Kind.SPEECH, *CODEBOOK_KINDS}),
    ("residual", {"codebooks": 3, "tracks": ["vocals"]}, {Kind.VOCAL, *CODEBOOK_KINDS[:2]}),
    ("text", {}, set()),
]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "marks"])
def manifest(request, tmp_path_factory, random_songs):
    """Songs whose texts hold, or do not hold, the spelling of special tokens."""
    return random_songs(tmp_path_factory.mktemp("every_task"), 40, 7, marks=request.param), request.param


@pytest.mark.parametrize(("name", "options", "audio_kinds"), VARIANTS)
def test_kinds_and_marks(manifest, context, name, options, audio_kinds):
    path, marks = manifest
    task = TASKS[name]
    made, seen = 0, set()
    for number, song in enumerate(read_manifest(path)):
        song.genres = song.genres if marks else song.genres.replace("<EOA>", "")
        try:
            documents = task.documents(song, context, np.random.default_rng(number), task.options(**options))
        except Rejected:
            continue
        for document in documents:
            made += 1
            seen |= set(document.kinds.tolist())
            _check_kinds(document, context)
            assert document.ids[-1] == context.vocabulary.special("<EOD>")
            if not marks:
                _check_marks(document, context)
    assert made > 20
    assert seen - {Kind.TEXT, Kind.SPECIAL} == audio_kinds


def _check_kinds(document, context):
    """Ids and kinds are of one length, and each kind stands on the ids that it may stand on."""
    ids, kinds, codec = document.ids, document.kinds, context.codec
    assert (ids.dtype, kinds.dtype, ids.shape) == (np.int32, np.uint8, kinds.shape)
    is_code = (codec.first <= ids) & (ids < codec.end)
    codebook = np.where(is_code, (ids - codec.first) // codec.codebook_size, -1)
    assert np.array_equal(kinds == Kind.TEXT, ids < context.vocabulary.text_size)
    assert np.array_equal(kinds == Kind.SPECIAL, np.isin(ids, list(context.vocabulary.specials.values())))
    assert np.array_equal(np.isin(kinds, FIRST_CODEBOOK), codebook == 0)
    for number, kind in enumerate(CODEBOOK_KINDS, start=1):
        assert np.array_equal(kinds == kind, codebook == number)


def _check_marks(document, context):
    """One ``<EOD>``, at the end; ``<SOA>`` and ``<EOA>`` in turns, and audio exactly between them."""
    ids, special = document.ids, context.vocabulary.special
    assert (ids == special("<EOD>")).sum() == 1
    opened = np.cumsum(ids == special("<SOA>")) - np.cumsum(ids == special("<EOA>"))
    assert opened.min() == 0 and opened.max() <= 1 and opened[-1] == 0
    is_code = (context.codec.first <= ids) & (ids < context.codec.end)
    assert np.array_equal(opened[is_code], np.ones(is_code.sum()))
    inside = ids[(opened == 1) & ~is_code]
    assert set(inside) <= {special(name) for name in ("<SOA>", "<xcodec>", "<stage_1>", "<stage_2>")}


def test_speech_and_text_in_a_corpus(repository, context, tmp_path, random_songs):
    manifest = random_songs(tmp_path, 30, 3, marks=False)
    spec = {
        "vocabulary": str(repository / "tokenizers" / "yue.yaml"),
        "tokenizer": str(context.tokenizer.model_path),
        "sources": {
            "speech": {"manifest": str(manifest), "task": "speech", "context_tokens": 3000},
            "text": {"manifest": str(manifest), "task": "text", "min_characters": 20},
        },
    }
    (tmp_path / "spec.yaml").write_text(json.dumps(spec))
    sidecars = build_corpus(tmp_path / "spec.yaml", tmp_path / "corpus", processes=1)
    speech, text = (IndexedSource(tmp_path / "corpus" / name) for name in ("speech", "text"))
    assert sidecars["speech"]["songs_used"] + sidecars["speech"]["songs_rejected"] == 30
    assert len(text) == sidecars["text"]["songs_used"] < 30
    contents = read_contents(tmp_path / "corpus" / "speech")
    assert len(contents) == sidecars["speech"]["songs_used"] > len(speech)
    clips = np.bincount(contents["document"].to_numpy())
    for index in range(len(speech)):
        ids, kinds = speech.document(index)
        assert (ids == context.vocabulary.special("<EOD>")).sum() == 1
        assert (ids == context.vocabulary.special("<SOA>")).sum() == clips[index]
        assert len(ids) <= 3000 or clips[index] == 1
        assert (kinds == Kind.SPEECH).sum() == ((context.codec.first <= ids) & (ids < context.codec.end)).sum()
