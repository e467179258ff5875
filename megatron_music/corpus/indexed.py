"""Megatron's indexed format, written and read by a few lines of our own, with a kind beside every token.

``PREFIX.bin`` holds the ids of all documents one after another, ``PREFIX.idx`` their lengths and byte offsets (both as
megatron-core's ``IndexedDataset`` reads and writes them), ``PREFIX.kind`` one byte a token, and ``PREFIX.json`` the
sidecar that says what is in there. The sidecar appears last: a prefix without it is not complete.
"""

import os
import shutil
import struct
from array import array
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from megatron_music.errors import InputError
from megatron_music.files import read_json, write_json
from megatron_music.vocabulary.kinds import Kind

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, document boundaries
_DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_INT32_CODE = 4
_INDEX_CHUNK = 1 << 20
_COPY_BYTES = 1 << 20
_SUFFIXES = (".bin", ".idx", ".kind", ".json")


def source_names(corpus: str | Path) -> list[str]:
    """The finished sources in a folder."""
    return sorted(path.stem for path in Path(corpus).glob("*.json") if path.with_suffix(".bin").is_file())


def prefix_file(prefix: str | os.PathLike, suffix: str) -> Path:
    """``PREFIX`` with ``suffix`` appended; a dot in the prefix stays (``v1.5`` becomes ``v1.5.bin``)."""
    return Path(f"{os.fspath(prefix)}{suffix}")


class IndexedWriter:
    """Writes documents one by one; the four files take their names together when the ``with`` block ends well.

    Only the lengths are kept in memory (4 bytes a document). ``about`` may be filled until the block ends; it goes into
    the sidecar before ``documents``, ``tokens`` and ``tokens_by_kind``.
    """

    def __init__(self, prefix: str | os.PathLike, about: Mapping[str, Any] | None = None):
        self.prefix = Path(prefix)
        self.about = dict(about or {})
        self.tokens = 0
        self._lengths = array("i")
        self._tokens_by_kind = np.zeros(256, np.int64)
        # One fixed name: what a killed writer left is overwritten by the next, and never piles up.
        self._workspace = self.prefix.parent / f".{self.prefix.name}.writing"

    @property
    def documents(self) -> int:
        """Documents added so far."""
        return len(self._lengths)

    def __enter__(self) -> "IndexedWriter":
        shutil.rmtree(self._workspace, ignore_errors=True)
        self._workspace.mkdir(parents=True)
        self._bin = open(self._workspace / "bin", "wb", buffering=1 << 20)
        self._kind = open(self._workspace / "kind", "wb", buffering=1 << 20)
        return self

    def add(self, ids: np.ndarray, kinds: np.ndarray) -> None:
        """Appends one document: ``ids`` int32 (N,), ``kinds`` uint8 (N,)."""
        ids, kinds = np.asarray(ids), np.asarray(kinds, np.uint8)
        if ids.ndim != 1 or ids.shape != kinds.shape:
            raise ValueError(f"ids {ids.shape} and kinds {kinds.shape} must be one kind for each id")
        self._bin.write(ids.astype("<i4", copy=False).tobytes())
        self._kind.write(kinds.tobytes())
        self._lengths.append(len(ids))
        self._tokens_by_kind += np.bincount(kinds, minlength=256)
        self.tokens += len(ids)

    def extend(self, source: "IndexedSource") -> None:
        """Appends all documents of a source that an IndexedWriter has written."""
        for stream, suffix in ((self._bin, ".bin"), (self._kind, ".kind")):
            with open(prefix_file(source.prefix, suffix), "rb") as part:
                shutil.copyfileobj(part, stream, _COPY_BYTES)
        self._lengths.frombytes(np.asarray(source.lengths, np.int32).tobytes())
        for name, count in source.sidecar["tokens_by_kind"].items():
            self._tokens_by_kind[Kind[name.upper()]] += count
        self.tokens += source.total_tokens

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self._bin, self._kind):
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        if error is None:
            self._finish()
        shutil.rmtree(self._workspace, ignore_errors=True)

    def _finish(self) -> None:
        with open(self._workspace / "idx", "wb") as stream:
            write_index(stream, np.frombuffer(self._lengths, np.int32))
            stream.flush()
            os.fsync(stream.fileno())
        by_kind = {Kind(kind).name.lower(): int(count) for kind, count in enumerate(self._tokens_by_kind) if count}
        about = {**self.about, "documents": self.documents, "tokens": self.tokens, "tokens_by_kind": by_kind}
        # Without its sidecar an older source of this name is incomplete, so that old and new files never pass as one.
        prefix_file(self.prefix, ".json").unlink(missing_ok=True)
        for suffix in (".bin", ".idx", ".kind"):
            os.replace(self._workspace / suffix[1:], prefix_file(self.prefix, suffix))
        write_json(prefix_file(self.prefix, ".json"), about)


