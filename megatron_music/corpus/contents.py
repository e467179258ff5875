"""Which songs stand in which document of a source: ``PREFIX.songs.parquet``, beside the tokens.

A row for each document and song in it, in the documents' order, with the columns document (its number, int64), id,
language, genres (as the manifest has them) and seconds (of audio in the document). A document that was packed from
several clips has several rows.
"""

import os
from pathlib import Path
from types import TracebackType

import pyarrow as pa
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
        rows = table.to_pylist()
        self.seconds += sum(row["seconds"] for row in rows)
        self._rows += [row | {"document": row["document"] + first_document} for row in rows]
        if len(self._rows) >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA))
        self._rows.clear()

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
    try:
        return pq.read_table(path, columns=columns or SCHEMA.names).select(columns or SCHEMA.names)
    except FileNotFoundError:
        raise InputError(path, "no such file", "build the source again") from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(path, f"is not a table of a source's songs ({error})", "build the source again") from None
