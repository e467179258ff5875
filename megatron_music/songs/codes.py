"""Codes on disk: single ``.npy`` files, and Parquet shards of many songs.

Both hold integers of shape (codebooks K, frames T). A shard has a row for each track of each song with the columns
id, track, codec, codebooks, frames, and codes as the bytes of little-endian int16 in row-major order; a manifest names
a row as ``shard.parquet#ID/TRACK``. Shards carry checksums, so that damage is found; in an ``.npy`` file a damaged code
that stays in range can't be told from a sound one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_music.files import atomic_path
from megatron_music.songs.song import Rejected, Song
from megatron_music.vocabulary.vocabulary import CodecRange

ROWS_PER_GROUP = 24
"""Rows that are read at once: three tracks of eight songs, about 4 MB at 8 codebooks and three minutes."""

SHARD_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("track", pa.string()),
        ("codec", pa.string()),
        ("codebooks", pa.int32()),
        ("frames", pa.int32()),
        ("codes", pa.binary()),
    ]
)


@dataclass(frozen=True)
class CodesRow:
    """One row of a shard: the codes (K, T), of any integer type within int16, of one track of one song."""

    id: str
    track: str
    codec: str
    codes_KT: np.ndarray

    def reference(self, shard: str) -> str:
        """The name by which a manifest in the shard's folder names this row."""
        return f"{shard}#{self.id}/{self.track}"


def write_codes_shard(path: str | Path, rows: Iterable[CodesRow]) -> None:
    """Writes a shard, whole or not at all, holding no more than a row group in memory."""
    rows = iter(rows)
    # A dictionary of codes would hold every one of them.
    options = {"compression": "zstd", "write_page_checksum": True, "use_dictionary": ["id", "track", "codec"]}
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, SHARD_SCHEMA, **options) as writer:
        while group := list(islice(rows, ROWS_PER_GROUP)):
            writer.write_table(pa.Table.from_pylist([_row(row) for row in group], schema=SHARD_SCHEMA))


def load_codes(song: Song, track: str, codec: CodecRange) -> np.ndarray:
    """The codes of one track, int16 (K, T) with at least one codebook of ``codec`` and one frame.

    Raises Rejected with the rule ``codes_missing``, ``codes_unreadable``, ``codes_codec``, ``codes_type``,
    ``codes_shape`` or ``codes_range``.
    """
    path, member = song.codes_path(track)
    codes_KT = _load_npy(path) if member is None else _load_member(path, member, codec.name)
    if codes_KT.dtype.kind not in "iu":
        raise Rejected("codes_type", f"{path} holds {codes_KT.dtype}, not integers", codes_KT.dtype)
    if codes_KT.ndim != 2 or not 1 <= codes_KT.shape[0] <= codec.codebooks or not codes_KT.shape[1]:
        shape = f"({', '.join(map(str, codes_KT.shape))})"
        detail = f"{path} has shape {shape}, not (1 to {codec.codebooks} codebooks, frames)"
        raise Rejected("codes_shape", detail, shape)
    lowest, highest = int(codes_KT.min()), int(codes_KT.max())
    if lowest < 0 or highest >= codec.codebook_size:
        raise Rejected(
            "codes_range",
            f"{path} has codes from {lowest} to {highest}, {codec.name} has 0 to {codec.codebook_size - 1}",
            lowest if lowest < 0 else highest,
        )
    return codes_KT.astype(np.int16)


def _load_npy(path: Path) -> np.ndarray:
    try:
        # Mapped, so that a corrupt header that promises terabytes finds the file too short and allocates nothing.
        codes_KT = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise Rejected("codes_missing", f"{path} does not exist") from None
    except Exception as error:  # a corrupt header can make numpy raise almost anything
        raise Rejected("codes_unreadable", f"{path} is not a whole .npy file ({error})") from None
    if not isinstance(codes_KT, np.memmap):
        raise Rejected("codes_unreadable", f"{path} is an archive of arrays, not one .npy array")
    promised, found = codes_KT.offset + codes_KT.nbytes, path.stat().st_size
    if found != promised:  # more than the header promises: a damaged header, behind which every code would be another
        raise Rejected("codes_unreadable", f"{path} has {found} bytes where its header promises {promised}", found)
    return codes_KT


