"""One HTML page about a corpus, with nothing in it that has to be fetched: its numbers, its rejects, and documents
drawn at random to read and to listen to.
"""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from megatron_music.audio.codec import Codec
from megatron_music.corpus.build import CODEC
from megatron_music.corpus.contents import read_songs_of_document
from megatron_music.corpus.inspect import DocumentReader, Part, tokens_by_group, tokens_in_words
from megatron_music.corpus.listen import audio_spans, codec_range, decode_span, load_codec_of_corpus, without_clipping
from megatron_music.corpus.shuffle import seeded_generator
from megatron_music.corpus.statistics import CorpusNumbers, Distribution, RejectedBy, Share, measure_corpus
from megatron_music.errors import InputError
from megatron_music.files import write_text
from megatron_music.pages import render
from megatron_music.progress import track
from megatron_music.tables import short_count
from megatron_music.vocabulary.kinds import LOSS_GROUPS

REPORT = "report.html"
MOST_ROWS = 30
"""Tags, languages and songs of a document that a table lists; the rest is one row."""
LISTEN_SECONDS, SPAN_SECONDS = 24.0, 6.0
"""Audio of a document: at most the first, shared out to the starts of its spans, each of which gets at least the
second."""
MOST_CHARACTERS = 20_000
_BARS = 48
_PAGE = Path(__file__).parent / "page"


@dataclass(frozen=True)
class Row:
    """A row of a table: a name and what it has; ``share`` of the largest row's tokens."""

    name: str
    songs: int
    seconds: float
    tokens: int
    share: float


@dataclass(frozen=True)
class Chart:
    """A histogram: the height of each bar, 0 to 1, with what it stands for; ``ticks`` are (place 0 to 1, label)."""

    bars: list[tuple[float, str]]
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Lengths:
    """The lengths of one source: a few quantiles, the greatest, and the histogram."""

    quantiles: list[float]
    largest: float
    chart: Chart


@dataclass(frozen=True)
class Player:
    """A clip as MP3 in base64; a stereo one has ``left`` and ``right``, the names of its tracks."""

    audio: str
    seconds: float
    of_seconds: float
    left: str = ""
    right: str = ""


@dataclass(frozen=True)
class Reading:
    """A document to read and to listen to; ``parts`` are its parts, each with a player or None."""

    source: str
    number: int
    of: int
    tokens: str
    songs: list[dict[str, Any]]
    more_songs: int
    parts: list[tuple[Part, Player | None]]
    tokens_left_out: int
    silence: str


def write_report(
    corpus: str | Path,
    out: str | Path | None = None,
    documents: int = 20,
    seed: int = 0,
    weights: str | Path | None = None,
    audio: bool = True,
) -> Path:
    """Writes the page (``CORPUS/report.html`` by default), whole or not at all, and returns its path.

    The same corpus, seed and options give the same page. Audio comes through the codec in the corpus folder or that of
    ``weights``; where there is neither, the page says so. Raises InputError where the corpus holds no source or a file
    of it is damaged.
    """
    corpus = Path(corpus)
    out = corpus / REPORT if out is None else Path(out)
    if out.is_dir():
        raise InputError(out, "is a folder", "name a file for the page")
    numbers = measure_corpus(corpus, seed)
    codec, silence = _codec(corpus, next(iter(numbers.sources)), weights, audio)
    readings = _readings(corpus, numbers, documents, seed, codec, silence)
    page = render(
        _PAGE / "report.html",
        (_PAGE / "report.js").read_text(encoding="utf-8"),
        {"count": _count, "hours": _hours, "short": short_count, "seconds": _seconds},
        corpus=corpus.resolve().name,
        seed=seed,
        silence=silence,
        readings=readings,
        **_tables(numbers),
    )
    write_text(out, page)
    return out


def _codec(corpus: Path, source: str, weights: str | Path | None, audio: bool) -> tuple[Codec | None, str]:
    """The codec, or None and what the page says instead of sound."""
    if not audio:
        return None, "This page was made without audio (--no-audio)."
    reader = DocumentReader(corpus / source)
    if weights is None and not (corpus / CODEC).is_dir():
        name = codec_range(reader).name
        return None, f"To hear the documents, make this page with the weights of {name}: report CORPUS --weights ..."
    return load_codec_of_corpus(reader, weights), ""


