"""Held-out loss of an exported model by kind of token, every token scored exactly once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_music.corpus import fingerprint
from megatron_music.corpus.indexed import IndexedSource
from megatron_music.errors import InputError
from megatron_music.generation.models import ModelFolder
from megatron_music.progress import track
from megatron_music.vocabulary.kinds import AUDIO_KINDS, LOSS_GROUPS, Kind

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

SCORED_AT_ONCE = 1024
"""Positions whose logits over the whole vocabulary are in memory together."""


@dataclass(frozen=True)
class LossByKind:
    """Sums of nats and numbers of tokens, float64 and int64 (kinds,)."""

    nats_K: np.ndarray
    tokens_K: np.ndarray

    def mean(self, kinds: Sequence[Kind] = tuple(Kind)) -> float | None:
        """Mean nats of the tokens of these kinds, None where there are none."""
        tokens = sum(int(self.tokens_K[kind]) for kind in kinds)
        return sum(float(self.nats_K[kind]) for kind in kinds) / tokens if tokens else None

    @property
    def audio(self) -> float | None:
        """Mean nats of all audio tokens."""
        return self.mean(AUDIO_KINDS)

    def groups(self) -> dict[str, float]:
        """Mean nats by loss group, groups without tokens left out."""
        means = {name: self.mean(kinds) for name, kinds in LOSS_GROUPS.items()}
        return {name: mean for name, mean in means.items() if mean is not None}


def held_out_loss(
    model: str | Path,
    source: str | Path,
    *,
    context_tokens: int | None = None,
    windows_at_once: int = 4,
    device: str = "cpu",
    dtype: str = "float32",
) -> LossByKind:
    """Scores all documents of an indexed source as training packs them: one behind the other, cut at the context.

    Args:
        model: an exported folder.
        source: prefix of the source.
        context_tokens: length of a window; None takes the model's positions.

    Raises:
        InputError: folder or source can't be read, the source was built with another vocabulary or is empty.
    """
    folder = ModelFolder.open(model)
    corpus = IndexedSource(source)
    check_vocabulary(folder, corpus)
    if not corpus.total_tokens:
        raise InputError(source, "holds no tokens", "name another source")
    context = folder.positions if context_tokens is None else context_tokens
    if not 1 <= context <= folder.positions:
        raise InputError("context_tokens", f"{context} is not 1 to the model's {folder.positions}", "choose another")
    network = folder.network(device, dtype)
    nats_K, tokens_K = np.zeros(len(Kind)), np.zeros(len(Kind), dtype=np.int64)
    start = folder.vocabulary.special("<EOD>")
    windows, again = tee(packed_windows(corpus, context, start))
    scored = window_nats(network, (ids for ids, _ in windows), start, windows_at_once, context + 1)
    count = -(-corpus.total_tokens // context)
    for (_, kinds), nats_T in track(zip(again, scored, strict=True), "held-out loss", count):
        np.add.at(nats_K, kinds, nats_T)
        tokens_K += np.bincount(kinds, minlength=len(Kind))
    return LossByKind(nats_K, tokens_K)


def packed_windows(source: IndexedSource, context: int, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Windows of the source's documents in their order.

    Yields:
        ids (n + 1,) and the kinds (n,) of the last n of them, n up to ``context``: the first id is only read. Each
        window's first id is the last of the one before, and that of the first is ``start``, as if another document
        had ended there.
    """
    ids, kinds = np.array([start], dtype=np.int32), np.zeros(0, dtype=np.uint8)
    for index in range(len(source)):
        more_ids, more_kinds = source.document(index)
        ids, kinds = np.concatenate([ids, more_ids]), np.concatenate([kinds, more_kinds])
        while len(kinds) >= context:
            yield ids[: context + 1], kinds[:context]
            ids, kinds = ids[context:], kinds[context:]
    if len(kinds):
        yield ids, kinds


def document_nats(
    network: "LlamaForCausalLM", documents: Sequence[np.ndarray], start: int, context: int, windows_at_once: int = 4
) -> list[np.ndarray]:
    """Nats of every id, float64 (N,), of documents int32 (N,); each read alone and cut at the context.

    Args:
        start: the id before a document's first.
    """
    windows = [
        (number, np.concatenate([[start], ids])[first : first + context + 1])
        for number, ids in enumerate(documents)
        for first in range(0, len(ids), context)
    ]
    nats: list[list[np.ndarray]] = [[] for _ in documents]
    scored = window_nats(network, (ids for _, ids in windows), start, windows_at_once)
    for (number, _), nats_T in track(zip(windows, scored, strict=True), "loss by document", len(windows)):
        nats[number].append(nats_T)
    return [np.concatenate(parts) if parts else np.zeros(0) for parts in nats]


def window_nats(
    network: "LlamaForCausalLM", windows: Iterable[np.ndarray], filler: int, at_once: int, length: int | None = None
) -> Iterator[np.ndarray]:
    """Nats of every id but the first of each window, float64 (N - 1,), window by window.

    Args:
        windows: ids (N,), read ``at_once`` side by side.
        filler: the id that shorter ones are padded with; what stands behind a window changes nothing in it.
        length: ids that they are padded to; None takes the longest of those side by side.
    """
    import torch

    windows = iter(windows)
    while batch := list(islice(windows, at_once)):
        longest = max(map(len, batch)) if length is None else length
        ids_BT = torch.from_numpy(np.stack([_padded(ids, longest, filler) for ids in batch])).long()
        with torch.inference_mode():
            nats_BT = token_nats(network, ids_BT.to(network.device))
        for ids, nats_T in zip(batch, nats_BT, strict=True):
            yield nats_T[: len(ids) - 1]


def check_vocabulary(folder: ModelFolder, source: IndexedSource) -> None:
    """Raises InputError where the source's sidecar names another vocabulary than the model's."""
    built = source.sidecar.get("vocabulary")
    if built is not None and built.get("fingerprint") != fingerprint.of_value(asdict(folder.vocabulary)):
        raise InputError(
            source.prefix,
            f"was built with the vocabulary {built.get('name')}, {folder.path} has another ({folder.vocabulary.name})",
            "build the source with the model's vocabulary.yaml",
        )


def token_nats(network: "LlamaForCausalLM", ids_BT: "torch.Tensor") -> np.ndarray:
    """Nats of every id but the first of each row, float64 (B, T - 1)."""
    import torch

    hidden_NH = network.model(ids_BT[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
    parts = []
    for hidden, labels in zip(
        hidden_NH.split(SCORED_AT_ONCE), ids_BT[:, 1:].flatten().split(SCORED_AT_ONCE), strict=True
    ):
        logits = network.lm_head(hidden).float()
        parts.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    return torch.cat(parts).view(len(ids_BT), -1).double().cpu().numpy()


def _padded(ids: np.ndarray, length: int, filler: int) -> np.ndarray:
    """Ids (N,) with ``filler`` behind them, (length,)."""
    return np.concatenate([ids, np.full(length - len(ids), filler, dtype=ids.dtype)])
