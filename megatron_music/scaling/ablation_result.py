"""What is measured of the two sides of an ablation, and what the difference is worth.

Losses are of whole held-out songs, read from their beginning, in nats a second of audio: a unit that any two codecs,
tracks and forms of document share. Both sides read the same songs, so that the difference is taken song by song.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.corpus.contents import read_contents
from megatron_music.corpus.indexed import IndexedSource
from megatron_music.recipe.recipe import Recipe
from megatron_music.scaling.ablation import Ablation, Side
from megatron_music.tables import table
from megatron_music.vocabulary.kinds import AUDIO_KINDS, LOSS_GROUPS

FORMAT, VERSION = "megatron-music ablation", 1
MEASURING = 2
"""Raised whenever a side would be measured otherwise, so that those that were measured are measured again."""
DRAWS = 2000
"""Bootstrap draws of songs."""
MEASURES = {
    "nats_per_token": "loss, nats an audio token",
    "nats_per_second": "loss, nats a second of audio",
    "swapped_nats_per_second": "added by another song's lyrics, nats a second",
    "reference_nats_per_second": "saved by a reference of the same song, nats a second",
    "invalid_token_share": "invalid tokens in free samples",
}

Rows = dict[str, dict[str, float]]
"""By id of a held-out song: ``nats`` and ``tokens`` of its audio, its ``seconds``; ``swapped`` and ``reference``, nats
that other words and a reference add, and ``..._seconds``, of how much of the song that is.

These are of the audio tokens that both documents hold in their first context: a longer text before them moves the cut,
and what stands right behind a cut is dear whatever the text."""


def measure_side(recipe: Recipe, side: Side, positions: int, seed: int) -> dict[str, Any]:
    """Exports a run that has ended; returns ``songs`` (``Rows``), ``losses`` by kind and ``invalid_token_share``."""
    from megatron_music.conversion.export import export_checkpoint
    from megatron_music.engine.sampling import span_prompts
    from megatron_music.evaluation.validity import invalid_token_share
    from megatron_music.generation.models import ModelFolder
    from megatron_music.vocabulary.grammar import AudioGrammar

    model = recipe.run / "hf"
    # Anew, whatever lies there: it may be of an earlier checkpoint.
    export_checkpoint(recipe.run, model, dtype="float32", say=lambda _: None)
    folder = ModelFolder.open(model)
    network, start = folder.network(), folder.vocabulary.special("<EOD>")
    context = recipe.phases[-1].context_tokens
    songs: Rows = {}
    whole: dict[str, AudioNats] = {}
    kinds: dict[str, list[float]] = {}
    for field, name in side.sources.items():
        for id, seconds, nats, of_kind in _scored(network, recipe.corpus / name, start, context):
            audio = AudioNats.of(nats, of_kind, context, behind_reference=field == "reference")
            if field == "held_out":
                whole[id] = audio
                songs[id] = {"nats": float(audio.nats_N.sum()), "tokens": len(audio.nats_N), "seconds": seconds}
                for group, members in LOSS_GROUPS.items():
                    total = kinds.setdefault(group, [0.0, 0])
                    total[0] += float(nats[np.isin(of_kind, members)].sum())
                    total[1] += int(np.isin(of_kind, members).sum())
            elif id in songs:
                added, tokens = audio.added_to(whole[id])
                songs[id][field] = added
                songs[id][f"{field}_seconds"] = songs[id]["seconds"] * tokens / songs[id]["tokens"]
    grammar = AudioGrammar(folder.vocabulary, tracks=side.tracks)
    prompts = span_prompts(IndexedSource(recipe.corpus / side.held_out), grammar)
    validity = invalid_token_share(model, prompts, positions, seed, tracks=side.tracks)
    return {
        "run": str(recipe.run),
        "tokens": sum(phase.tokens for phase in recipe.phases),
        "losses": {group: nats / tokens for group, (nats, tokens) in kinds.items() if tokens},
        "invalid_token_share": validity.share,
        "invalid_token_positions": validity.positions,
        "songs": songs,
    }


def _scored(network, prefix: Path, start: int, context: int):
    """Song, seconds, nats and kinds of each document of a source."""
    from megatron_music.evaluation.loss import document_nats

    source = IndexedSource(prefix)
    documents = [source.document(index) for index in range(len(source))]
    contents = {row["document"]: row for row in read_contents(prefix).to_pylist()}
    nats = document_nats(network, [ids for ids, _ in documents], start, context)
    for index, ((_, kinds), nats_N) in enumerate(zip(documents, nats, strict=True)):
        yield contents[index]["id"], contents[index]["seconds"], nats_N, kinds


@dataclass(frozen=True)
class AudioNats:
    """Nats of a document's audio tokens, float64 (N,), and how many of them stand in its first context."""

    nats_N: np.ndarray
    in_first_context: int

    @classmethod
    def of(cls, nats: np.ndarray, kinds: np.ndarray, context: int, behind_reference: bool = False) -> "AudioNats":
        """Of all tokens' nats and kinds; ``behind_reference`` leaves the document's first run of audio tokens out."""
        is_audio = np.isin(kinds, AUDIO_KINDS)
        if behind_reference:
            starts = is_audio & ~np.concatenate([[False], is_audio[:-1]])
            is_audio &= np.cumsum(starts) > 1
        return cls(nats[is_audio], int(is_audio[:context].sum()))

    def added_to(self, other: "AudioNats") -> tuple[float, int]:
        """Nats more than ``other`` has for the same audio, and of how many tokens: those in both's first context."""
        shared = min(self.in_first_context, other.in_first_context)
        return float(self.nats_N[:shared].sum() - other.nats_N[:shared].sum()), shared