def _tables(numbers: CorpusNumbers) -> dict[str, Any]:
    """What the template shows of the numbers."""
    abouts = {name: source.about for name, source in numbers.sources.items()}
    tasks: dict[str, Share] = {}
    for about in abouts.values():
        held_out = ", held out" if about.get("split") == "held_out" else ""
        task = tasks.setdefault(f"{about.get('task', 'unknown')}{held_out}", Share())
        task.add(about.get("songs_used", 0), about.get("seconds", 0.0), about["tokens"])
    first = next(iter(abouts.values()))
    return {
        "abouts": abouts,
        "vocabulary": first.get("vocabulary", {}).get("name", "unknown"),
        "codec": first.get("codec", {}).get("name", "unknown"),
        "documents": sum(about["documents"] for about in abouts.values()),
        "tokens": sum(about["tokens"] for about in abouts.values()),
        "seconds": sum(about.get("seconds", 0.0) for about in abouts.values()),
        "largest": max(about["tokens"] for about in abouts.values()),
        "tasks": _rows(tasks),
        "languages": _rows(numbers.languages, "not stated"),
        "tags": _rows(numbers.tags, "no tags"),
        "groups": [group for group in LOSS_GROUPS if any(tokens_by_group(about)[group] for about in abouts.values())],
        "by_group": {name: tokens_by_group(about) for name, about in abouts.items()},
        "token_lengths": _lengths({name: source.tokens for name, source in numbers.sources.items()}, "tokens"),
        "second_lengths": _lengths({name: source.seconds for name, source in numbers.sources.items()}, "s"),
        "rejects": numbers.rejects,
        "near_duplicates": numbers.near_duplicates,
        "values": {rule: _typical(rejected) for rule, rejected in (numbers.rejects or {}).items()},
    }


def _rows(shares: dict[str, Share], nameless: str = "") -> list[Row]:
    """The shares with the most tokens first, and one row for what is beyond ``MOST_ROWS``."""
    ordered = sorted(shares.items(), key=lambda item: (-item[1].tokens, item[0]))
    largest = max((share.tokens for share in shares.values()), default=0) or 1
    rows = [
        Row(name or nameless, share.songs, share.seconds, round(share.tokens), share.tokens / largest)
        for name, share in ordered[:MOST_ROWS]
    ]
    rest = [share for _, share in ordered[MOST_ROWS:]]
    if rest:
        songs, seconds = sum(share.songs for share in rest), sum(share.seconds for share in rest)
        rows.append(Row(f"{len(rest):,} more", songs, seconds, round(sum(share.tokens for share in rest)), 0.0))
    return rows


