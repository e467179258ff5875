"""A Llama network that reads a batch of rows token by token, each row with its own key-value cache.

transformers loads the weights; this module runs them. What `generate()` lacks and a song needs: rows of different
lengths side by side (guidance's unconditional row, stage-2 tails), a cache that lives as long as the song, tokens that
can be taken back, and scores of only those ids that may follow.

A token is read in one of two ways, which share all but the attention. On a CPU each row attends to the positions that
it has. On a GPU all rows attend to all positions under a mask: nothing but the content of tensors then changes from
token to token, so that the step is captured once as a CUDA graph and replayed without a launch from Python. That costs
a reading of the whole caches at every token, however short the rows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM

# Longer readings are cut into chunks, which bounds the attention mask at (chunk, positions).
READING_CHUNK = 512
# So many tokens are static steps one by one; more are read together.
MOST_STATIC_TOKENS = 2
MOST_ROWS_TURNED, FEWEST_IDS_TURNED = 8, 16384
# Attention kernels with a mask want the number of positions aligned.
ALIGNED_POSITIONS = 8
WARM_UP_STEPS = 3


class LlamaDecoder:
    """Caches of ``rows`` sequences of at most ``positions`` tokens each.

    Letters in shapes: R rows, T tokens, H query heads, G key-value heads, D head size, N cached positions.

    Args:
        static: single tokens are read in one step of fixed shapes, a CUDA graph on GPUs; None does so on GPUs alone.
    """

    def __init__(self, model: "LlamaForCausalLM", rows: int, positions: int, static: bool | None = None):
        config = model.config
        self.embedding, self.norm, self.head = model.model.embed_tokens.weight, model.model.norm, model.lm_head.weight
        self.layers = [_Layer.of(layer) for layer in model.model.layers]
        self.positions = positions
        self.lengths = [0] * rows
        self.query_heads, self.cache_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_size = _head_size(config)
        self.device = self.head.device
        # One position at least is no token's: rows at rest write there in a static step.
        held = -(-(positions + 1) // ALIGNED_POSITIONS) * ALIGNED_POSITIONS
        shape = (len(self.layers), rows, self.cache_heads, held, self.head_size)
        # Zeros and not whatever memory holds: a masked NaN would still poison the attention's sum.
        self.keys = torch.zeros(shape, dtype=self.head.dtype, device=self.device)
        self.values = torch.zeros(shape, dtype=self.head.dtype, device=self.device)
        with torch.inference_mode():
            cos, sin = model.model.rotary_emb(self.head, torch.arange(held, device=self.device)[None])
            sin[..., : self.head_size // 2] *= -1
        self.cos_ND, self.sin_ND = cos[0], sin[0]
        static = self.device.type == "cuda" if static is None else static
        self._static = _StaticStep(self) if static else None

    def forget(self, row: int) -> None:
        """Empties the cache of one row."""
        self.lengths[row] = 0

    def take_back(self, row: int, tokens: int) -> None:
        """Forgets the last ``tokens`` of one row."""
        self.lengths[row] -= tokens

    @torch.inference_mode()
    def read(self, ids_RT: Sequence[Sequence[int]] | torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """Appends T ids to each of ``rows``, which rise; by default to the first R rows.

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
        static = self._static is not None and ids_RT.shape[1] <= MOST_STATIC_TOKENS
        for chunk_RT in ids_RT.split(1 if static else READING_CHUNK, dim=1):
            output = self._static.read(chunk_RT[:, 0], rows) if static else self._read_chunk(chunk_RT, rows)
            for row in rows:
                self.lengths[row] += chunk_RT.shape[1]
        return output

    @torch.inference_mode()
    def score(self, output: torch.Tensor, ids: range | None = None) -> torch.Tensor:
        """Logits in float32, shape (R, vocabulary), of outputs (R, hidden), or of the given consecutive ids alone."""
        weight = self.head if ids is None else self.head[ids.start : ids.stop]
        if self.device.type == "cpu" and 1 < len(output) <= MOST_ROWS_TURNED and len(weight) >= FEWEST_IDS_TURNED:
            # A few rows against 84k ids: MKL takes half the time for this order of the same product.
            return torch.mm(weight, output.t()).t().float()
        return F.linear(output, weight).float()

    def _read_chunk(self, ids_RT: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        R, T = ids_RT.shape
        runs = [_Run(self, rows, first, last, T) for first, last in pairwise(self._edges(rows))]

        def attend(layer: int, *qkv: torch.Tensor) -> torch.Tensor:
            q, k, v = (x.view(R, T, -1, self.head_size).transpose(1, 2) for x in qkv)
            attended = [run.attend(layer, q, k, v) for run in runs]
            return attended[0] if len(runs) == 1 else torch.cat(attended)

        positions_RT = [range(self.lengths[row], self.lengths[row] + T) for row in rows]
        positions = torch.tensor(positions_RT, device=self.device).flatten()
        return self.output(ids_RT.flatten(), positions, attend).view(R, T, -1)[:, -1]

    def _edges(self, rows: Sequence[int]) -> list[int]:
        """Where a run of neighbours of one length begins among ``rows``, and the end."""
        breaks = [
            place
            for place, (row, following) in enumerate(pairwise(rows), start=1)
            if following != row + 1 or self.lengths[following] != self.lengths[row]
        ]
        return [0, *breaks, len(rows)]

    def output(self, ids: torch.Tensor, positions: torch.Tensor, attend: Callable) -> torch.Tensor:
        """The network's output (tokens, hidden) for ids and positions (tokens,).

        ``attend(layer, q, k, v)``, where q is (tokens, H, D), k and v are (tokens, G, D), stores keys and values and
        returns what the queries attend to, (tokens, H * D).
        """
        H, G, D = self.query_heads, self.cache_heads, self.head_size
        cos, sin = self.cos_ND[positions][:, None], self.sin_ND[positions][:, None]
        x = F.embedding(ids, self.embedding)
        for number, layer in enumerate(self.layers):
            heads = F.linear(_normed(x, layer.attention_norm), *layer.qkv).view(-1, H + 2 * G, D)
            # Rotary embedding in transformers' half-split layout: the first half of the sines is negative.
            turned = heads[:, : H + G]
            turned = torch.addcmul(turned * cos, turned.roll(D // 2, dims=-1), sin)
            attended = attend(number, turned[:, :H], turned[:, H:], heads[:, H + G :])
            x = x + F.linear(attended, *layer.attention_output)
            gate, up = F.linear(_normed(x, layer.mlp_norm), *layer.gate_up).chunk(2, dim=-1)
            x = x + F.linear(layer.activation(gate) * up, *layer.mlp_output)
        return _normed(x, self.norm)


class _Run:
    """Rows that are neighbours and of one length: a chunk of T tokens of theirs attends in one call."""

    def __init__(self, decoder: LlamaDecoder, rows: Sequence[int], first: int, last: int, T: int):
        self.places, self.rows = slice(first, last), slice(rows[first], rows[last - 1] + 1)
        start = decoder.lengths[rows[first]]
        caches = (decoder.keys, decoder.values)
        # All layers are cut at once: a view costs as much time as a small product.
        self.cached = [cache[:, self.rows, :, : start + T].unbind() for cache in caches]
        self.new = [cache[:, self.rows, :, start : start + T].unbind() for cache in caches]
        self.causal, self.mask = T > 1, None
        if T > 1 and start > 0:
            mask = torch.ones(T, start + T, dtype=torch.bool, device=decoder.device)
            self.causal, self.mask = False, mask.tril(start)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """For q, k, v of all rows that are read, (R, H or G, T, D); returns (tokens of the run, H * D)."""
        q, k, v = (x[self.places] for x in (q, k, v))
        self.new[0][layer].copy_(k)
        self.new[1][layer].copy_(v)
        keys, values = self.cached[0][layer], self.cached[1][layer]
        if q.shape[2] == 1:
            return _attend_single(q, keys, values)
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=self.mask, is_causal=self.causal, enable_gqa=grouped
        )
        return out.transpose(1, 2).flatten(2).flatten(0, 1)


class _StaticStep:
    """One token for any rows of a decoder, in the same operations on the same memory every time."""

    def __init__(self, decoder: LlamaDecoder):
        self.decoder, rows, device = decoder, len(decoder.lengths), decoder.device
        self.row_R = torch.arange(rows, device=device)
        self.ids_R = torch.zeros(rows, dtype=torch.long, device=device)
        self.positions_R = torch.full((rows,), decoder.positions, device=device)
        self.placed = [decoder.positions] * rows
        self.rows: list[int] = []
        self.read_R = torch.empty(0, dtype=torch.long, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def read(self, ids_R: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
        """Appends an id to each of ``rows``; the network's output (R, hidden)."""
        if self.decoder.device.type == "cuda" and self.graph is None:
            self._capture()
        self._place(list(rows))
        self.ids_R[self.read_R] = ids_R
        if self.graph is None:
            return self.step()[self.read_R]
        self.graph.replay()
        # A copy: the next replay writes over it.
        return self.output[self.read_R]

    def _place(self, rows: list[int]) -> None:
        """Puts ``rows`` at the end of what they hold, all others at rest.

        What comes from the host waits until the device has done all before. Where the same rows go on, nothing does.
        """
        lengths, before = self.decoder.lengths, self.placed
        self.placed = [self.decoder.positions] * len(before)
        for row in rows:
            self.placed[row] = lengths[row]
        if rows == self.rows and all(self.placed[row] == before[row] + 1 for row in rows):
            self.positions_R[self.read_R] += 1
            return
        self.rows, self.read_R = rows, torch.tensor(rows, device=self.decoder.device)
        self.positions_R.copy_(torch.tensor(self.placed))

    def step(self) -> torch.Tensor:
        """The output (rows, hidden) for ``ids_R`` at ``positions_R``; those at rest stand behind the last position."""
        decoder = self.decoder
        N = decoder.keys.shape[3]
        mask = (torch.arange(N, device=decoder.device) <= self.positions_R[:, None])[:, None, None]

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = decoder.keys[layer], decoder.values[layer]
            keys[self.row_R, :, self.positions_R] = k
            values[self.row_R, :, self.positions_R] = v
            return _attend_single(q[:, :, None], keys, values, mask)

        return decoder.output(self.ids_R, self.positions_R, attend)

    def _capture(self) -> None:
        """Records the step; all rows are at rest meanwhile, so that no cache changes."""
        # Streams and graphs are the current device's, which need not be the network's.
        with torch.cuda.device(self.decoder.device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    self.step()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.output = self.step()


@dataclass(frozen=True)
class _Layer:
    """One layer: its norms, its activation, and (weight, bias or None) of its products."""

    attention_norm: nn.Module
    qkv: tuple[torch.Tensor, torch.Tensor | None]
    attention_output: tuple[torch.Tensor, torch.Tensor | None]
    mlp_norm: nn.Module
    gate_up: tuple[torch.Tensor, torch.Tensor | None]
    activation: Callable
    mlp_output: tuple[torch.Tensor, torch.Tensor | None]

    @classmethod
    def of(cls, layer: nn.Module) -> "_Layer":
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            layer.input_layernorm,
            _joined([attention.q_proj, attention.k_proj, attention.v_proj]),
            _joined([attention.o_proj]),
            layer.post_attention_layernorm,
            _joined([mlp.gate_proj, mlp.up_proj]),
            mlp.act_fn,
            _joined([mlp.down_proj]),
        )


def _joined(linears: Sequence[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Products of one input as a single one; their own weights become views of its weight: none is held twice."""
    first, sizes = linears[0].weight, [linear.out_features for linear in linears]
    offset = first.storage_offset()
    for linear in linears:
        whole = linear.weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not whole or linear.weight.storage_offset() != offset:
            joined = torch.cat([linear.weight.data for linear in linears])
            for part, each in zip(joined.split(sizes), linears, strict=True):
                each.weight.data = part
            break
        offset += linear.weight.numel()
    weight = linears[0].weight.data.as_strided((sum(sizes), first.shape[1]), (first.shape[1], 1))
    return weight, None if linears[0].bias is None else torch.cat([linear.bias.data for linear in linears])


def _normed(x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _attend_single(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """What single queries (R, H, 1, D) attend to among keys and values (R, G, N, D): (R, H * D).

    The queries that share a key-value head stand in for a time axis: no key is copied for its group.
    """
    R, G = keys.shape[:2]
    out = F.scaled_dot_product_attention(q.reshape(R, G, -1, q.shape[-1]), keys, values, attn_mask=mask)
    return out.reshape(R, -1)


def cache_bytes(config: "LlamaConfig", positions: int, element_bytes: int) -> int:
    """Memory of one row of ``positions`` tokens."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * _head_size(config) * positions * element_bytes


def _head_size(config: "LlamaConfig") -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
