"""An index of all audio tokens that a model was trained on: where stretches of a sample may stand.

One file, read through a map. It holds the codebook-0 codes of the sources track by track (a document's vocals in a row,
then its accompaniment), which the songs of a corpus with interleaved tracks are not: a model that sings a song's vocals
over another accompaniment is found as well, and whether two tracks are copied at once shows in both. Behind the codes
stand the sampled fingerprints (``fingerprints.py``) with the places where they stand:

    header     4,096 bytes, JSON: format, sources, codec, counts, checksum of the tables
    codes      int16, separators between tracks
    tracks     first code, document, source and kind of each track
    buckets    first entry of each value of a hash's low 16 bits
    entries    uint64: the hash's next 24 bits, then 40 bits of place; in order, within each bucket

A code takes 2 bytes and, as 2 of 7 groups are kept, 2.3 bytes of entries. Entries are sorted outside memory: they are
dealt into 256 files by their hash while the sources are read once, and one file at a time is sorted.
"""

import json
import shutil
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_music.corpus import fingerprint
from megatron_music.corpus.indexed import IndexedSource, prefix_file
from megatron_music.corpus.workplace import workplace
from megatron_music.errors import InputError
from megatron_music.evaluation.memorisation.fingerprints import GRAM, SEPARATOR, WINDOW, gram_hashes, kept_grams, usable
from megatron_music.files import sync
from megatron_music.progress import track
from megatron_music.vocabulary.kinds import COARSE_KINDS, Kind
from megatron_music.vocabulary.vocabulary import CodecRange

SUFFIX = ".copies"
FORMAT, VERSION = "megatron-music copies", 1
MOST_PLACES = 512
"""Places of one group of codes that are looked at; of a group that stands at more of them, that many evenly spread."""
_HEADER_BYTES, _COUNTS_BYTES, _MOST_SOURCES = 4096, 160, 255
_PARTS = 256
_BUCKET_BITS, _TAG_BITS, _PLACE_BITS = 16, 24, 40
_CHUNK_TOKENS = 1 << 19
_TRACK = np.dtype([("first", "<i8"), ("document", "<u4"), ("source", "u1"), ("kind", "u1")])
_PART_ENTRY = np.dtype([("bucket", "u1"), ("entry", "<u8")])
_AGAIN = "delete it, and it is built again"


@dataclass(frozen=True)
class Place:
    """Where codes stand: ``first_frame`` of the track ``kind`` of a document of a source."""

    source: str
    document: int
    kind: str
    first_frame: int


@dataclass(frozen=True)
class Seeds:
    """Groups of GRAM codes that a sample shares with the corpus.

    Attributes:
        sample_S, corpus_S: first token of each, int64.
        cut: groups of the sample that stand at more than ``MOST_PLACES`` places, of which not all were looked at.
    """

    sample_S: np.ndarray
    corpus_S: np.ndarray
    cut: int