def _lengths(distributions: dict[str, Distribution | None], unit: str) -> dict[str, Lengths]:
    """Each source's lengths, drawn over one common logarithmic axis; sources without any are left out."""
    known = {name: made for name, made in distributions.items() if made is not None and made.largest > 0}
    if not known:
        return {}
    shortest = max(min(made.smallest for made in known.values()), 1.0)
    longest = max(made.largest for made in known.values())
    edges = np.geomspace(shortest / 1.1, max(longest, shortest) * 1.1, _BARS + 1)
    ticks = _ticks(edges[0], edges[-1])
    drawn = {}
    for name, made in known.items():
        counts = made.histogram(edges)
        bars = [
            (float(count / max(counts.max(), 1)), f"{low:,.0f} to {high:,.0f} {unit}: {count:,}")
            for count, low, high in zip(counts, edges, edges[1:], strict=False)
        ]
        quantiles = [made.quantile(share) for share in (0.05, 0.5, 0.95)]
        drawn[name] = Lengths(quantiles, made.largest, Chart(bars, ticks))
    return drawn


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers on a logarithmic axis from ``low`` to ``high``: the place of each, 0 to 1, and its label."""
    digits = (1, 2, 5) if high > 10 * low else range(1, 10)
    places = {digit * 10**power: np.log(digit * 10**power / low) / np.log(high / low)
              for power in range(10) for digit in digits}  # fmt: skip
    # A label closer to an end would be cut off.
    return [(float(place), f"{value:,}") for value, place in places.items() if 0.02 < place < 0.98]


def _typical(rejected: RejectedBy) -> str:
    """What a rule found: the median and the range of numbers, the most frequent of words."""
    if not rejected.values:
        return ""
    try:
        found = np.array([float(value) for value in rejected.values])
    except ValueError:
        words, counts = np.unique(rejected.values, return_counts=True)
        order = np.argsort(-counts, kind="stable")[:5]
        return ", ".join(f"{words[at]} ({counts[at]:,})" for at in order)
    if found.min() == found.max():
        return f"{found.min():g}"
    return f"{np.median(found):g} ({found.min():g} to {found.max():g})"


def _readings(
    corpus: Path, numbers: CorpusNumbers, documents: int, seed: int, codec: Codec | None, silence: str
) -> list[Reading]:
    """Documents of all sources, drawn without replacement."""
    drawn = _drawn({name: len(made.source) for name, made in numbers.sources.items()}, documents, seed)
    readers = {name: DocumentReader(corpus / name) for name in dict(drawn)}
    work = track(drawn, "reading and decoding documents" if codec else "reading documents")
    return [_reading(readers[name], number, codec, silence) for name, number in work]


def _drawn(sizes: dict[str, int], documents: int, seed: int) -> list[tuple[str, int]]:
    """(source, number) of the documents to show: as many of each source as can be, smaller sources giving all."""
    quotas = dict.fromkeys(sizes, 0)
    left = min(documents, sum(sizes.values()))
    while left:
        for name in [name for name, size in sizes.items() if quotas[name] < size][:left]:
            quotas[name] += 1
            left -= 1
    drawn = []
    for name, quota in quotas.items():
        chosen = seeded_generator("report", seed, name).choice(sizes[name], quota, replace=False)
        drawn += [(name, int(number)) for number in np.sort(chosen)]
    return drawn


def _reading(reader: DocumentReader, number: int, codec: Codec | None, silence: str) -> Reading:
    ids, kinds = reader.tokens(number)
    parts = reader.parts(ids, kinds)
    players: dict[int, Player] = {}
    if codec:
        try:
            players = _players(ids, kinds, parts, reader, codec)
        except ValueError as error:
            silence = f"This document can't be decoded: {error}."
    songs = read_songs_of_document(reader.prefix, number)
    shown = list(_shown(parts))
    return Reading(
        source=reader.prefix.name,
        number=number,
        of=len(reader.source),
        tokens=tokens_in_words(kinds),
        songs=songs[:MOST_ROWS],
        more_songs=max(len(songs) - MOST_ROWS, 0),
        parts=[(part, players.get(part.stop) if part.form == "audio" else None) for part in shown],
        tokens_left_out=len(ids) - max((part.stop for part in shown), default=0),
        silence=silence if any(part.form == "audio" for part in parts) else "",
    )


def _shown(parts: list[Part]) -> Iterator[Part]:
    """The parts up to ``MOST_CHARACTERS`` of words, and the problems beyond."""
    written = 0
    for part in parts:
        if written < MOST_CHARACTERS or part.form == "problem":
            yield part
        written += len(part.words)


def _players(
    ids: np.ndarray, kinds: np.ndarray, parts: list[Part], reader: DocumentReader, codec: Codec
) -> dict[int, Player]:
    """The starts of a document's spans of audio, by the token at which a span ends."""
    spans = audio_spans(ids, kinds, parts, codec_range(reader))
    seconds_each = max(SPAN_SECONDS, LISTEN_SECONDS / max(len(spans), 1))
    players, left = {}, round(LISTEN_SECONDS * codec.frames_per_second)
    for span in spans:
        frames = min(span.frames, left, round(seconds_each * codec.frames_per_second))
        if not frames:
            continue
        left -= frames
        sounds = without_clipping(decode_span(span, codec, frames))
        names = list(sounds) if len(sounds) == 2 else ["", ""]
        rate = codec.frames_per_second
        players[span.stop] = Player(
            _mp3(np.stack(list(sounds.values()), 1), codec.sample_rate), frames / rate, span.frames / rate, *names
        )
    return players


def _mp3(samples_SC: np.ndarray, sample_rate: int) -> str:
    """MP3, which every browser plays, in base64."""
    stream = io.BytesIO()
    soundfile.write(stream, samples_SC, sample_rate, format="MP3", compression_level=0.7)
    return base64.b64encode(stream.getvalue()).decode()


def _count(number: float) -> str:
    return f"{number:,.0f}"


def _hours(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.0f}" if hours >= 1000 else f"{hours:,.2f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.1f}"
