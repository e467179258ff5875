"""A thousand seeded corruptions of manifest lines and code files, built as the songs of one corpus.

What holds for each: it ends in a named reject or in documents, never in an exception that nobody foresaw. A document
that comes of it is well-formed, every id valid for its kind. Codes in a shard carry checksums, so a damaged shard gives
the undamaged song's documents or none. An ``.npy`` file has none: what it holds is read if it is legal, so a flipped
code that stays in range goes unseen, but only ever as another code in the same place. A damaged manifest line may say
something else that is legal (another tag, another word), but its audio is always a stretch of the song's.
"""

import io
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from building import song_line, write_spec

from megatron_music.corpus import build
from megatron_music.corpus.contents import read_contents
from megatron_music.corpus.indexed import IndexedSource
from megatron_music.corpus.inspect import document_in_words
from megatron_music.documents.document import interleave
from megatron_music.songs.codes import SHARD_SCHEMA, CodesRow, write_codes_shard
from megatron_music.songs.manifest import read_manifest
from megatron_music.songs.rejects import read_rejects
from megatron_music.vocabulary.kinds import AUDIO_KINDS
from megatron_music.vocabulary.text import TextTokenizer
from megatron_music.vocabulary.vocabulary import Vocabulary

LINES, NPY_FILES, SHARDS = 400, 300, 300
FRAMES = 400
TRACKS = {"mix": "codec", "vocals": "vocals_codec", "accompaniment": "instrumental_codec"}
FILTERS = {
    "min_duration_s": 1,
    "max_duration_s": 600,
    "languages": ["en"],
    "unknown_language": "keep",
    "required_tags": ["folk"],
    "forbidden_tags": ["spoken word"],
    "fields": {"score": {"min": 1, "missing": "keep"}, "scores.quality": {"max": 9, "missing": "keep"}},
    "max_lyric_characters_per_s": 50,
    "max_repeated_lines": 0.9,
    "min_lyrics_match": 0.1,
    "min_script_share": 0.5,
    "max_held_share": {"vocals": 0.5},
    "min_distinct_codes": {"mix": 5},
    "max_equal_share": 0.9,
}
SOURCES = {
    "cot": {"task": "lyrics_to_song", "remove_irrelevant_text": True, "filters": FILTERS},
    "icl": {"task": "reference", "shortest_s": 1, "longest_s": 3, "mean_s": 2, "tags": "shuffled"},
    "mix": {"task": "unconditional", "tags": "as_written"},
    "residual": {"task": "residual", "min_distinct_codes": 5, "tracks": ["mix"]},
}
COMPARED = ("cot", "mix", "residual")
"""Sources whose documents do not depend on the song's id."""
ODD_VALUES = [
    None, -1, 0, 3.5, 10**30, -(10**30), 10**400, float("inf"), float("nan"), 1e308, 5e-324, "", "text", "\ud800",
    "\x00", "../../etc/passwd", "a" * 5000, "shard.parquet#", "#", ".", "/", [], {}, [None], {"a": 1}, True, False,
    [[[[]]]], [{"start": 1}], {"segmented_lyrics": [{}]},
]  # fmt: skip


