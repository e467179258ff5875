"""What an exported stage-1 model alone tells: losses beside a bigram's, whether it follows its texts, its free samples.

Every measure that has an interval is ``{"value", "low", "high"}``, 95%; what could not be measured is absent and stands
in ``missing`` with the way to get it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.engine.sampling import Validity, grammar_of
from megatron_music.errors import InputError
from megatron_music.evaluation.bigram import BIGRAM_TOKENS, InterpolatedBigram, bigram_loss, fit_bigram
from megatron_music.evaluation.copying import reference_copying
from megatron_music.evaluation.following import POSITION_EDGES, Following, of_songs, text_following
from megatron_music.evaluation.intervals import mean_interval
from megatron_music.evaluation.loss import check_vocabulary, held_out_loss
from megatron_music.evaluation.memorisation.index import CopyIndex
from megatron_music.evaluation.memorisation.measure import memorisation
from megatron_music.evaluation.memorisation.samples import tracks_of_spans
from megatron_music.evaluation.order import order_rise
from megatron_music.evaluation.validity import (
    invalid_by_position,
    invalid_share,
    invalid_token_share,
    openings,
)
from megatron_music.evaluation.variety import silent_codes, variety
from megatron_music.generation.models import ModelFolder
from megatron_music.vocabulary.grammar import AudioGrammar
from megatron_music.vocabulary.kinds import COARSE_KINDS

FAR_TOKENS = 3000
"""Audio tokens of a song behind which text-prepend models lose the lyrics (deck, lessons)."""

MOST_OPENINGS = 256
"""Held-out documents behind whose openings is sampled, each as often as needed."""


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        positions: audio positions sampled without any constraint, from the openings of held-out documents.
        documents: held-out documents that are scored behind their own and others' texts.
        pairings: others' texts that each is scored behind.
        references: ICL documents behind whose reference is sampled.
        codec_weights: of the codec, None takes those in the model's folder; for the codes of silence alone.
        device: where the network runs, in float32 on a CPU and in bfloat16 on a GPU.
    """

    positions: int = 2000
    documents: int = 32
    pairings: int = 2
    references: int = 16
    codec_weights: str | None = None
    device: str = "cpu"
    seed: int = 0

    @property
    def network(self) -> dict[str, str]:
        """Where the network runs and in which type."""
        return {"device": self.device, "dtype": "float32" if self.device == "cpu" else "bfloat16"}


