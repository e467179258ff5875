"""Does a model follow its texts? How much the loss of audio tokens rises behind another song's lyrics and tags.

Every text before a document's audio (header and segments' texts) is put in the place of that of another held-out song:
header for header, segment for segment. The audio stays as it is, and the same audio tokens are scored behind their own
text and behind the other's. Documents that are longer than the context are cut as training cuts them, so that later
windows know only the texts that stand in them. Text-prepend models stop following after about 3,000 audio tokens of a
song (deck, lessons); that is why the rise is told by position in the song's audio.

Documents of the same lines (takes of one song, whatever their tags and sections) are one song: they never exchange
texts, and intervals are over songs.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.errors import InputError
from megatron_music.evaluation.intervals import Interval, mean_interval
from megatron_music.evaluation.loss import check_vocabulary, window_nats
from megatron_music.evaluation.validity import names_of_ranges
from megatron_music.generation.models import ModelFolder
from megatron_music.progress import track
from megatron_music.vocabulary.kinds import AUDIO_KINDS, Kind

POSITION_EDGES = (0, 256, 1000, 3000, 6000)
"""Positions in a song's audio, in audio ids, at which ranges begin."""
_NO_WORDS = re.compile(r"\[Genre\][^\n]*|\[[^\]\n]*\]")
"""Tags, and labels such as ``[verse]``."""


@dataclass(frozen=True)
class TextDocument:
    """A document taken apart.

    Attributes:
        runs_N: for each id the number of the text run that it stands in, or -1: only runs before some audio count.
        texts: the ids of each run; the first holds the header, where there is one.
        song: number of the song whose lines it has.
    """

    number: int
    ids: np.ndarray
    kinds: np.ndarray
    runs_N: np.ndarray
    texts: list[np.ndarray]
    song: int


@dataclass(frozen=True)
class Following:
    """Nats of audio tokens by document, bucket of position and kind, float64 (D, P, K), and what they are of.

    Attributes:
        rise_DPK: nats behind another's text less those behind their own, means over the pairings.
        tokens_DPK: audio tokens that were scored behind both.
        audio_nats_D, audio_tokens_D: of all audio tokens of each document, behind its own text.
        song_D: number of the song that each document is of.
        documents: their numbers in the source.
    """

    rise_DPK: np.ndarray
    tokens_DPK: np.ndarray
    audio_nats_D: np.ndarray
    audio_tokens_D: np.ndarray
    song_D: np.ndarray
    documents: list[int]

    @property
    def songs(self) -> int:
        """Songs of different words."""
        return len(np.unique(self.song_D))

    def rise(self, first_bucket: int = 0) -> Interval | None:
        """Mean rise an audio token from a bucket on; None where no token was scored behind another's text."""
        return self._mean(np.s_[:, first_bucket:, :])

    def as_dict(self) -> dict[str, Any]:
        """``rise`` with its interval, ``by_position``, ``by_kind``, and how many ``documents`` and ``songs``."""
        positions = {
            name: self._mean(np.s_[:, at : at + 1, :]) for at, name in enumerate(names_of_ranges(POSITION_EDGES))
        }
        kinds = {kind.name.lower(): self._mean(np.s_[:, :, kind : kind + 1]) for kind in AUDIO_KINDS}
        whole = self.rise()
        told = {"documents": len(self.documents), "songs": self.songs}
        if whole is None:
            return told
        return told | {
            "rise": whole.as_dict(),
            "by_position": {name: found.as_dict() for name, found in positions.items() if found is not None},
            "by_kind": {name: found.as_dict() for name, found in kinds.items() if found is not None},
        }

    def _mean(self, part: Any) -> Interval | None:
        rise_D, tokens_D = (table[part].sum(axis=(1, 2)) for table in (self.rise_DPK, self.tokens_DPK))
        if not tokens_D.any():
            return None
        return mean_interval(of_songs(rise_D, self.song_D), of_songs(tokens_D, self.song_D))


def of_songs(values_D: np.ndarray, song_D: np.ndarray) -> np.ndarray:
    """Sums of documents' values by song."""
    _, number_D = np.unique(song_D, return_inverse=True)
    return np.bincount(number_D, weights=values_D)