class CopyIndex:
    """An index, open for reading; ``codes`` is int16 (tokens,), begins and ends with a separator.

    Raises InputError where the file is no index, was cut off, or its tables are damaged.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        header = self._header()
        counts = [header.get(name) for name in ("tokens", "tracks", "entries")]
        if header.get("version") != VERSION or [header.get("gram"), header.get("window")] != [GRAM, WINDOW]:
            raise InputError(path, "was built by another version of this program", _AGAIN)
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise InputError(path, "has a damaged header", _AGAIN)
        self.sources: list[dict[str, str]] = header["sources"]
        self.codec: dict[str, Any] = header["codec"]
        tokens, tracks, entries = counts
        starts = np.cumsum([_HEADER_BYTES, _whole(2 * tokens), _whole(_TRACK.itemsize * tracks), 8 * (2**16 + 1)])
        size = int(starts[-1]) + 8 * entries
        if self.path.stat().st_size != size:
            what = f"has {self.path.stat().st_size} bytes where its header announces {size}"
            raise InputError(path, what, _AGAIN)
        self.codes = np.memmap(self.path, "<i2", "r", int(starts[0]), (tokens,))
        self.tracks = np.memmap(self.path, _TRACK, "r", int(starts[1]), (tracks,)) if tracks else np.zeros(0, _TRACK)
        self._buckets = np.memmap(self.path, "<i8", "r", int(starts[2]), (2**16 + 1,))
        self._entries = np.memmap(self.path, "<u8", "r", int(starts[3]), (entries,)) if entries else np.zeros(0, "<u8")
        if _checksum(self.tracks, self._buckets) != header.get("checksum") or self._buckets[-1] != entries:
            raise InputError(path, "is damaged", _AGAIN)

    def __len__(self) -> int:
        """Audio tokens, separators left out."""
        return len(self.codes) - len(self.tracks) - 1

    def seeds(self, codes_T: np.ndarray) -> Seeds:
        """All places where a group that was kept of the corpus stands in the sample, int (T,), too."""
        hashes = gram_hashes(np.asarray(codes_T, np.int16))
        sample_G = np.flatnonzero(usable(hashes))
        bucket_G, tag_G = _split(hashes[sample_G])
        first_G, last_G = self._buckets[bucket_G], self._buckets[bucket_G + 1]
        shift = np.uint64(_PLACE_BITS)
        begin_G = _bisect(self._entries, first_G, last_G, tag_G << shift)
        count_G = _bisect(self._entries, begin_G, last_G, (tag_G + np.uint64(1)) << shift) - begin_G
        looked_G = np.minimum(count_G, MOST_PLACES)
        nth_S = np.arange(looked_G.sum()) - np.repeat(np.cumsum(looked_G) - looked_G, looked_G)
        spread_S = nth_S * np.repeat(count_G, looked_G) // np.repeat(np.maximum(looked_G, 1), looked_G)
        entries_S = self._entries[np.repeat(begin_G, looked_G) + spread_S]
        corpus_S = (entries_S & np.uint64(2**_PLACE_BITS - 1)).astype(np.int64)
        sample_S = np.repeat(sample_G, looked_G)
        # The hash is longer than what an entry holds of it.
        same_S = np.ones(len(sample_S), bool)
        for at in range(GRAM):
            same_S &= self.codes[corpus_S + at] == np.asarray(codes_T)[sample_S + at]
        return Seeds(sample_S[same_S], corpus_S[same_S], int((count_G > MOST_PLACES).sum()))

    def place(self, token: int) -> Place:
        """Where a code of ``codes`` stands in the corpus."""
        found = self.tracks[int(np.searchsorted(self.tracks["first"], token, side="right")) - 1]
        kind = Kind(int(found["kind"])).name.lower()
        name = self.sources[int(found["source"])]["name"]
        return Place(name, int(found["document"]), kind, token - int(found["first"]))

    def _header(self) -> dict[str, Any]:
        if not self.path.is_file():
            raise InputError(self.path, "no such file", "build the index first")
        with open(self.path, "rb") as stream:
            text = stream.read(_HEADER_BYTES).rstrip(b"\0 ")
        try:
            header = json.loads(text)
        except ValueError:
            header = None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise InputError(self.path, "is no index of a training corpus", "name another file, or none")
        return header


def open_index(sources: Sequence[str | Path], codec: CodecRange, path: str | Path | None = None) -> CopyIndex:
    """The index of these sources, which is built where it is missing.

    Args:
        sources: prefixes of all that the model was trained on.
        path: the file; None stands for the first source's prefix with ``.copies``.

    Raises:
        InputError: a source or the index can't be read, or the index is of other sources or another codec.
    """
    opened = [IndexedSource(source) for source in sources]
    path = prefix_file(sources[0], SUFFIX) if path is None else Path(path)
    if not path.exists():
        build_index(opened, codec, path)
    index = CopyIndex(path)
    of = [source["fingerprint"] for source in index.sources]
    if of != [source_fingerprint(source) for source in opened]:
        names = ", ".join(source["name"] for source in index.sources)
        what = f"is the index of {names} as it was then, not of {', '.join(map(str, sources))} as it is"
        raise InputError(path, what, f"name another file, or {_AGAIN}")
    if index.codec != asdict(codec):
        raise InputError(path, f"is an index of {index.codec['name']} at other ids", _AGAIN)
    return index


def source_fingerprint(source: IndexedSource) -> str:
    """Of sidecar, lengths, sizes and both ends of the ids: enough to know a source that was built anew."""
    files = [prefix_file(source.prefix, suffix) for suffix in (".bin", ".kind")]
    ends = [source.document(at)[0].tolist() for at in (0, len(source) - 1)] if len(source) else []
    sizes = [file.stat().st_size for file in files]
    return fingerprint.of_value([source.sidecar, fingerprint.of_file(prefix_file(source.prefix, ".idx")), sizes, ends])


def build_index(sources: Sequence[IndexedSource], codec: CodecRange, path: str | Path) -> None:
    """Reads the sources once and writes the file, whole or not at all, one build of it at a time.

    What a killed build left is overwritten.

    Memory: a chunk of the sources, their longest document, and, while they are sorted, 1/256 of the entries (50 bytes
    each).

    Raises:
        InputError: a source holds codes of another codec, there are too many sources, or another process builds it.
    """
    path = Path(path)
    fixed = {
        "format": FORMAT,
        "version": VERSION,
        "gram": GRAM,
        "window": WINDOW,
        "codec": asdict(codec),
        "sources": [{"name": one.prefix.name, "fingerprint": source_fingerprint(one)} for one in sources],
    }
    if len(json.dumps(fixed)) > _HEADER_BYTES - _COUNTS_BYTES or len(sources) > _MOST_SOURCES:
        raise InputError(path, f"can't hold {len(sources)} sources", "name fewer")
    with workplace(path.parent / f".{path.name}.building") as workspace:
        try:
            _write_index(workspace / "index", sources, codec, fixed)
            (workspace / "index").replace(path)
            sync(path.parent)
        except OSError as error:
            raise InputError(path, f"can't be written ({error.strerror})", "name another place with --index") from None
        finally:
            shutil.rmtree(workspace, ignore_errors=True)


def _write_index(path: Path, sources: Sequence[IndexedSource], codec: CodecRange, fixed: dict[str, Any]) -> None:
    """Writes the file, with ``fixed`` and the counts in its header, and the parts that are sorted beside it."""
    with open(path, "w+b") as stream:
        stream.write(bytes(_HEADER_BYTES))
        tracks, tokens = _write_codes(stream, sources, codec, path.parent)
        assert stream.tell() == _HEADER_BYTES + _whole(2 * tokens)
        stream.write(tracks.tobytes())
        _pad(stream)
        buckets = _write_entries(stream, path.parent)
        counts = {
            "tokens": tokens,
            "tracks": len(tracks),
            "entries": int(buckets[-1]),
            "checksum": _checksum(tracks, buckets),
        }
        stream.seek(0)
        stream.write(json.dumps(fixed | counts).encode())
    sync(path)


def track_codes(source: IndexedSource, document: int, codec: CodecRange) -> Iterator[tuple[Kind, np.ndarray]]:
    """Codebook-0 codes, int16 (T,), of each track of a document; raises InputError where they are another codec's."""
    ids, kinds = source.document(document)
    for kind in COARSE_KINDS:
        of_kind = ids[kinds == kind]
        if len(of_kind):
            try:
                yield kind, codec.codes(of_kind)
            except ValueError as error:
                raise InputError(f"{source.prefix}: document {document}", str(error), "name its codec") from None