def write_index(stream: Any, lengths: np.ndarray) -> None:
    """Writes lengths int32, byte offsets int64 and document boundaries int64, in chunks so that memory stays flat."""
    count = len(lengths)
    stream.write(_HEADER.pack(_MAGIC, 1, _INT32_CODE, count, count + 1))
    stream.write(lengths.astype("<i4", copy=False).tobytes())
    offset = 0
    for start in range(0, count, _INDEX_CHUNK):
        sizes = lengths[start : start + _INDEX_CHUNK].astype(np.int64) * 4
        ends = offset + np.cumsum(sizes)
        stream.write((ends - sizes).astype("<i8").tobytes())
        offset = int(ends[-1])
    for start in range(0, count + 1, _INDEX_CHUNK):
        stream.write(np.arange(start, min(start + _INDEX_CHUNK, count + 1), dtype="<i8").tobytes())


class IndexedSource:
    """One source of a corpus, open for reading: the index is memory-mapped, tokens are read where they are asked for.

    Tokens come by ``pread`` and not from a map: a file that shrinks or vanishes under a long run is then an error with
    a name, not a bus error. Sequences of the ``.idx`` are the documents, as in megatron-core's ``GPTDataset``.

    Raises InputError where a file is missing or its size does not fit the index.
    """

    def __init__(self, prefix: str | os.PathLike):
        self.prefix = Path(prefix)
        self._streams: list[Any] = []
        for suffix in _SUFFIXES:
            if not prefix_file(prefix, suffix).is_file():
                raise InputError(prefix_file(prefix, suffix), "no such file", "build the source again")
        self.sidecar: dict[str, Any] = read_json(prefix_file(prefix, ".json"))
        if not isinstance(self.sidecar, dict):
            raise InputError(prefix_file(prefix, ".json"), "is not a sidecar", "build the source again")
        self._read_index()
        self._bin, self._kind = (self._open(suffix) for suffix in (".bin", ".kind"))

    def __reduce__(self) -> tuple[type, tuple[Path]]:
        return IndexedSource, (self.prefix,)

    def __len__(self) -> int:
        return len(self.lengths)

    def document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 (N,) and kinds uint8 (N,) of document ``index``."""
        return self.read(index, 0, int(self.lengths[index]))

    def read(self, index: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids int32 and kinds uint8 of tokens ``start`` to ``stop`` (exclusive) of document ``index``."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.prefix} has {len(self)} documents, {index} is not one of them")
        size = self._dtype.itemsize
        first = int(self._offsets[index]) // size + start
        count = stop - start
        ids = np.frombuffer(self._pread(self._bin, first * size, count * size, ".bin"), self._dtype)
        kinds = np.frombuffer(self._pread(self._kind, first, count, ".kind"), np.uint8)
        return ids.astype(np.int32), kinds.copy()

    def _read_index(self) -> None:
        """Sets ``lengths`` int32 (documents,) and the byte offsets int64 (documents,), both memory-mapped."""
        path = prefix_file(self.prefix, ".idx")
        size = path.stat().st_size
        mend = "the copy is not whole: copy or build it again"
        with open(path, "rb") as stream:
            header = stream.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise InputError(path, f"ends after {size} bytes, within its header", mend)
        magic, version, code, count, boundaries = _HEADER.unpack(header)
        if magic != _MAGIC or version != 1 or code not in _DTYPES:
            raise InputError(
                path, "is not an index of Megatron's format (version 1, whole numbers)", "name another file"
            )
        expected = _HEADER.size + 12 * count + 8 * boundaries
        # Multimodal indices carry one more byte a sequence, which nothing here needs.
        if size not in (expected, expected + count):
            raise InputError(path, f"has {size} bytes where its {count} documents need {expected}", mend)
        self._dtype = np.dtype(_DTYPES[code]).newbyteorder("<")
        if count == 0:
            self.lengths, self._offsets, self.total_tokens = np.zeros(0, np.int32), np.zeros(0, np.int64), 0
        else:
            self.lengths = np.memmap(path, "<i4", "r", _HEADER.size, (count,))
            self._offsets = np.memmap(path, "<i8", "r", _HEADER.size + 4 * count, (count,))
            self.total_tokens = int(self._offsets[-1]) // self._dtype.itemsize + int(self.lengths[-1])
        for suffix, token_bytes in ((".bin", self._dtype.itemsize), (".kind", 1)):
            file = prefix_file(self.prefix, suffix)
            if file.stat().st_size != self.total_tokens * token_bytes:
                what = f"has {file.stat().st_size} bytes where the index needs {self.total_tokens * token_bytes}"
                raise InputError(file, what, mend)

    def _open(self, suffix: str) -> int:
        stream = open(prefix_file(self.prefix, suffix), "rb", buffering=0)
        self._streams.append(stream)  # closed with this object
        return stream.fileno()

    def _pread(self, descriptor: int, offset: int, size: int, suffix: str) -> bytes:
        content, where = b"", prefix_file(self.prefix, suffix)
        while len(content) < size:
            try:
                more = os.pread(descriptor, size - len(content), offset + len(content))
            except OSError as error:
                raise InputError(where, f"can't be read ({error.strerror})", "look after that disk") from None
            if not more:
                raise InputError(where, f"ends before byte {offset + size}", "it shrank while it was read: restore it")
            content += more
        return content
