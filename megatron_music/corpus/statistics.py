"""The numbers of a corpus: from the sidecars, the lengths in the indices, the tables of songs and the rejects.

All of it is read in pieces, and what is kept grows with the languages, tags and rules of a corpus, not with its songs.
"""

import hashlib
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_music.corpus.contents import SUFFIX, contents_in_batches
from megatron_music.corpus.curation import TABLE as NEAR_DUPLICATES
from megatron_music.corpus.indexed import IndexedSource, prefix_file
from megatron_music.corpus.inspect import sources_of_corpus
from megatron_music.errors import InputError
from megatron_music.progress import track
from megatron_music.songs.rejects import REJECTS, stream_rejects
from megatron_music.songs.song import Reject, split_tags

EXAMPLES = 5
_VALUES_KEPT = 10_000
_CHUNK = 1 << 20


class Distribution:
    """How often each length occurs, in steps of ``step``; lengths of ``bins`` steps and more count as one."""

    def __init__(self, step: float, bins: int = 1 << 19):
        self.step, self.total = step, 0
        self.smallest, self.largest = float("inf"), 0.0
        self.counts = np.zeros(bins, np.int64)

    def add(self, lengths: np.ndarray) -> None:
        """Counts lengths (N,) of 0 and more."""
        if not len(lengths):
            return
        bins = np.clip(np.rint(np.asarray(lengths) / self.step), 0, len(self.counts) - 1).astype(np.int64)
        self.counts += np.bincount(bins, minlength=len(self.counts))
        self.total += len(lengths)
        self.smallest = min(self.smallest, float(np.min(lengths)))
        self.largest = max(self.largest, float(np.max(lengths)))

    def quantile(self, share: float) -> float:
        """The smallest length that ``share`` of all lengths do not exceed, to within half a step."""
        place = int(np.searchsorted(np.cumsum(self.counts), share * self.total))
        return min(place * self.step, self.largest)

    def histogram(self, edges: np.ndarray) -> np.ndarray:
        """Lengths in each of the half-open intervals between ``edges``, int64 (len(edges) - 1,)."""
        ends = np.concatenate([[0], np.cumsum(self.counts)])
        places = np.clip(np.ceil(np.asarray(edges) / self.step), 0, len(self.counts)).astype(np.int64)
        return np.diff(ends[places])


@dataclass
class Share:
    """What one language, tag or task has of a corpus; ``songs`` are rows of the tables of songs."""

    songs: int = 0
    seconds: float = 0.0
    tokens: float = 0.0

    def add(self, songs: int, seconds: float, tokens: float) -> None:
        """Adds to all three."""
        self.songs, self.seconds, self.tokens = self.songs + songs, self.seconds + seconds, self.tokens + tokens


@dataclass
class SourceNumbers:
    """One source: its files, its documents' lengths in tokens, and the seconds of each song in them."""

    source: IndexedSource
    tokens: Distribution
    seconds: Distribution | None

    @property
    def about(self) -> dict:
        """Its sidecar."""
        return self.source.sidecar


@dataclass
class RejectedBy:
    """The songs that one rule rejected; ``drawn`` are a random choice of them by the numbers that they drew."""

    count: int = 0
    sources: Counter = field(default_factory=Counter)
    values: list[str] = field(default_factory=list)
    drawn: dict[bytes, Reject] = field(default_factory=dict)

    def add(self, reject: Reject, seed: int) -> None:
        """Counts a reject. The songs that draw the smallest numbers are examples, each of them once."""
        self.count += 1
        self.sources[reject.where.partition(": ")[0]] += 1
        if reject.value and len(self.values) < _VALUES_KEPT:
            self.values.append(reject.value)
        number = hashlib.blake2b(repr((seed, reject.id, reject.detail)).encode(), digest_size=8).digest()
        if len(self.drawn) < EXAMPLES or number < max(self.drawn):
            self.drawn[number] = reject
            if len(self.drawn) > EXAMPLES:
                del self.drawn[max(self.drawn)]

    @property
    def examples(self) -> list[Reject]:
        """At most ``EXAMPLES`` different ones."""
        return [reject for _, reject in sorted(self.drawn.items())]


@dataclass
class NearDuplicates:
    """Songs that were left out for others: how many, for how many, the most for one, and a random choice of them."""

    left_out: int
    kept: int
    most_for_one: int
    examples: list[dict]


