"""A Llama network that reads a batch of rows token by token, each row with its own key-value cache.

transformers loads and owns the weights; this module only runs them. What `generate()` lacks and a song needs: rows of
different lengths side by side (guidance's unconditional row, stage-2 tails), a cache that lives as long as the song,
and scores of only those ids that may follow.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

# Longer readings are cut into chunks, which bounds the attention mask at (rows, chunk, positions).
READING_CHUNK = 512
MOST_ROWS_TURNED, FEWEST_IDS_TURNED = 8, 16384


class LlamaDecoder:
    """Caches of ``rows`` sequences of at most ``positions`` tokens each.

    Letters in shapes: R rows, T tokens, H query heads, G key-value heads, D head size, N cached positions.
    """

    def __init__(self, model: "LlamaForCausalLM", rows: int, positions: int):
        config = model.config
        self.network, self.head = model.model, model.lm_head
        self.positions = positions
        self.lengths = [0] * rows
        self.query_heads, self.cache_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = _head_size(config)
        weight = self.head.weight
        self.device = weight.device
        shape = (config.num_hidden_layers, rows, self.cache_heads, positions, self.head_size)
        # Zeros and not whatever memory holds: a masked NaN would still poison the attention's sum.
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=self.device)
        self.values = torch.zeros(shape, dtype=weight.dtype, device=self.device)
        with torch.inference_mode():
            cos, sin = self.network.rotary_emb(weight, torch.arange(positions, device=self.device)[None])
        self.cos_ND, self.sin_ND = cos[0], sin[0]

    def forget(self, row: int) -> None:
        """Empties the cache of one row."""
        self.lengths[row] = 0

    @torch.inference_mode()
    def read(self, ids_RT: Sequence[Sequence[int]] | torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Appends T ids to each of ``rows``, which rise; by default to the first R rows.

        Rows that follow each other are read together, so that gaps cost a reading each.

        Returns:
            The network's output at the last id of each row, shape (R, hidden); ``score`` makes logits of it.

        Raises:
            ValueError: a row would grow beyond ``positions``.
        """
        ids_RT = torch.as_tensor(ids_RT, dtype=torch.long, device=self.device)
        rows = range(ids_RT.shape[0]) if rows is None else rows
        longest = max(self.lengths[row] for row in rows) + ids_RT.shape[1]
        if longest > self.positions:
            raise ValueError(f"{longest} tokens do not fit into {self.positions} positions")
        outputs, start = [], 0
        for run in _runs(rows):
            outputs.append(self._read_run(ids_RT[start : start + len(run)], run))
            start += len(run)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _read_run(self, ids_RT: torch.Tensor, rows: range) -> torch.Tensor:
        for chunk_RT in ids_RT.split(READING_CHUNK, dim=1):
            output_RTH = self._forward(chunk_RT, rows)
            for row in rows:
                self.lengths[row] += chunk_RT.shape[1]
        return F.rms_norm(
            output_RTH[:, -1], output_RTH.shape[-1:], self.network.norm.weight, self.network.norm.variance_epsilon
        )

    @torch.inference_mode()
    def score(self, output: torch.Tensor, ids: range | None = None) -> torch.Tensor:
        """Logits in float32, shape (R, vocabulary), of outputs (R, hidden), or of the given consecutive ids alone."""
        weight = self.head.weight if ids is None else self.head.weight[ids.start : ids.stop]
        if self.device.type == "cpu" and 1 < len(output) <= MOST_ROWS_TURNED and weight.shape[0] >= FEWEST_IDS_TURNED:
            # A few rows against 84k ids: MKL takes half the time for this order of the same product.
            return torch.mm(weight, output.t()).t().float()
        return F.linear(output, weight).float()

    def _forward(self, ids_RT: torch.Tensor, rows: range) -> torch.Tensor:
        R, T = ids_RT.shape
        starts = [self.lengths[row] for row in rows]
        even = min(starts) == max(starts)
        N = max(starts) + T
        steps_T = torch.arange(T, device=self.device)
        positions_RT = torch.tensor(starts, device=self.device)[:, None] + steps_T
        cos, sin = self.cos_ND[positions_RT][:, None], self.sin_ND[positions_RT][:, None]
        mask = None
        if not even or (T > 1 and starts[0] > 0):
            mask = torch.arange(N, device=self.device) <= positions_RT[:, None, :, None]  # (R, 1, T, N)
        x = self.network.embed_tokens(ids_RT)
        for index, layer in enumerate(self.network.layers):
            keys_RGND = self.keys[index, rows.start : rows.stop]
            values_RGND = self.values[index, rows.start : rows.stop]
            norm = layer.input_layernorm
            h = F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)
            attention = layer.self_attn
            q = _rotate(attention.q_proj(h).view(R, T, self.query_heads, -1).transpose(1, 2), cos, sin)
            k = _rotate(attention.k_proj(h).view(R, T, self.cache_heads, -1).transpose(1, 2), cos, sin)
            v = attention.v_proj(h).view(R, T, self.cache_heads, -1).transpose(1, 2)
            if even:
                keys_RGND[:, :, starts[0] : N] = k
                values_RGND[:, :, starts[0] : N] = v
            else:
                row_R1 = torch.arange(R, device=self.device)[:, None]
                keys_RGND[row_R1, :, positions_RT] = k.transpose(1, 2)
                values_RGND[row_R1, :, positions_RT] = v.transpose(1, 2)
            if T == 1 and not even and self.device.type == "cpu":
                # Row by row, no row reads the positions that only a longer one has.
                ends = [start + 1 for start in starts]
                rows_1HT = [
                    self._attend(q[r : r + 1], keys_RGND[r : r + 1, :, :end], values_RGND[r : r + 1, :, :end], None)
                    for r, end in enumerate(ends)
                ]
                attended = torch.cat(rows_1HT)
            else:
                attended = self._attend(q, keys_RGND[:, :, :N], values_RGND[:, :, :N], mask)
            x = x + attention.o_proj(attended)
            norm = layer.post_attention_layernorm
            x = x + layer.mlp(F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon))
        return x

    def _attend(self, q_RHTD: torch.Tensor, k_RGND: torch.Tensor, v_RGND: torch.Tensor, mask) -> torch.Tensor:
        """Returns (R, T, H * D)."""
        R, H, T, D = q_RHTD.shape
        if T == 1:
            # The queries that share a key-value head stand in for a time axis: no key is copied for its group.
            q = q_RHTD.reshape(R, self.cache_heads, H // self.cache_heads, D)
            return F.scaled_dot_product_attention(q, k_RGND, v_RGND, attn_mask=mask).reshape(R, 1, H * D)
        out = F.scaled_dot_product_attention(
            q_RHTD, k_RGND, v_RGND, attn_mask=mask, is_causal=mask is None, enable_gqa=H != self.cache_heads
        )
        return out.transpose(1, 2).reshape(R, T, H * D)


def _runs(rows: Sequence[int]) -> list[range]:
    """Rising numbers as runs of neighbours."""
    runs: list[range] = []
    for row in rows:
        if runs and runs[-1].stop == row:
            runs[-1] = range(runs[-1].start, row + 1)
        else:
            runs.append(range(row, row + 1))
    return runs


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding in transformers' half-split layout."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def cache_bytes(config: "LlamaConfig", positions: int, element_bytes: int) -> int:
    """Memory of one row of ``positions`` tokens."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * _head_size(config) * positions * element_bytes


def _head_size(config: "LlamaConfig") -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