def text_following(
    model: str | Path,
    source: str | Path,
    *,
    documents: int = 32,
    pairings: int = 2,
    seed: int = 0,
    windows_at_once: int = 4,
    device: str = "cpu",
    dtype: str = "float32",
) -> Following:
    """Scores held-out documents behind their own texts and behind those of others.

    Args:
        model: an exported folder, with its text tokenizer.
        source: prefix of the source.
        documents: how many of it are scored, drawn by ``seed``.
        pairings: with how many others' texts each is scored; none where all are of the same words.

    Raises:
        InputError: folder or source can't be read, of another vocabulary, or without audio.
    """
    folder, corpus = ModelFolder.open(model), IndexedSource(source)
    check_vocabulary(folder, corpus)
    rng = np.random.default_rng(seed)
    chosen = take_apart(folder, corpus, sorted(rng.permutation(len(corpus))[:documents].tolist()))
    if not chosen:
        raise InputError(source, "holds no audio tokens", "name a source with songs")
    network = folder.network(device, dtype)
    start = folder.vocabulary.special("<EOD>")
    shape = len(chosen), len(POSITION_EDGES), len(Kind)
    rise_DPK, tokens_DPK, nats_D, audio_D = np.zeros(shape), np.zeros(shape), np.zeros(shape[0]), np.zeros(shape[0])
    for at, document in enumerate(track(chosen, "own and others' texts")):
        partners = _partners(document, chosen, pairings, rng)
        windows = list(_windows(document, [partner.texts for partner in partners], folder.positions, start))
        scored = window_nats(network, (ids for window in windows for ids in window.variants), start, windows_at_once)
        for window in windows:
            own_T, *others = (next(scored) for _ in window.variants)
            audio = window.places[0]
            nats_D[at] += own_T[audio - 1].sum()
            audio_D[at] += len(audio)
            if not others:
                continue
            paired = np.all([places > 0 for places in window.places], axis=0)
            rise = np.mean(
                [other_T[places[paired] - 1] for other_T, places in zip(others, window.places[1:], strict=True)], axis=0
            )
            cells = window.buckets[paired], window.kinds[paired]
            np.add.at(rise_DPK[at], cells, rise - own_T[audio[paired] - 1])
            np.add.at(tokens_DPK[at], cells, 1)
    numbers = [document.number for document in chosen]
    return Following(rise_DPK, tokens_DPK, nats_D, audio_D, np.array([d.song for d in chosen]), numbers)


def take_apart(folder: ModelFolder, source: IndexedSource, numbers: Sequence[int]) -> list[TextDocument]:
    """The documents of these numbers that hold audio."""
    tokenizer, songs, found = folder.tokenizer(), {}, []
    for number in numbers:
        ids, kinds = source.document(number)
        audio = np.flatnonzero(np.isin(kinds, AUDIO_KINDS))
        if not len(audio):
            continue
        is_text = (kinds == Kind.TEXT) & (np.arange(len(ids)) < audio[-1])
        begins = is_text & ~np.concatenate([[False], is_text[:-1]])
        runs_N = np.where(is_text, np.cumsum(begins) - 1, -1)
        texts = [ids[runs_N == run] for run in range(int(begins.sum()))]
        text = tokenizer.decode([int(id) for text in texts for id in text])
        lines = frozenset(line.strip() for line in _NO_WORDS.sub("\n", text).splitlines())
        song = songs.setdefault(lines, len(songs))
        found.append(TextDocument(number, ids, kinds, runs_N, texts, song))
    return found


def _partners(
    document: TextDocument, others: Sequence[TextDocument], count: int, rng: np.random.Generator
) -> list[TextDocument]:
    """Documents of other words, no song twice as long as there are enough."""
    by_song: dict[int, list[TextDocument]] = {}
    for other in others:
        if other.song != document.song and other.texts and document.texts:
            by_song.setdefault(other.song, []).append(other)
    songs = rng.permutation(list(by_song))[:count]
    return [by_song[song][int(rng.integers(len(by_song[song])))] for song in songs]


@dataclass(frozen=True)
class _Window:
    """A window with its own text and with others', at most a context and the id before it.

    ``places[v]`` (A,) says where in variant v each audio token of the window stands, -1 where it was cut off.
    """

    variants: list[np.ndarray]
    places: list[np.ndarray]
    buckets: np.ndarray
    kinds: np.ndarray


def _windows(document: TextDocument, others: Sequence[list[np.ndarray]], context: int, start: int) -> Iterator[_Window]:
    ids = np.concatenate([[start], document.ids])
    runs = np.concatenate([[-1], document.runs_N])
    kinds = np.concatenate([[Kind.SPECIAL], document.kinds])
    is_audio = np.isin(kinds, AUDIO_KINDS)
    position = np.cumsum(is_audio) - 1
    for at in range(0, len(document.ids), context):
        part = slice(at, at + context + 1)
        # The first id of a window is only read: the window before has scored it.
        audio = 1 + np.flatnonzero(is_audio[part][1:])
        if not len(audio):
            continue
        variants, places = [ids[part]], [audio]
        for texts in others:
            swapped, origin = with_text(ids[part], runs[part], document.texts, texts)
            place = np.full(len(ids[part]), -1)
            kept = np.flatnonzero(origin[: context + 1] >= 0)
            place[origin[kept]] = kept
            variants.append(swapped[: context + 1])
            places.append(place[audio])
        buckets = np.searchsorted(POSITION_EDGES, position[part][audio], side="right") - 1
        yield _Window(variants, places, buckets, kinds[part][audio])


def with_text(
    ids: np.ndarray, runs: np.ndarray, own: Sequence[np.ndarray], others: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """A window with its text runs replaced: the first by the others' first, the following by theirs in turn.

    Of a run that the window cuts at its beginning, the replacement has no more ids either. Where the others have a
    single text, those behind the first stay.

    Returns:
        The ids, and for each its place in the window or -1.
    """
    following = list(others[1:])
    pieces, origins = [], []
    cuts = np.flatnonzero(np.diff(runs)) + 1
    for group in np.split(np.arange(len(ids)), cuts):
        run = int(runs[group[0]])
        if run < 0 or (run > 0 and not following):
            pieces.append(ids[group])
            origins.append(group)
            continue
        text = others[0] if run == 0 else following[(run - 1) % len(following)]
        if group[0] == 0 and len(group) < len(own[run]):
            text = text[-len(group) :]
        pieces.append(text)
        origins.append(np.full(len(text), -1))
    return np.concatenate(pieces), np.concatenate(origins)