@dataclass
class CorpusNumbers:
    """All numbers of a corpus; rejects and near-duplicates are None where the build wrote none."""

    sources: dict[str, SourceNumbers]
    languages: dict[str, Share]
    tags: dict[str, Share]
    rejects: dict[str, RejectedBy] | None
    near_duplicates: NearDuplicates | None


def measure_corpus(corpus: str | Path, seed: int = 0) -> CorpusNumbers:
    """Measures a corpus; ``seed`` is for the examples. Raises InputError where there is no source, or a damaged one."""
    corpus = Path(corpus)
    numbers = CorpusNumbers({}, {}, {}, None, None)
    for name, source in track(list(sources_of_corpus(corpus).items()), "measuring sources"):
        numbers.sources[name] = _measure_source(source, numbers)
    if (corpus / REJECTS).is_file():
        numbers.rejects = _measure_rejects(corpus / REJECTS, seed)
    if (corpus / NEAR_DUPLICATES).is_file():
        numbers.near_duplicates = _measure_near_duplicates(corpus / NEAR_DUPLICATES, seed)
    return numbers


def _measure_source(source: IndexedSource, numbers: CorpusNumbers) -> SourceNumbers:
    tokens = Distribution(1)
    for start in range(0, len(source), _CHUNK):
        tokens.add(source.lengths[start : start + _CHUNK])
    if not prefix_file(source.prefix, SUFFIX).is_file():
        return SourceNumbers(source, tokens, None)
    seconds = Distribution(0.1)
    for songs in contents_in_batches(source.prefix):
        seconds.add(songs["seconds"].to_numpy())
        shares = pa.table(
            {
                "language": songs["language"],
                "genres": songs["genres"],
                "seconds": songs["seconds"],
                "tokens": _tokens_of_songs(songs, source),
            }
        )
        for language, *share in _sums(shares, "language"):
            numbers.languages.setdefault(language, Share()).add(*share)
        for genres, *share in _sums(shares, "genres"):
            for tag in set(split_tags(genres)) or {""}:
                numbers.tags.setdefault(tag, Share()).add(*share)
    return SourceNumbers(source, tokens, seconds)


def _tokens_of_songs(songs: pa.Table, source: IndexedSource) -> np.ndarray:
    """Tokens of each row's song, float64: those of its document, shared out by seconds, or evenly without audio."""
    documents, seconds = songs["document"].to_numpy(), songs["seconds"].to_numpy()
    if len(documents) and not 0 <= documents.min() <= documents.max() < len(source):
        what = f"names document {documents.max()} of {len(source)}"
        raise InputError(prefix_file(source.prefix, SUFFIX), what, "build the source again")
    _, group = np.unique(documents, return_inverse=True)
    of_document, rows = np.bincount(group, seconds)[group], np.bincount(group)[group]
    parts = np.divide(seconds, of_document, out=1 / rows, where=of_document > 0)
    return source.lengths[documents] * parts


def _sums(table: pa.Table, column: str) -> Iterator[tuple[str, int, float, float]]:
    """Each value of a column with its rows, seconds and tokens."""
    wanted = [("seconds", "count"), ("seconds", "sum"), ("tokens", "sum")]
    for row in table.group_by(column).aggregate(wanted).to_pylist():
        yield row[column] or "", row["seconds_count"], row["seconds_sum"], row["tokens_sum"]


def _measure_rejects(path: Path, seed: int) -> dict[str, RejectedBy]:
    """The rejects by rule, the rule with the most of them first."""
    rules: dict[str, RejectedBy] = {}
    for reject in stream_rejects(path):
        rules.setdefault(reject.rule, RejectedBy()).add(reject, seed)
    return dict(sorted(rules.items(), key=lambda item: (-item[1].count, item[0])))


def _measure_near_duplicates(path: Path, seed: int) -> NearDuplicates:
    try:
        table = pq.read_table(path, columns=["id", "kept_id", "kept_manifest", "similarity"])
        clusters = table.group_by(["kept_id", "kept_manifest"]).aggregate([("id", "count")])["id_count"].to_numpy()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise InputError(path, f"is not a table of near-duplicates ({error})", "build the corpus again") from None
    chosen = random.Random(seed).sample(range(len(table)), min(EXAMPLES, len(table)))
    return NearDuplicates(
        len(table), len(clusters), int(clusters.max(initial=0)), table.take(sorted(chosen)).to_pylist()
    )