def undamaged_line(number: int) -> dict:
    line = song_line(0)
    line |= {"id": f"damaged-{number:04d}", "audio_length_in_sec": FRAMES / 50, "language": "en", "text": "la la"}
    line |= {
        "lyrics_match": 0.9,
        "score": 2,
        "scores": {"quality": 5},
        "msa": [{"start": 0.0, "end": 8.0, "label": "a"}],
    }
    for at, segment in enumerate(line["splitted_lyrics"]["segmented_lyrics"]):
        segment |= {"codec_frame_start": at * FRAMES // 2, "codec_frame_end": (at + 1) * FRAMES // 2}
    return line


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """Bits flipped, bytes deleted, doubled, zeroed or made up, or an end cut off."""
    damaged = bytearray(content)
    at = rng.randrange(1, len(damaged))
    some = slice(at, at + rng.choice([1, 1, 2, 8, 64]))
    way = rng.choice(["flip", "flip", "flip", "delete", "double", "zero", "invent", "cut"])
    if way == "flip":
        for _ in range(rng.choice([1, 1, 1, 2, 5])):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    elif way == "delete":
        del damaged[some]
    elif way == "double":
        damaged[at:at] = damaged[some]
    elif way == "cut":
        del damaged[at:]
    else:
        damaged[some] = bytes(len(damaged[some])) if way == "zero" else rng.randbytes(len(damaged[some]))
    return bytes(damaged)


def damage_value(rng: random.Random, content) -> None:
    """Replaces, removes or swaps values somewhere in the nested content."""
    while True:
        keys = list(content) if isinstance(content, dict) else range(len(content))
        key = rng.choice(keys)
        if isinstance(content[key], dict | list) and content[key] and rng.random() < 0.7:
            content = content[key]
        elif rng.random() < 0.2:
            other = rng.choice(keys)
            content[key], content[other] = content[other], content[key]
            return
        elif isinstance(content, dict) and rng.random() < 0.2:
            del content[key]
            return
        else:
            content[key] = rng.choice(ODD_VALUES)
            return


def damaged_line(rng: random.Random, number: int) -> bytes:
    line = undamaged_line(number)
    way = rng.choice(["values", "values", "bytes", "bytes", "nested", "not UTF-8"])
    if way == "values":
        for _ in range(rng.choice([1, 1, 2])):
            damage_value(rng, line)
        return json.dumps(line).encode()
    content = json.dumps(line, ensure_ascii=False).encode()
    at = rng.randrange(len(content))
    if way == "nested":
        depth = rng.choice([100, 100_000])
        return content[:at] + b"[" * depth + b"]" * depth + content[at:]
    if way == "not UTF-8":
        return content[:at] + rng.choice([b"\xff", b"\xc3(", b"\xed\xa0\x80", "ä".encode("latin-1")]) + content[at:]
    return damage_bytes(rng, content).replace(b"\n", b" ")


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def damaged_npy(rng: random.Random, codes_KT: np.ndarray) -> bytes:
    content = npy(codes_KT)
    odd = [
        codes_KT.astype(np.float32), codes_KT.astype(bool), codes_KT.astype(object), codes_KT.astype("U4"),
        codes_KT.astype(">i2"), codes_KT.astype(np.int64) + 2**40, codes_KT.astype(np.int16) - 1, codes_KT + 256,
        codes_KT[0], codes_KT[None], codes_KT[:, :0], codes_KT[:0], np.zeros((9, FRAMES), np.int16),
        codes_KT.reshape(4, -1), codes_KT.T, np.int16(3), np.zeros((8, 10**6), np.int8), codes_KT[:, :-50],
    ]  # fmt: skip
    way = rng.choice(["bytes", "bytes", "header", "header", "odd", "other file"])
    if way == "odd":
        return npy(rng.choice(odd))
    if way == "other file":
        huge = content.replace(b"(8, 400)", rng.choice([b"(8, 99999999999999)", b"(-8, 400)", b"(8, 4e2)", b"()"]))
        return rng.choice([b"", b"\x93NUMPY", b"[[1, 2]]", b"PK\x03\x04" + bytes(60), huge, content + b"\0\0"])
    return damage_bytes(rng, content[:128]) + content[128:] if way == "header" else damage_bytes(rng, content)


def damaged_shard(rng: random.Random, rows: list[dict], content: bytes) -> bytes:
    way = rng.choice(["bytes", "bytes", "footer", "footer", "row"])
    if way == "bytes":
        return damage_bytes(rng, content)
    if way == "footer":
        return content[:-1500] + damage_bytes(rng, content[-1500:])
    odd = {
        "id": ["other", None, ""], "track": ["drums", None], "codec": ["dac", None, "embedded "],
        "codebooks": [-8, 0, 7, 9, 2**31 - 1, None], "frames": [-400, 0, 399, 401, 2**31 - 1, None],
        "codes": [b"", None, b"x", rows[0]["codes"][:-2], b"\xff" * len(rows[0]["codes"])],
    }  # fmt: skip
    field = rng.choice(list(odd))
    damaged = [row | {field: rng.choice(odd[field])} for row in rows]
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(damaged, schema=SHARD_SCHEMA), stream)
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder(prepared, tmp_path_factory):
    """A folder with the corpus ``damaged`` of a thousand songs, and ``whole`` of an undamaged one."""
    folder = tmp_path_factory.mktemp("corruptions")
    songs = folder / "songs"
    songs.mkdir()
    for name in ("vocabulary.yaml", "tokenizer.model"):
        (folder / name).write_bytes((prepared / name).read_bytes())
    rng, codes_KT = random.Random(0), track_codes()
    write_codes_shard(
        songs / "whole.parquet", [CodesRow("song", track, "embedded", codes_KT[track]) for track in TRACKS]
    )
    shard, rows = (songs / "whole.parquet").read_bytes(), pq.read_table(songs / "whole.parquet").to_pylist()
    for track in TRACKS:
        np.save(songs / f"0.{track}.npy", codes_KT[track])
    lines = []
    for number in range(LINES + NPY_FILES + SHARDS):
        line = undamaged_line(number)
        if number >= LINES + NPY_FILES:
            (songs / f"damaged-{number}.parquet").write_bytes(damaged_shard(rng, rows, shard))
            line |= {field: f"damaged-{number}.parquet#song/{track}" for track, field in TRACKS.items()}
        elif number >= LINES:
            track = rng.choice(list(TRACKS))
            (songs / f"damaged-{number}.npy").write_bytes(damaged_npy(rng, codes_KT[track]))
            line[TRACKS[track]] = f"damaged-{number}.npy"
        lines.append(json.dumps(line).encode() if number >= LINES else damaged_line(rng, number))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "part_songs", lambda songs: 512)  # few large parts, since every file waits for the disk
        for name, content in (("damaged", lines), ("whole", [json.dumps(undamaged_line(0)).encode()])):
            (songs / f"{name}.jsonl").write_bytes(b"\n".join(content) + b"\n")
            sources = {source: fields | {"manifest": f"songs/{name}.jsonl"} for source, fields in SOURCES.items()}
            build.build_corpus(write_spec(folder, sources=sources), folder / name, processes=1)
    return folder