def _load_member(path: Path, member: str, codec: str) -> np.ndarray:
    id, separator, track = member.rpartition("/")
    if not separator:
        raise Rejected("codes_missing", f"{path.name}#{member} does not name a song and a track as #ID/TRACK")
    row = _shard(path, *_stamp(path)).find(id, track)
    if row.codec != codec:
        raise Rejected("codes_codec", f"{path.name}#{member} holds {row.codec} codes, not {codec}", row.codec)
    return row.codes_KT


def _stamp(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except FileNotFoundError:
        raise Rejected("codes_missing", f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise Rejected("codes_unreadable", f"{path} can't be read ({error})") from None
    return stat.st_mtime_ns, stat.st_size


def _row(row: CodesRow) -> dict:
    codes_KT = np.asarray(row.codes_KT)
    codebooks, frames = codes_KT.shape
    if codes_KT.size and not 0 <= int(codes_KT.min()) <= int(codes_KT.max()) <= np.iinfo(np.int16).max:
        raise ValueError(f"codes of {row.id}/{row.track} do not fit into int16")
    codes = np.ascontiguousarray(codes_KT, dtype="<i2").tobytes()
    return {"id": row.id, "track": row.track, "codec": row.codec, "codebooks": codebooks, "frames": frames,
            "codes": codes}  # fmt: skip


class _Shard:
    """An open shard that finds rows by song and track and keeps the last row group; raises Rejected on any fault."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = pq.ParquetFile(path, memory_map=True, page_checksum_verification=True)
            if not self._file.schema_arrow.equals(SHARD_SCHEMA):
                raise pa.ArrowInvalid("its columns are not those of a shard of codes")
            names = self._file.read(columns=["id", "track"], use_threads=False).to_pydict()
        except Exception as error:  # a corrupt footer can make pyarrow raise almost anything
            raise Rejected("codes_unreadable", f"{path} is not a whole shard of codes ({error})") from None
        self._positions = {key: i for i, key in enumerate(zip(names["id"], names["track"], strict=True))}
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._group_starts = np.cumsum([0, *sizes])
        self._group, self._rows = -1, []

    def find(self, id: str, track: str) -> CodesRow:
        """The row of one track of one song."""
        if (id, track) not in self._positions:
            raise Rejected("codes_missing", f"{self.path} has no row for {id}/{track}")
        return self.row(self._positions[id, track])

    def row(self, position: int) -> CodesRow:
        """The row at a position in the shard."""
        group = int(np.searchsorted(self._group_starts, position, side="right")) - 1
        if group != self._group:
            try:
                # One thread: every core has a process of its own, and handing over costs more than it gains.
                self._rows = self._file.read_row_group(group, use_threads=False).to_pylist()
            except Exception as error:  # as above
                raise Rejected("codes_unreadable", f"{self.path} is damaged ({error})") from None
            self._group = group
        row = self._rows[position - int(self._group_starts[group])]
        codebooks, frames, codes = row["codebooks"] or 0, row["frames"] or 0, row["codes"] or b""
        if min(codebooks, frames) < 1 or len(codes) != 2 * codebooks * frames:
            raise Rejected("codes_unreadable", f"{self.path} is damaged: {row['id']}/{row['track']} has a wrong length")
        codes_KT = np.frombuffer(codes, dtype="<i2").reshape(codebooks, frames)
        return CodesRow(row["id"], row["track"], row["codec"], codes_KT)


@lru_cache(maxsize=8)
def _shard(path: Path, modified_ns: int, size_bytes: int) -> _Shard:
    """Open shards, opened again where the file has changed."""
    return _Shard(path)