def evaluate_model(
    model: str | Path,
    train: str | Path,
    held_out: str | Path,
    positions: int = 2000,
    seed: int = 0,
    reference: str | Path | None = None,
    *,
    index: CopyIndex | None = None,
    codec_weights: str | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measures a stage-1 model on lyrics-to-song sources.

    Args:
        model: an exported folder.
        train: source ``CORPUS/NAME`` that the bigram is fitted on (``BIGRAM_TOKENS`` of it where it holds more); the
            model was trained on the same songs.
        held_out: source of songs that neither has seen.
        positions: audio positions sampled without any constraint, from the openings of the held-out documents.
        reference: source of in-context-learning documents, best of held-out songs.
        index: of all that the model was trained on: do its free samples copy any of it?
        codec_weights, device: see ``Effort``.

    Returns:
        ``audio_loss``, ``bigram_loss`` (nats an audio token of the held-out songs), ``losses`` by kind,
        ``distinct_codes`` (of codebook 0 in the held-out songs), and all of ``measure``.
    """
    folder = ModelFolder.open(model)
    codec = AudioGrammar(folder.vocabulary).codec
    effort = Effort(positions=positions, seed=seed, codec_weights=codec_weights, device=device)
    losses = held_out_loss(model, held_out, **effort.network)
    bigram = fit_bigram([train], codec, BIGRAM_TOKENS, seed)
    found = measure(model, held_out, bigram, reference, effort, index)
    return {
        "audio_loss": losses.audio,
        "bigram_loss": bigram_loss(bigram, [held_out]).per_token,
        "losses": losses.groups(),
        "distinct_codes": len(_audio_ids(IndexedSource(held_out))),
        **found,
    }


def measure(
    model: str | Path,
    held_out: str | Path,
    bigram: InterpolatedBigram | None,
    reference: str | Path | None,
    effort: Effort = Effort(),
    index: CopyIndex | None = None,
) -> dict[str, Any]:
    """What samples of the model and of held-out songs tell.

    Returns:
        ``invalid_token_share``, ``audio_positions_sampled``, ``invalid`` (the share with its interval over spans),
        ``invalid_by_position``, ``distinct_codes_sampled`` (among the free samples); ``variety``; ``following``, with
        ``far`` from 3,000 audio tokens on; ``gain_over_bigram`` (1 - loss / the bigram's, over songs, of the documents
        of ``following``); ``order``; ``copying``; ``missing``. See the modules of these names.

    Raises:
        InputError: model or held-out source can't be read or do not fit each other.
    """
    folder, source = ModelFolder.open(model), IndexedSource(held_out)
    check_vocabulary(folder, source)
    missing: list[dict[str, str]] = []
    found = _of_free_samples(folder, source, effort, index, missing)
    following = text_following(
        model, held_out, documents=effort.documents, pairings=effort.pairings, seed=effort.seed, **effort.network
    )
    found |= _of_texts(following, str(held_out), missing)
    found["order"] = order_rise(model, held_out, following, seed=effort.seed, **effort.network).as_dict()
    if bigram is not None:
        found["gain_over_bigram"] = _gain(following, source, bigram)
    if reference is None:
        how = "name a source of the task reference (--reference)"
        missing.append({"measure": "copying", "why": "there is no source of ICL documents", "how": how})
    else:
        options = {"documents": effort.references, "seed": effort.seed}
        found |= _or_missing(
            "copying", missing, lambda: reference_copying(model, reference, **options, **effort.network)
        )
    return found | {"missing": missing}


def _of_free_samples(
    folder: ModelFolder,
    source: IndexedSource,
    effort: Effort,
    index: CopyIndex | None,
    missing: list[dict[str, str]],
) -> dict[str, Any]:
    """Invalid ids, repetition, silence and copies in what the model writes behind held-out openings."""
    grammar = grammar_of(source, folder.vocabulary)
    opened = openings(source, grammar, MOST_OPENINGS, effort.seed)
    prompts = [prompt for prompt, _ in opened]
    validity = invalid_token_share(
        folder.path, prompts, effort.positions, effort.seed, tracks=grammar.period, **effort.network
    )
    found = {
        "invalid_token_share": validity.share,
        "audio_positions_sampled": validity.positions,
        "invalid": invalid_share(validity).as_dict(),
        "invalid_by_position": invalid_by_position(validity),
        "distinct_codes_sampled": len(validity.codes),
    }
    silent = _silent_codes(grammar.codec.name, folder.codec_weights(effort.codec_weights), missing)
    pairs = _tracks(validity, [true for _, true in opened], grammar)
    found |= _or_missing("variety", missing, lambda: _variety(pairs, silent))
    if index is None:
        return found
    samples = tracks_of_spans([span.ids for span in validity.spans], grammar)
    return found | _or_missing(
        "memorisation",
        missing,
        lambda: memorisation(index, grammar.codec, samples, source.prefix, effort.seed),
    )


def _silent_codes(codec: str, weights: str | Path | None, missing: list[dict[str, str]]) -> frozenset[int] | None:
    try:
        silent = silent_codes(codec, weights)
    except InputError as error:
        missing.append(_told_missing("silence", error))
        return None
    if silent is None:
        why = f"which codes of {codec} are silence is told by its weights"
        missing.append({"measure": "silence", "why": why, "how": "name them with --codec-weights"})
    return silent


def _variety(pairs: list[tuple[np.ndarray, np.ndarray]], silent: frozenset[int] | None) -> dict[str, Any]:
    try:
        return variety([ours for ours, _ in pairs], [true for _, true in pairs], silent)
    except ValueError as error:
        raise InputError("free samples", str(error), "sample more positions (--positions), or train longer") from None


def _tracks(validity: Validity, true: list[np.ndarray], grammar: AudioGrammar) -> list[tuple[np.ndarray, np.ndarray]]:
    """Codes of each track of each sampled span, and of the song's own, cut to one length."""
    pairs = []
    for span in validity.spans:
        length = min(len(span.ids), len(true[span.prompt]))
        ours, theirs = (grammar.tracks(ids[:length]) for ids in (span.ids, true[span.prompt]))
        pairs += [(ours[kind], theirs[kind]) for kind in ours]
    return pairs


def _of_texts(following: Following, source: str, missing: list[dict[str, str]]) -> dict[str, Any]:
    """Following, and what it lacks."""
    told = following.as_dict()
    how = "measure more documents, or another source of held-out songs"
    if following.rise() is None:
        why = f"{source} has no two songs of different texts among {len(following.documents)} documents"
        missing.append({"measure": "following", "why": why, "how": how})
        return {}
    far = following.rise(POSITION_EDGES.index(FAR_TOKENS))
    if far is None:
        why = f"no document that was scored has more than {FAR_TOKENS:,} audio tokens"
        missing.append({"measure": "following far", "why": why, "how": "measure a source of longer held-out songs"})
        return {"following": told}
    return {"following": told | {"far": far.as_dict()}}


def _gain(following: Following, source: IndexedSource, bigram: InterpolatedBigram) -> dict[str, float]:
    """Share of the bigram's nats that the model saves on the documents of ``following``."""
    bigram_D = np.array([sum(bigram.loss([source.document(at)]).nats.values()) for at in following.documents])
    saved_D = bigram_D - following.audio_nats_D
    return mean_interval(of_songs(saved_D, following.song_D), of_songs(bigram_D, following.song_D)).as_dict()


def _or_missing(name: str, missing: list[dict[str, str]], measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The measure under its name; or nothing, and why in ``missing``."""
    try:
        return {name: measured()}
    except InputError as error:
        missing.append(_told_missing(name, error))
        return {}


def _told_missing(name: str, error: InputError) -> dict[str, str]:
    return {"measure": name, "why": f"{error.where}: {error.what}", "how": error.mend}


def _audio_ids(source: IndexedSource) -> set[int]:
    """All ids of codebook 0 that stand in a source."""
    found: set[int] = set()
    for index in range(len(source)):
        ids, kinds = source.document(index)
        found.update(np.unique(ids[np.isin(kinds, COARSE_KINDS)]).tolist())
    return found