def track_codes() -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(0)
    return {track: numbers.integers(0, 256, (8, FRAMES)).astype(np.int16) for track in TRACKS}


def documents(corpus, name: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The document, as ids and kinds, of each song of a source."""
    source = IndexedSource(corpus / name)
    return {row["id"]: source.document(row["document"]) for row in read_contents(corpus / name).to_pylist()}


def test_every_corruption_is_used_or_rejected_by_a_rule(folder):
    rejects = read_rejects(folder / "damaged" / "rejects.parquet")
    assert {reject.rule for reject in rejects} >= {
        "not_json", "not_utf8", "wrong_type", "missing_id", "missing_field", "codes_missing", "codes_unreadable",
        "codes_type", "codes_shape", "codes_range", "codes_codec", "code_rate", "length_difference",
    }  # fmt: skip
    assert [reject for reject in rejects if reject.rule == "unexpected"] == []
    assert all(reject.detail and "\n" not in reject.detail for reject in rejects)
    for name in SOURCES:
        about = IndexedSource(folder / "damaged" / name).sidecar
        rejected = sum(reject.where.startswith(f"{name}: ") for reject in rejects)
        assert about["songs_used"] + rejected == LINES + NPY_FILES + SHARDS == 1000
        assert about["songs_used"] > 60 and rejected > 500
    assert read_rejects(folder / "whole" / "rejects.parquet") == []


def test_whatever_comes_of_a_corruption_is_a_well_formed_document(folder):
    vocabulary = Vocabulary.load(folder / "vocabulary.yaml")
    tokenizer = TextTokenizer(folder / "tokenizer.model", vocabulary)
    for name in SOURCES:
        for id, (ids_N, kinds_N) in documents(folder / "damaged", name).items():
            words = document_in_words(ids_N, kinds_N, vocabulary, tokenizer)
            assert "[! " not in words, (name, id, words)


@pytest.mark.parametrize("name", COMPARED)
def test_damaged_shards_give_the_undamaged_document_or_none(folder, name):
    (expected_N, _), made = documents(folder / "whole", name)["damaged-0000"], documents(folder / "damaged", name)
    same = [made[id][0] for number in range(LINES + NPY_FILES, 1000) if (id := f"damaged-{number:04d}") in made]
    assert len(same) > 5
    for ids_N in same:
        np.testing.assert_array_equal(ids_N, expected_N)


@pytest.mark.parametrize("name", COMPARED)
def test_damaged_arrays_change_codes_in_their_place_and_nothing_else(folder, name):
    (expected_N, expected_kinds_N) = documents(folder / "whole", name)["damaged-0000"]
    made = documents(folder / "damaged", name)
    changed = 0
    for number in range(LINES, LINES + NPY_FILES):
        ids_N, kinds_N = made.get(f"damaged-{number:04d}", (expected_N, expected_kinds_N))
        np.testing.assert_array_equal(kinds_N, expected_kinds_N)
        assert np.isin(kinds_N[ids_N != expected_N], AUDIO_KINDS).all()
        changed += bool((ids_N != expected_N).any())
    assert changed  # damage that leaves a legal code can't be seen in a file without a checksum


def test_damaged_lines_never_give_audio_that_is_not_the_songs(folder):
    first, codes_KT = Vocabulary.load(folder / "vocabulary.yaml").codec().first, track_codes()
    streams = [
        (first + interleave(codes_KT[vocals][0], codes_KT[accompaniment][0])).astype("<i4").tobytes()
        for vocals in TRACKS  # a damaged line may name its tracks in another order
        for accompaniment in TRACKS
    ]
    spans = 0
    of_files = {f"damaged-{number:04d}" for number in range(LINES, 1000)}
    for id, (ids_N, kinds_N) in documents(folder / "damaged", "cot").items():
        audio_N = np.isin(kinds_N, AUDIO_KINDS)
        edges = np.flatnonzero(np.diff(audio_N, prepend=False, append=False))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            span = ids_N[start:stop].astype("<i4").tobytes()
            assert id in of_files or any(span in stream for stream in streams)
            spans += id not in of_files
    assert spans > 50


def test_the_near_duplicate_stage_takes_any_damage(folder):
    lines = (folder / "songs" / "damaged.jsonl").read_bytes().split(b"\n")[:-1:25]
    (folder / "songs" / "some.jsonl").write_bytes(b"\n".join(lines))
    sources = {"mix": SOURCES["mix"] | {"manifest": "songs/some.jsonl"}}
    near = {"similarity": 0.5, "prefer": "score"}
    about = build.build_corpus(write_spec(folder, sources=sources, near_duplicates=near), folder / "near", processes=1)[
        "mix"
    ]
    rules = {reject.rule for reject in read_rejects(folder / "near" / "rejects.parquet")}
    assert (about["songs_used"], about["songs_rejected"]) == (1, 39) and "near_duplicate" in rules - {"unexpected"}


def test_a_damaged_line_spoils_no_other(tmp_path):
    rng = random.Random(1)
    lines = [json.dumps(undamaged_line(number)).encode() for number in range(3)]
    (tmp_path / "whole.jsonl").write_bytes(b"\n".join(lines))
    first, _, last = read_manifest(tmp_path / "whole.jsonl")
    for _ in range(300):
        (tmp_path / "damaged.jsonl").write_bytes(b"\n".join([lines[0], damaged_line(rng, 1), lines[2]]))
        read = list(read_manifest(tmp_path / "damaged.jsonl"))
        assert read[0] == first and len(read) in (2, 3)
        assert read[-1] == last or read[-1].rule == "duplicate_id"
