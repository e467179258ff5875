"""Which songs stand in which document of a source: ``PREFIX.songs.parquet``, beside the tokens.

A row for each document and song in it, in the documents' order, with the columns document (its number, int64), id,
language, genres (as the manifest has them) and seconds (of audio in the document). A document that was packed from
several clips has several rows.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megatron_music.corpus.indexed import prefix_file
from megatron_music.errors import InputError
from megatron_music.files import atomic_path
from megatron_music.songs.song import Song

SCHEMA = pa.schema(
    [
        ("document", pa.int64()),
        ("id", pa.string()),
        ("language", pa.string()),
        ("genres", pa.string()),
        ("seconds", pa.float64()),
    ]
)
SUFFIX = ".songs.parquet"
_GROUP_ROWS = 1 << 14


class ContentsWriter:
    """Writes the table of a source, whole or not at all, holding no more than a row group in memory.

    ``seconds`` is the sum so far.
    """

    def __init__(self, prefix: str | os.PathLike):
        self.seconds = 0.0
        self._rows: list[dict] = []
        self._tables: list[pa.Table] = []
        self._place = atomic_path(prefix_file(prefix, SUFFIX))

    def __enter__(self) -> "ContentsWriter":
        self._writer = pq.ParquetWriter(self._place.__enter__(), SCHEMA, compression="zstd")
        return self

    def add(self, document: int, song: Song, seconds: float) -> None:
        """Notes that ``seconds`` of ``song`` stand in ``document``."""
        language, genres = song.language or "", song.genres
        self._rows.append(
            {"document": document, "id": song.id, "language": language, "genres": genres, "seconds": seconds}
        )
        self.seconds += seconds
        if len(self._rows) >= _GROUP_ROWS:
            self._flush()

    def extend(self, table: pa.Table, first_document: int) -> None:
        """Appends the table of a part whose documents are numbered from ``first_document`` on."""
        self._gather_rows()
        numbers = pc.add(table["document"], first_document)
        self._tables.append(table.set_column(table.schema.get_field_index("document"), "document", numbers))
        self.seconds += pc.sum(table["seconds"], min_count=0).as_py()
        if sum(map(len, self._tables)) >= _GROUP_ROWS:
            self._flush()

    def _gather_rows(self) -> None:
        if self._rows:
            self._tables.append(pa.Table.from_pylist(self._rows, schema=SCHEMA))
            self._rows.clear()

    def _flush(self) -> None:
        self._gather_rows()
        # One table, so that what was appended in small pieces is one row group.
        self._writer.write_table(pa.concat_tables(self._tables or [SCHEMA.empty_table()]).combine_chunks())
        self._tables.clear()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._flush()
        self._writer.close()
        self._place.__exit__(kind, error, trace)


def read_contents(prefix: str | os.PathLike, columns: list[str] | None = None) -> pa.Table:
    """The table of a source, or some of its columns; raises InputError where it is missing or not such a table."""
    path = Path(prefix_file(prefix, SUFFIX))
    with _reading(path):
        return pq.read_table(path, columns=columns or SCHEMA.names).select(columns or SCHEMA.names)


def read_songs_of_document(prefix: str | os.PathLike, document: int) -> list[dict[str, Any]]:
    """The rows of one document, found without reading the others'; none where an older build left no table."""
    path = Path(prefix_file(prefix, SUFFIX))
    if not path.is_file():
        return []
    with _reading(path):
        # A row group knows its first and last document: only those that can hold the document are read.
        return pq.read_table(path, columns=SCHEMA.names, filters=[("document", "=", document)]).to_pylist()


def read_documents_of_song(prefix: str | os.PathLike, song: str) -> list[int]:
    """Numbers of the documents that hold something of a song, rising; raises InputError where the table is missing."""
    path = Path(prefix_file(prefix, SUFFIX))
    with _reading(path):
        rows = pq.read_table(path, columns=["document"], filters=[("id", "=", song)])
    return sorted(set(rows["document"].to_pylist()))


def contents_in_batches(prefix: str | os.PathLike) -> Iterator[pa.Table]:
    """The table of a source in pieces of about a row group, none of which divides a document."""
    path = Path(prefix_file(prefix, SUFFIX))
    with _reading(path):
        file = pq.ParquetFile(path)
        left = SCHEMA.empty_table()
        for number in range(file.num_row_groups):
            rows = pa.concat_tables([left, file.read_row_group(number, columns=SCHEMA.names).cast(SCHEMA)])
            documents = rows["document"].to_numpy()
            # What the last document has in this group waits for what it has in the next.
            whole = int(np.searchsorted(documents, documents[-1])) if len(documents) else 0
            if whole:
                yield rows.slice(0, whole)
            left = rows.slice(whole)
        if len(left):
            yield left


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(path, "no such file", "build the source again") from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(path, f"is not a table of a source's songs ({error})", "build the source again") from None
