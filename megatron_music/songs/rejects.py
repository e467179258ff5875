"""Rejects: their file, and for people the table that every verb which makes some ends with, the list, and too many."""

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from megatron_music.errors import InputError
from megatron_music.files import as_utf8, atomic_path
from megatron_music.songs.song import Reject

REJECTS = "rejects.parquet"
"""In the folder of a manifest, of codes or of a corpus: what was left out."""
_FIELDS = ("id", "rule", "detail", "where", "value")
_ROWS_A_GROUP = 1 << 14


def write_rejects(path: str | Path, rejects: Iterable[Reject]) -> None:
    """Writes rejects as a Parquet table with the columns id, rule, detail, where and value, all text.

    Some thousands of them are in memory at a time.
    """
    rows = iter(rejects)
    schema = pa.schema([(name, pa.string()) for name in _FIELDS])
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while group := list(islice(rows, _ROWS_A_GROUP)):
            columns = {name: [as_utf8(getattr(row, name)) for row in group] for name in _FIELDS}
            writer.write_table(pa.table(columns, schema=schema))


def read_rejects(path: str | Path) -> list[Reject]:
    """Reads what ``write_rejects`` wrote; raises InputError where the file is missing or not such a table."""
    return list(stream_rejects(path))


def stream_rejects(path: str | Path) -> Iterator[Reject]:
    """Yields what ``read_rejects`` reads, some thousands of them in memory at a time."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=list(_FIELDS)):
                columns = batch.to_pydict()
                yield from (Reject(*row) for row in zip(*(columns[name] for name in _FIELDS), strict=True))
    except FileNotFoundError:
        raise InputError(path, "no such file", "name a rejects.parquet") from None
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(path, f"is not a table of rejects ({error})", "name a rejects.parquet") from None


def rejects_by_rule(counts: Mapping[str, int]) -> list[str]:
    """Lines of a table: how many songs were rejected in all, and by each rule."""
    return [f"rejected     {sum(counts.values()):,}", *rows_by_rule(counts)]


def rows_by_rule(counts: Mapping[str, int]) -> list[str]:
    """A line for each rule and its count, below the line that they belong to."""
    return [f"  {rule:<18} {count:,}" for rule, count in sorted(counts.items())]


def all_rejected(rejects: Iterable[Reject]) -> str | None:
    """Why no song is left: the commonest rule with an example of it; None where nothing was rejected."""
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for reject in rejects:
        counts[reject.rule] += 1
        examples.setdefault(reject.rule, reject.detail)
    if not counts:
        return None
    rule, count = counts.most_common(1)[0]
    return f"all {counts.total():,} songs were rejected, {count:,} by {rule} ({examples[rule]})"


def where_to_read(folder: str | Path, rejected: int) -> list[str]:
    """The line below such a table that says how to read the reasons; none where nothing was rejected."""
    return [f"  each with its reason: megatron-music rejects {shlex.quote(str(folder))}"] if rejected else []


def refuse_too_many(where: object, rejected: int, songs: int, most_share: float) -> None:
    """Raises InputError where more than ``most_share`` of ``songs`` were rejected, once all else is done."""
    if songs and rejected / songs > most_share:
        what = f"{rejected:,} of {songs:,} songs were rejected, a larger share than --max-rejected {most_share:g}"
        raise InputError(where, what, "what was written is whole and can be used; mend the songs or raise the share")


def reject_lines(path: str | Path, rule: str | None = None) -> Iterator[str]:
    """One line for each reject of a table or of the folder that holds one: rule, id, reason, place, between tabs.

    Args:
        rule: only those of this rule.

    Raises:
        InputError: there is no such table, or no such rule in it.
    """
    path = Path(path)
    table = path / REJECTS if path.is_dir() else path
    rules: set[str] = set()
    for reject in stream_rejects(table):
        rules.add(reject.rule)
        if rule in (None, reject.rule):
            fields = (reject.rule, reject.id, reject.detail, reject.where)
            yield "\t".join(" ".join(field.split()) for field in fields)
    if rule is not None and rule not in rules:
        there = f"there are {', '.join(sorted(rules))}" if rules else "nothing was rejected"
        raise InputError(table, f"holds no reject by {rule}", there)