def result_of(ablation: Ablation, measured: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """An ablation's answer: its file's words, the measures of each side by seed, and the difference.

    Args:
        measured: what ``measure_side`` gave, by side and seed.
    """
    file = ablation.file
    sides = {side: {str(seed): _summary(found) for seed, found in seeds.items()} for side, seeds in measured.items()}
    return {
        "format": FORMAT,
        "version": VERSION,
        "name": ablation.name,
        "question": file.question,
        "expected": file.expected,
        "equal": file.equal,
        "differs": file.differs,
        "cannot_show": file.cannot_show,
        "sides": sides,
        "differences": differences(*measured.values()),
    }


def _summary(found: dict[str, Any]) -> dict[str, Any]:
    measures = {name: measure(found["songs"]) for name, measure in _BY_SONG.items()}
    measures["invalid_token_share"] = found["invalid_token_share"]
    kept = {name: value for name, value in measures.items() if value is not None}
    return {"run": found["run"], "tokens": found["tokens"], "losses": found["losses"], **kept}


def _ratio(numerator: Callable[[dict[str, float]], float], over: str):
    """A measure of the rows that have the field ``over``: the sum of ``numerator`` over the field's; else None."""

    def measure(songs: Rows, ids: Sequence[str] | None = None) -> float | None:
        rows = [songs[id] for id in (songs if ids is None else ids) if over in songs[id]]
        total = sum(row[over] for row in rows)
        return sum(map(numerator, rows)) / total if total else None

    return measure


_BY_SONG = {
    "nats_per_token": _ratio(lambda row: row["nats"], "tokens"),
    "nats_per_second": _ratio(lambda row: row["nats"], "seconds"),
    "swapped_nats_per_second": _ratio(lambda row: row["swapped"], "swapped_seconds"),
    "reference_nats_per_second": _ratio(lambda row: -row["reference"], "reference_seconds"),
}


def differences(
    first: dict[int, dict[str, Any]], second: dict[int, dict[str, Any]], draws: int = DRAWS
) -> dict[str, dict[str, Any]]:
    """Second side minus first, by measure: the mean over seeds, each seed's own, and a 95% interval over songs.

    Of the songs that have the measure on both sides. Whole songs are drawn with replacement, all excerpts and takes of
    one together (an id up to its first dot), the same for both sides and all seeds; one song alone has no interval. It
    does not hold what another seed would have changed: that shows in ``by_seed``.
    """
    seeds = [seed for seed in first if seed in second]
    found: dict[str, dict[str, Any]] = {
        "invalid_token_share": _plain(
            [second[s]["invalid_token_share"] - first[s]["invalid_token_share"] for s in seeds]
        )
    }
    shared = sorted(set.intersection(*(set(side[seed]["songs"]) for side in (first, second) for seed in seeds)))
    for name, measure in _BY_SONG.items():

        def difference(ids: Sequence[str], measure=measure) -> list[float] | None:
            pairs = [(measure(first[s]["songs"], ids), measure(second[s]["songs"], ids)) for s in seeds]
            return None if any(None in pair for pair in pairs) else [b - a for a, b in pairs]

        measured = [id for id in shared if difference([id]) is not None]
        if measured:
            found[name] = _plain(difference(measured))
            drawn = [np.mean(difference(ids)) for ids in _drawn(measured, draws)]
            if drawn:
                low, high = np.quantile(drawn, [0.025, 0.975])
                found[name] |= {"low": float(low), "high": float(high)}
    return {name: found[name] for name in MEASURES if name in found}


def _drawn(ids: Sequence[str], draws: int) -> Iterator[list[str]]:
    """The ids of whole songs, drawn as often as there are songs; nothing where there is one alone."""
    titles: dict[str, list[str]] = {}
    for id in ids:
        titles.setdefault(id.split(".")[0], []).append(id)
    generator = np.random.default_rng(0)
    if len(titles) > 1:
        for _ in range(draws):
            yield [id for title in generator.choice(list(titles), len(titles)) for id in titles[title]]


def _plain(by_seed: list[float]) -> dict[str, Any]:
    return {"value": float(np.mean(by_seed)), "by_seed": by_seed}


def result_table(result: dict[str, Any]) -> str:
    """An ablation's answer for a terminal."""
    first, second = result["sides"]
    rows = [["", first, second, "difference", "95% over songs", "by seed"]]
    for name, title in MEASURES.items():
        if name in result["differences"]:
            found = result["differences"][name]
            interval = f"{found['low']:+.3f} to {found['high']:+.3f}" if "low" in found else ""
            means = [np.mean([run[name] for run in result["sides"][side].values()]) for side in (first, second)]
            by_seed = ", ".join(f"{value:+.3f}" for value in found["by_seed"])
            rows.append([title, *(f"{mean:.3f}" for mean in means), f"{found['value']:+.3f}", interval, by_seed])
    return "\n".join([f"{result['name']}: {result['question']}", table(rows), f"equal: {result['equal']}",
                      f"what this can't show: {' '.join(result['cannot_show'].split())}"])  # fmt: skip
