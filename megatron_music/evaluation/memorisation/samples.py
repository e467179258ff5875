"""The tracks that are looked for in the training corpus, and those of held-out songs to compare them with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.errors import InputError
from megatron_music.evaluation.memorisation.index import track_codes
from megatron_music.files import read_json
from megatron_music.vocabulary.grammar import AudioGrammar
from megatron_music.vocabulary.kinds import TRACK_KINDS, Kind
from megatron_music.vocabulary.vocabulary import CodecRange

RECORD = "song.json"
LEAST_TOKENS = 50
"""Tracks that are shorter, 1 s of X-Codec, are left out."""
_TRIES = 8


@dataclass(frozen=True)
class Track:
    """Codebook-0 codes, int16 (T,), of one track of a sample."""

    name: str
    kind: Kind
    codes_T: np.ndarray


def tracks_of_spans(spans: Sequence[Sequence[int]], grammar: AudioGrammar) -> list[Track]:
    """Tracks of freely sampled spans of ids."""
    named = ((f"sample {number}", grammar.tracks(span)) for number, span in enumerate(spans))
    found = [Track(name, kind, codes_T) for name, tracks in named for kind, codes_T in tracks.items()]
    return [track for track in found if len(track.codes_T) >= LEAST_TOKENS]


def tracks_of_songs(folder: str | Path, codec: CodecRange) -> tuple[list[Track], list[str]]:
    """Tracks of all songs that `generate` wrote below a folder, and what is wrong with those that can't be read.

    Raises InputError where there is no such folder or no song in it.
    """
    folder = Path(folder)
    records = sorted(folder.rglob(RECORD))
    if not records:
        raise InputError(folder, f"holds no {RECORD}", "name a folder of songs that `generate` wrote")
    found: list[Track] = []
    problems: list[str] = []
    for record in records:
        try:
            found += _song(record, codec, str(record.parent.relative_to(folder)))
        except InputError as error:
            problems.append(str(error))
    return [track for track in found if len(track.codes_T) >= LEAST_TOKENS], problems


def held_out_tracks(source: str | Path, codec: CodecRange, like: Sequence[Track], seed: int = 0) -> list[Track]:
    """For each track one of held-out songs of the same kind and length, or shorter where the song is.

    Documents and places are drawn by ``seed``; no track stands for those of a kind that few songs have.
    """
    opened, rng = IndexedSource(source), np.random.default_rng(seed)
    found = []
    for wanted in like:
        for document in rng.integers(0, len(opened), _TRIES).tolist() if len(opened) else []:
            codes_T = dict(track_codes(opened, document, codec)).get(wanted.kind)
            if codes_T is not None and len(codes_T) >= LEAST_TOKENS:
                first = int(rng.integers(0, max(1, len(codes_T) - len(wanted.codes_T) + 1)))
                name = f"document {document}"
                found.append(Track(name, wanted.kind, codes_T[first : first + len(wanted.codes_T)]))
                break
    return found


def _song(record: Path, codec: CodecRange, name: str) -> list[Track]:
    content = read_json(record)
    codes = content.get("codes") if isinstance(content, dict) else None
    if not isinstance(codes, dict) or not codes or not set(codes) <= set(TRACK_KINDS):
        raise InputError(f"{record}: codes", "are not the codes of a song's tracks", "generate the song again")
    if content.get("codec") != codec.name:
        what = f"are {content.get('codec')}'s, the training corpus has {codec.name}'s"
        raise InputError(f"{record}: codes", what, "name songs of this model")
    tracks = []
    for track, rows in codes.items():
        try:
            codes_T = np.asarray(rows[0])
            if codes_T.dtype.kind not in "iu" and len(codes_T):
                raise ValueError("codes are whole numbers")
            codec.ids(codes_T[None].astype(np.int64))
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise InputError(
                f"{record}: codes.{track}", f"can't be read ({error})", "generate the song again"
            ) from None
        tracks.append(Track(name, TRACK_KINDS[track], codes_T.astype(np.int16)))
    return tracks
