"""What an exported model alone tells: held-out loss beside a bigram's, and the validity of its free samples."""

from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.engine.sampling import span_prompts
from megatron_music.evaluation.bigram import bigram_loss
from megatron_music.evaluation.loss import held_out_loss
from megatron_music.evaluation.validity import invalid_token_share
from megatron_music.generation.models import ModelFolder
from megatron_music.vocabulary.grammar import AudioGrammar
from megatron_music.vocabulary.kinds import Kind

STAGE_1_AUDIO = (Kind.VOCAL, Kind.ACCOMPANIMENT, Kind.MIX, Kind.SPEECH)


def evaluate_model(
    model: str | Path, train: str | Path, held_out: str | Path, positions: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Measures a stage-1 model on lyrics-to-song sources.

    Args:
        model: an exported folder.
        train: source ``CORPUS/NAME`` that the bigram is fitted on; the model was trained on the same songs.
        held_out: source of songs that neither has seen.
        positions: audio positions sampled without any constraint, from the openings of the held-out documents.

    Returns:
        ``audio_loss``, ``bigram_loss`` (nats an audio token of the held-out songs), ``losses`` by kind,
        ``invalid_token_share``, ``audio_positions_sampled``, ``invalid_by_position``, ``distinct_codes`` (of codebook 0
        in the held-out songs) and ``distinct_codes_sampled`` (among the free samples).
    """
    folder = ModelFolder.open(model)
    grammar = AudioGrammar(folder.vocabulary, tracks=2)
    losses = held_out_loss(model, held_out)
    bigram = bigram_loss([train], [held_out], grammar.codec)
    validity = invalid_token_share(model, span_prompts(held_out, grammar), positions, seed)
    return {
        "audio_loss": losses.audio,
        "bigram_loss": bigram.per_token,
        "losses": losses.groups(),
        "invalid_token_share": validity.share,
        "audio_positions_sampled": validity.positions,
        "invalid_by_position": validity.by_position(),
        "distinct_codes": len(_audio_ids(IndexedSource(held_out))),
        "distinct_codes_sampled": len(validity.codes),
    }


def _audio_ids(source: IndexedSource) -> set[int]:
    """All ids of codebook 0 that stand in a source."""
    found: set[int] = set()
    for index in range(len(source)):
        ids, kinds = source.document(index)
        found.update(np.unique(ids[np.isin(kinds, STAGE_1_AUDIO)]).tolist())
    return found
