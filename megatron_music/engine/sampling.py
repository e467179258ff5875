"""Next-token sampling straight from a model in training, on any layout."""

from collections.abc import Sequence

import numpy as np
import torch

from megatron_music.engine.engine import Engine


def sample_freely(engine: Engine, prompts: Sequence[np.ndarray], count: int, seed: int) -> np.ndarray:
    """Continues every prompt by ``count`` ids drawn from the whole vocabulary at temperature 1; all processes call it.

    Every id reads the whole text before it again, since a model in training keeps no cache: meant for short samples.

    Args:
        prompts: int64 (length,) each; lengths may differ.
        seed: the same seed gives the same samples on any layout, up to rounding.

    Returns:
        int64 (prompts, count).
    """
    lengths = np.array([len(prompt) for prompt in prompts])
    # Causal attention does not look at the padding on the right; 64 lets every tensor-parallel size cut the sequence.
    width = -(-(int(lengths.max()) + count) // 64) * 64
    ids = np.zeros((len(prompts), width), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    rows = np.arange(len(prompts))
    generator = torch.Generator().manual_seed(seed)
    for position in range(count):
        read = -(-int(lengths.max() + position) // 64) * 64
        logits = engine.logits(ids[:, :read])[rows, lengths + position - 1].cpu()
        # The largest logit minus Gumbel noise of one generator on every process: the same draw everywhere.
        noise = -torch.empty_like(logits).exponential_(generator=generator).log()
        ids[rows, lengths + position] = (logits + noise).argmax(dim=-1).numpy()
    return ids[rows[:, None], lengths[:, None] + np.arange(count)]