def _write_codes(
    stream: BinaryIO, sources: Sequence[IndexedSource], codec: CodecRange, workspace: Path
) -> tuple[np.ndarray, int]:
    """Writes all codes, deals the entries into ``workspace``; gives the table of tracks and the number of codes."""
    separator = np.full(1, SEPARATOR, "<i2")
    parts = [open(workspace / f"{part}", "wb", buffering=1 << 16) for part in range(_PARTS)]
    tables: list[np.ndarray] = []
    chunk, size, written = [separator], 1, 0
    rows: list[tuple[int, int, int, int]] = []

    def flush() -> None:
        codes = np.concatenate(chunk)
        stream.write(codes.tobytes())
        _deal(codes, written, parts)
        tables.append(np.array(rows, _TRACK))

    try:
        for number, source in enumerate(sources):
            for document in track(range(len(source)), f"index of {source.prefix.name}"):
                for kind, codes_T in track_codes(source, document, codec):
                    rows.append((written + size, document, number, int(kind)))
                    chunk += [codes_T.astype("<i2", copy=False), separator]
                    size += len(codes_T) + 1
                if size >= _CHUNK_TOKENS:
                    flush()
                    chunk, rows = [], []
                    written, size = written + size, 0
        if chunk:
            flush()
    finally:
        for part in parts:
            part.close()
    _pad(stream)
    return np.concatenate(tables), written + size


