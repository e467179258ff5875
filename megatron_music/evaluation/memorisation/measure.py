"""What samples repeat of the training corpus, beside what held-out songs do.

Music repeats music: held-out songs share n-grams with a corpus too, and takes of one song share more. Every number of
samples stands beside the same number of held-out tracks of the same kinds and lengths.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.errors import InputError
from megatron_music.evaluation.memorisation.index import CopyIndex
from megatron_music.evaluation.memorisation.ngrams import ngram_overlap
from megatron_music.evaluation.memorisation.samples import LEAST_TOKENS, Track, held_out_tracks
from megatron_music.evaluation.memorisation.search import WINDOW_FRAMES, Copies, find_copies
from megatron_music.evaluation.result import Measure, register
from megatron_music.progress import track
from megatron_music.vocabulary.vocabulary import CodecRange

_NOTE = (
    f"Tracks of samples, each alone, of which any window of {WINDOW_FRAMES} tokens (5 s of X-Codec; the whole track "
    "where it is shorter) stands in the training corpus; windows of few distinct codes, silence and held notes, are "
    "not judged. Read it beside the same share of held-out songs, under the model's `memorisation`."
)
MEASURES = {
    "memorised_exact": Measure(title="samples that copy training songs exactly", better="lower", note=_NOTE),
    "memorised_near": Measure(
        title="samples that copy training songs to 80%", better="lower", note=f"{_NOTE} At least 80% of tokens match."
    ),
    "memorised_longest": Measure(
        title="longest exact copy in samples",
        unit="tokens of a track",
        better="lower",
        note="The longest run of tokens of any sample's track that stands in the training corpus.",
    ),
}
_SONGS = "Of songs that `generate` wrote, in place of free samples: "
register(**MEASURES)
register(
    **{
        f"songs_{name}": measure.model_copy(
            update={"title": measure.title.replace("samples", "generated songs"), "note": _SONGS + measure.note}
        )
        for name, measure in MEASURES.items()
    }
)


def memorisation(
    index: CopyIndex, codec: CodecRange, samples: Sequence[Track], held_out: str | Path, seed: int = 0
) -> dict[str, Any]:
    """Copies and n-gram overlap of samples, and of held-out tracks.

    Returns:
        ``window_tokens``, and for ``samples`` and ``held_out`` what ``summary`` tells with ``ngrams``: shares of
        n-grams that stand in the corpus, by n.

    Raises:
        InputError: no sample is long enough.
    """
    if not samples:
        what = f"none has {LEAST_TOKENS} tokens a track"
        raise InputError("samples", what, "sample more positions (--positions), or name songs (--songs)")
    groups = {"samples": list(samples), "held_out": held_out_tracks(held_out, codec, samples, seed)}
    overlap = ngram_overlap(index.codes, {name: [one.codes_T for one in group] for name, group in groups.items()})
    found: dict[str, Any] = {"window_tokens": WINDOW_FRAMES}
    for name, group in groups.items():
        copies = [find_copies(index, one.codes_T) for one in track(group, f"copies in {name.replace('_', '-')} tracks")]
        told = summary(index, group, copies) if group else {"tracks": 0}
        found[name] = told | {"ngrams": {str(n): share for n, share in overlap[name].items()}}
    return found


def summary(index: CopyIndex, tracks: Sequence[Track], copies: Sequence[Copies]) -> dict[str, Any]:
    """Shares of tracks and tokens that are copied.

    Returns:
        ``tracks`` and ``tokens``; ``judged`` tracks with a window that is judged, of which ``exact`` and ``near`` are
        the shares with a window that is copied; ``near_tokens``, the share of judged tokens in such windows (the last
        three absent where nothing is judged); ``longest``, ``longest_median`` exact runs in tokens; ``longest_copy``,
        which track has it and where it stands in the corpus; ``cut``, groups of codes that stand at more places than
        were looked at.
    """
    longest = max(range(len(copies)), key=lambda at: copies[at].longest)
    judged = [one for one in copies if one.judged]
    told: dict[str, Any] = {
        "tracks": len(copies),
        "tokens": sum(one.tokens for one in copies),
        "judged": len(judged),
        "longest": copies[longest].longest,
        "longest_median": float(np.median([one.longest for one in copies])),
        "cut": sum(one.cut for one in copies),
    }
    if judged:
        told |= {
            "exact": sum(one.exact > 0 for one in judged) / len(judged),
            "near": sum(one.near > 0 for one in judged) / len(judged),
            "near_tokens": sum(one.near for one in judged) / sum(one.judged for one in judged),
        }
    at = copies[longest].longest_at
    if at is not None:
        own = {"sample": tracks[longest].name, "sample_kind": tracks[longest].kind.name.lower()}
        told["longest_copy"] = own | {"distinct": copies[longest].longest_distinct} | asdict(index.place(at))
    return told


def measures_of(found: dict[str, Any]) -> dict[str, float]:
    """The numbers of ``memorisation`` that stand for the model."""
    samples = found["samples"]
    named = {"memorised_exact": "exact", "memorised_near": "near", "memorised_longest": "longest"}
    return {name: float(samples[key]) for name, key in named.items() if key in samples}
