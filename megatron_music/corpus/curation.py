"""The stage of a build that leaves near-duplicates out, before any source is built.

All songs of all manifests of the spec are compared, but training songs that no source can make a document of: such a
song is never kept in another's place. Songs that have opted out come first, so that their copies go with them; then
held-out songs, then those that more sources can use (the upload with lyrics before the one without), then those with
more of ``prefer``, then those further up in the spec's manifests. A song is left out if it is near one that is kept. So
no two songs of the corpus are near each other, and none of the training songs is near a held-out one. Songs of one id
in two manifests are one song and never left out for each other. What is near is estimated: pairs about the threshold
may fall to either side.

``OUT/near_duplicates.parquet`` names every song that is left out, with the song that is kept for it and their
similarity. Signatures are computed in parts that are whole or absent; a table whose inputs have not changed is kept.
The stage costs about as much time as building all sources, since it asks each of them what it can use.
"""

import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_music import __version__
from megatron_music.corpus import fingerprint
from megatron_music.corpus.duplicates import (
    NearDuplicateOptions,
    SignatureFile,
    distinct_ngrams,
    greedy_choice,
    near_pairs,
    signature,
    typical_similarity,
)
from megatron_music.corpus.song_documents import document_context, part_songs, song_documents
from megatron_music.corpus.spec import BuildSpec, HeldOut, LeftOut, SourceSpec
from megatron_music.documents.document import DocumentContext
from megatron_music.errors import InputError
from megatron_music.files import atomic_path
from megatron_music.parallel import Workers
from megatron_music.progress import console, track
from megatron_music.songs.manifest import manifest_field, read_manifest
from megatron_music.songs.song import Reject, Rejected, Song

TABLE = "near_duplicates.parquet"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("manifest", pa.string()),
        ("rule", pa.string()),
        ("kept_id", pa.string()),
        ("kept_manifest", pa.string()),
        ("similarity", pa.float32()),
    ]
)
_FEWEST_TO_JUDGE = 50
_PART_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("manifest", pa.int32()),
        ("opted_out", pa.bool_()),
        ("held_out", pa.bool_()),
        ("uses", pa.int32()),
        ("preference", pa.float64()),
        ("signature", pa.binary()),
    ]
)


@dataclass(frozen=True)
class _Part:
    """Songs of one manifest, and what a worker needs to sign them."""

    path: Path
    corpus: Path
    manifest: int
    songs: tuple[Song, ...]
    sources: tuple[SourceSpec, ...]
    held_out: HeldOut
    opted_out: frozenset[str]
    codec: str
    seed: int
    identity: str
    options: NearDuplicateOptions


def leave_out_near_duplicates(plan: BuildSpec, out: Path, work: Path, workers: Workers) -> BuildSpec:
    """The plan with its near-duplicates named, found now or by an earlier run; ``work`` is for parts.

    Raises InputError where no song has the track to compare, or where unrelated songs are near each other.
    """
    if plan.near_duplicates is None:
        (out / TABLE).unlink(missing_ok=True)
        return plan
    inputs = _fingerprint(plan)
    if not _is_current(out / TABLE, inputs):
        folder = work / f"near_duplicates-{inputs}.parts"
        folder.mkdir(parents=True, exist_ok=True)
        for _ in track(workers.map(_sign_part, _missing_parts(plan, out, folder)), "signing songs"):
            pass
        _write_table(out / TABLE, _choose(plan, folder), inputs)
        shutil.rmtree(folder)
    return replace(plan, left_out=_read_table(plan, out / TABLE))


def _fingerprint(plan: BuildSpec) -> str:
    """Of all that decides which songs are left out."""
    manifests = [[str(path), survey.content, survey.files, survey.opted_out] for path, survey in plan.surveys.items()]
    sources = [
        [source.name, str(source.manifest), source.task, source.split]
        + [some.model_dump(mode="json") for some in (source.filters, source.options)]
        for source in plan.sources
    ]
    options = plan.near_duplicates.model_dump(mode="json")
    inputs = [plan.identity(), astuple(plan.held_out), manifests, sources, options, __version__]
    return fingerprint.of_value(inputs)


def _is_current(path: Path, inputs: str) -> bool:
    try:
        return (pq.read_schema(path).metadata or {}).get(b"fingerprint") == inputs.encode()
    except (pa.ArrowException, OSError):
        return False


def _missing_parts(plan: BuildSpec, out: Path, folder: Path) -> Iterator[_Part]:
    """The parts that no earlier run has finished, of all songs in the order of the spec's manifests."""
    options, number = plan.near_duplicates, 0
    for index, manifest in enumerate(plan.surveys):
        sources = tuple(source for source in plan.sources if source.manifest == manifest)
        songs = (song for song in read_manifest(manifest) if isinstance(song, Song))
        while some := tuple(islice(songs, part_songs(sum(plan.surveys[manifest].songs.values())))):
            path = folder / f"{number:06d}.parquet"
            if not path.is_file():
                opted_out = frozenset(song.id for song in some if plan.opt_out.line_for(song.id))
                yield _Part(
                    path,
                    out,
                    index,
                    some,
                    sources,
                    plan.held_out,
                    opted_out,
                    plan.codec,
                    plan.seed,
                    folder.name,
                    options,
                )
            number += 1