def _deal(codes: np.ndarray, first: int, parts: Sequence[BinaryIO]) -> None:
    """Appends the entries of codes that begin at token ``first`` to the files of their parts."""
    kept, hashes = kept_grams(codes)
    bucket, tag = _split(hashes)
    order = np.argsort(bucket.astype(np.uint16), kind="stable")
    dealt = np.empty(len(kept), _PART_ENTRY)
    dealt["bucket"] = bucket[order] % _PARTS
    dealt["entry"] = (tag[order] << np.uint64(_PLACE_BITS)) | (kept[order] + first).astype(np.uint64)
    edges = np.searchsorted(bucket[order] // _PARTS, np.arange(_PARTS + 1))
    for part, begin, end in zip(parts, edges[:-1], edges[1:], strict=True):
        part.write(dealt[begin:end].tobytes())


def _write_entries(stream: BinaryIO, workspace: Path) -> np.ndarray:
    """Writes the buckets' table and the sorted entries; gives the table."""
    table_at = stream.tell()
    sizes = np.zeros(2**_BUCKET_BITS, np.int64)
    stream.write(bytes(8 * (2**_BUCKET_BITS + 1)))
    for part in track(range(_PARTS), "sorting fingerprints"):
        dealt = np.fromfile(workspace / f"{part}", _PART_ENTRY)
        (workspace / f"{part}").unlink()
        order = np.argsort(dealt["entry"])
        order = order[np.argsort(dealt["bucket"][order], kind="stable")]
        stream.write(dealt["entry"][order].tobytes())
        sizes[part * _PARTS : (part + 1) * _PARTS] = np.bincount(dealt["bucket"], minlength=_PARTS)
    buckets = np.concatenate([[0], np.cumsum(sizes)]).astype("<i8")
    stream.seek(table_at)
    stream.write(buckets.tobytes())
    return buckets


def _split(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bucket, int64, and tag, uint64. The least hashes are kept, so that their high bits are much the same."""
    bucket = (hashes & np.uint64(2**_BUCKET_BITS - 1)).astype(np.int64)
    return bucket, (hashes >> np.uint64(_BUCKET_BITS)) & np.uint64(2**_TAG_BITS - 1)


def _bisect(entries: np.ndarray, low_G: np.ndarray, high_G: np.ndarray, key_G: np.ndarray) -> np.ndarray:
    """Number of the first of ``entries[low:high]``, which are sorted, that is not below the key."""
    low_G, high_G = np.array(low_G, np.int64), np.array(high_G, np.int64)
    while (open_G := low_G < high_G).any():
        middle_G = (low_G + high_G) // 2
        below_G = np.zeros(len(low_G), bool)
        below_G[open_G] = entries[middle_G[open_G]] < key_G[open_G]
        low_G = np.where(open_G & below_G, middle_G + 1, low_G)
        high_G = np.where(open_G & ~below_G, middle_G, high_G)
    return low_G


def _whole(size: int) -> int:
    """The next multiple of 8 bytes."""
    return -(-size // 8) * 8


def _pad(stream: BinaryIO) -> None:
    stream.write(bytes(_whole(stream.tell()) - stream.tell()))


def _checksum(tracks: np.ndarray, buckets: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(buckets).tobytes(), zlib.crc32(np.ascontiguousarray(tracks).tobytes()))
