"""Does a model copy its reference? In-context-learning (ICL) documents hold a stretch of the song before the segments.

Trained on them too early, a model becomes a copy machine (deck, lessons). A song resembles its own reference anyway (a
chorus comes again), so that what is sampled behind a reference stands beside what the song itself goes on with, cut to
the same length. The tracks that both have are compared; a mix is compared with each track.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from megatron_music.corpus.indexed import IndexedSource
from megatron_music.engine.sampling import grammar_of, spans_of
from megatron_music.errors import InputError
from megatron_music.evaluation.intervals import mean_interval
from megatron_music.evaluation.loss import check_vocabulary
from megatron_music.evaluation.validity import SPANS_AT_ONCE, invalid_token_share
from megatron_music.evaluation.variety import windows_of_codes
from megatron_music.generation.models import ModelFolder
from megatron_music.vocabulary.grammar import AudioGrammar
from megatron_music.vocabulary.kinds import Kind

NGRAM = 8
"""Frames of a group of codes that counts as copied where it stands in the reference: 0.16 s of X-Codec."""
FRAMES = 250
"""Frames sampled behind each reference: 5 s of X-Codec."""


def copied_ngrams(codes_T: np.ndarray, reference_T: np.ndarray, length: int = NGRAM) -> tuple[int, int]:
    """Groups of ``length`` codes that stand somewhere in the reference, and all groups."""
    groups, there = windows_of_codes(codes_T, length), windows_of_codes(reference_T, length)
    known = {group.tobytes() for group in np.ascontiguousarray(there, dtype=np.int32)}
    return sum(group.tobytes() in known for group in np.ascontiguousarray(groups, dtype=np.int32)), len(groups)


def longest_common_run(codes_T: np.ndarray, reference_T: np.ndarray) -> int:
    """Codes of the longest stretch that stands, code for code, in both."""
    codes_T, reference_T = np.asarray(codes_T), np.asarray(reference_T)
    longest, runs = 0, np.zeros(len(reference_T) + 1, dtype=np.int64)
    for code in codes_T:
        # runs[j]: the common run that ends with this code and the reference's code j - 1.
        runs[1:] = np.where(reference_T == code, runs[:-1] + 1, 0)
        longest = max(longest, int(runs.max()))
    return longest


@dataclass(frozen=True)
class ReferenceDocument:
    """What a model reads of an ICL document before the first segment's audio, and what follows there.

    Attributes:
        prompt: ids up to the opening of the segment's audio, as many of the last as the model reads.
        reference: codes (T,) by kind, of the part of the reference that is in the prompt.
        true_ids: ids of the segment's audio.
    """

    prompt: list[int]
    reference: dict[Kind, np.ndarray]
    true_ids: np.ndarray


def reference_documents(
    source: IndexedSource, grammar: AudioGrammar, positions: int, numbers: Sequence[int]
) -> list[ReferenceDocument]:
    """Those of these documents whose first span is a reference, of which half of ``positions`` holds some."""
    found = []
    for number in numbers:
        ids, kinds = source.document(number)
        spans = spans_of(ids, grammar)
        if len(spans) < 2:
            continue
        read = slice(max(0, spans[1].start - max(len(grammar.opening), positions // 2)), spans[1].start)
        held = slice(max(spans[0].start, read.start), spans[0].stop)
        reference = {
            Kind(kind): grammar.codec.codes(ids[held][kinds[held] == kind]) for kind in np.unique(kinds[held]).tolist()
        }
        if reference:
            found.append(ReferenceDocument(ids[read].tolist(), reference, ids[spans[1]]))
    return found


def reference_copying(
    model: str | Path,
    source: str | Path,
    *,
    documents: int = 16,
    frames: int = FRAMES,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Samples freely behind the references of an ICL source and compares the samples with them.

    Returns:
        ``copied``, ``copied_true`` (shares of groups of 8 frames that stand in the reference), ``copied_excess``
        (sampled less true, with its interval over documents), ``longest``, ``longest_true`` (frames of the longest
        common run, the median), ``documents``.

    Raises:
        InputError: folder or source can't be read or do not fit, or no reference fits into what the model reads.
    """
    folder, corpus = ModelFolder.open(model), IndexedSource(source)
    check_vocabulary(folder, corpus)
    grammar = grammar_of(corpus, folder.vocabulary)
    numbers = np.random.default_rng(seed).permutation(len(corpus))[:documents].tolist()
    chosen = reference_documents(corpus, grammar, folder.positions, numbers)
    if not chosen:
        what = f"no reference stands in the {folder.positions // 2:,} tokens that the model reads before a segment"
        raise InputError(source, what, "name a source of the task reference, or train at a longer context")
    longest, at_once = grammar.period * frames, min(SPANS_AT_ONCE, len(chosen))
    # Each row samples whole spans, so that every reference is continued at full length.
    positions = -(-len(chosen) // at_once) * at_once * longest
    prompts = [document.prompt for document in chosen]
    found = invalid_token_share(
        model, prompts, positions, seed,
        tracks=grammar.period, longest=longest, spans_at_once=at_once, device=device, dtype=dtype,
    )  # fmt: skip
    return compare([(span.ids, chosen[span.prompt], span.prompt) for span in found.spans], grammar)


def compare(samples: Sequence[tuple[Sequence[int], ReferenceDocument, int]], grammar: AudioGrammar) -> dict[str, Any]:
    """The measures of ``reference_copying`` of (sampled ids, what they continue, number of the document)."""
    counts, runs, groups = [], [], []
    for ids, document, number in samples:
        for codes_T, true_T, reference_T in _tracks(ids, document, grammar):
            (copied, count), (copied_true, _) = (copied_ngrams(codes, reference_T) for codes in (codes_T, true_T))
            if count:
                counts.append((copied, copied_true, count))
                runs.append([longest_common_run(codes, reference_T) for codes in (codes_T, true_T)])
                groups.append(number)
    if not counts:
        raise InputError("samples", f"none behind a reference has {NGRAM} frames", "sample more, or train longer")
    copied_S, true_S, count_S = np.array(counts, dtype=np.float64).T
    number_S = np.array(groups)
    by_document = [np.bincount(number_S, weights=values) for values in (copied_S - true_S, count_S)]
    return {
        "copied": float(copied_S.sum() / count_S.sum()),
        "copied_true": float(true_S.sum() / count_S.sum()),
        "copied_excess": mean_interval(*by_document).as_dict(),
        "longest": float(np.median([ours for ours, _ in runs])),
        "longest_true": float(np.median([true for _, true in runs])),
        "documents": len(set(groups)),
    }


def _tracks(
    ids: Sequence[int], document: ReferenceDocument, grammar: AudioGrammar
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Sampled, true and reference codes of each track that can be compared, the first two of one length."""
    length = min(len(ids), len(document.true_ids))
    sampled, true = (grammar.tracks(part[:length]) for part in (ids, document.true_ids))
    references = {kind: document.reference.get(kind, document.reference.get(Kind.MIX)) for kind in sampled}
    return [(sampled[kind], true[kind], codes_T) for kind, codes_T in references.items() if codes_T is not None]