def _sign_part(part: _Part) -> None:
    """Writes a row for every song of the part that is to be compared."""
    context = document_context(part.corpus, part.codec, part.identity)
    rows = [row for song in part.songs if (row := _signed(song, part, context)) is not None]
    with atomic_path(part.path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=_PART_SCHEMA), temporary)


def _signed(song: Song, part: _Part, context: DocumentContext) -> dict[str, Any] | None:
    """The row of a song; None where it has no codes to compare or is a training song that no source can use."""
    options, split = part.options, part.held_out.split(song.id)
    try:
        ngrams_U = distinct_ngrams(context.codes(song, options.track)[0], options.ngram)
    except Rejected:
        return None
    if len(ngrams_U) < options.min_ngrams:
        return None
    of_split = [source for source in part.sources if source.split == split]
    uses = sum(not isinstance(song_documents(song, source, part.seed, context), Reject) for source in of_split)
    opted_out = song.id in part.opted_out
    if not uses and split == "train" and not opted_out:
        return None
    return {
        "id": song.id,
        "manifest": part.manifest,
        "opted_out": opted_out,
        "held_out": split == "held_out",
        "uses": uses,
        "preference": _preference(song, options.prefer),
        "signature": signature(ngrams_U, options.permutations).tobytes(),
    }


def _preference(song: Song, field: str | None) -> float:
    """The field's number, to be compared; a song without one that is finite comes last."""
    value = None if field is None else manifest_field(song, field)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Compared and not converted: JSON spells whole numbers that no float can hold.
    return float(value) if is_number and abs(value) < sys.float_info.max else -math.inf


def _choose(plan: BuildSpec, folder: Path) -> list[tuple]:
    """The rows of the table, in the order of the songs."""
    options = plan.near_duplicates
    paths = sorted(folder.glob("*.parquet"))
    count = sum(pq.read_metadata(path).num_rows for path in paths)
    if not count:
        what = f"no song has codes of its {options.track} to compare"
        raise InputError(f"{plan.path}: near_duplicates.track", what, "name another track")
    tables = []
    with SignatureFile(folder / "signatures.bin", options.permutations, count) as signatures:
        for path in paths:
            table = pq.read_table(path)
            column = table.column("signature").to_pylist()
            signatures.append(np.frombuffer(b"".join(column), "<u2").reshape(len(column), options.permutations))
            tables.append(table.drop_columns(["signature"]))
        songs = pa.concat_tables(tables).combine_chunks()
        opted_out_N, held_out_N = (songs[name].to_numpy() for name in ("opted_out", "held_out"))
        order_N = np.lexsort((-songs["preference"].to_numpy(), -songs["uses"].to_numpy(), ~held_out_N, ~opted_out_N))
        signatures.reorder(order_N)
        _check_typical(plan, signatures)
        pairs = near_pairs(signatures, options.similarity)
    ids = songs["id"].take(pa.array(order_N)).chunk(0)
    opted_out_N, held_out_N = opted_out_N[order_N], held_out_N[order_N]
    # One that has opted out is left out anyway, and must stay to be compared with.
    left_out = greedy_choice(pairs, lambda first, second: ids[first] != ids[second] and not opted_out_N[second])
    manifests = [str(path) for path in plan.surveys]
    manifest_of = songs["manifest"].to_numpy()[order_N]
    songs_in_all = sum(sum(survey.songs.values()) for survey in plan.surveys.values())
    console.print(f"near-duplicates: {len(left_out):,} of {count:,} songs compared are left out; the other "
                  f"{songs_in_all - count:,} lines have no use, or too few codes of the {options.track}")  # fmt: skip
    rows = []
    for second in sorted(left_out, key=order_N.__getitem__):
        first, similarity = left_out[second]
        rule = "near_held_out" if held_out_N[first] and not held_out_N[second] else "near_duplicate"
        rule = "near_opted_out" if opted_out_N[first] else rule
        pair = [(ids[song].as_py(), manifests[manifest_of[song]]) for song in (second, first)]
        rows.append((*pair[0], rule, *pair[1], similarity))
    return rows


def _check_typical(plan: BuildSpec, signatures: SignatureFile) -> None:
    """Refuses a threshold that would leave out songs that have nothing to do with each other."""
    if signatures.songs < _FEWEST_TO_JUDGE:
        return
    typical = typical_similarity(signatures)
    if typical >= plan.near_duplicates.similarity:
        what = f"half of all pairs of songs have {typical:.2f} of their n-grams in common"
        raise InputError(f"{plan.path}: near_duplicates.similarity", what, "raise it, or raise ngram")


def _write_table(path: Path, rows: list[tuple], inputs: str) -> None:
    columns = zip(*rows, strict=True) if rows else [[]] * len(SCHEMA)
    arrays = [pa.array(column, kind) for column, kind in zip(columns, SCHEMA.types, strict=True)]
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(arrays, schema=SCHEMA.with_metadata({"fingerprint": inputs})), temporary)


def _read_table(plan: BuildSpec, path: Path) -> dict[Path, dict[str, LeftOut]]:
    """The songs that are left out by manifest and id."""
    left_out: dict[Path, dict[str, LeftOut]] = {manifest: {} for manifest in plan.surveys}
    by_name = {str(manifest): songs for manifest, songs in left_out.items()}
    for batch in pq.ParquetFile(path).iter_batches():
        for row in batch.to_pylist():
            by_name[row["manifest"]][row["id"]] = LeftOut(row["rule"], row["kept_id"], row["similarity"])
    return left_out
