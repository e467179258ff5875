"""Context parallelism: n processes share every sequence, cut into 2 n chunks; process i holds chunks i and 2 n - 1 - i.

Under causal attention the work of a chunk grows with its place, so that such pairs are equal work. It is the order in
which megatron-core cuts the rotary angles and Transformer Engine's attention exchanges keys and values.
"""

from collections.abc import Sequence

import torch


def own_chunks(whole: torch.Tensor, dim: int, group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """This process' two chunks of ``whole``, one after the other along ``dim``."""
    count, rank = group.size(), group.rank()
    if count == 1:
        return whole
    chunks = whole.chunk(2 * count, dim)
    return torch.cat([chunks[rank], chunks[2 * count - 1 - rank]], dim)


def in_order(shares: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    """The whole along ``dim`` from what the processes hold, by rank."""
    pairs = [share.chunk(2, dim) for share in shares]
    return torch.cat([first for first, _ in pairs] + [last for _, last in reversed(pairs)], dim)


def gather(share: torch.Tensor, dim: int, group: torch.distributed.ProcessGroup) -> torch.Tensor:
    """The whole along ``dim`` on every process of ``group``."""
    if group.size() == 1:
        return share
    shares = [torch.empty_like(share, memory_format=torch.contiguous_format) for _ in range(group.size())]
    torch.distributed.all_gather(shares, share.contiguous(), group=group)
    return in_order(shares, dim)


class GatherSequence(torch.autograd.Function):
    """``gather`` of (batch, heads, own part of the sequence, channels); gradients are summed over the processes."""

    @staticmethod
    def forward(ctx, share: torch.Tensor, group: torch.distributed.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return gather(share, 2, group)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        total = gradient.contiguous()
        torch.distributed.all_reduce(total, group=ctx.group)
        return own_chunks(total, 2, ctx.group), None


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, group: torch.distributed.ProcessGroup
) -> torch.Tensor:
    """Causal attention of this process' queries to the keys of the whole sequence, which are gathered before.

    Transformer Engine's passes keys and values round while it computes; this waits for them, and holds all of them.

    Args:
        query: (batch, heads, own part of the sequence, channels).
        key: (batch, groups, own part of the sequence, channels).
        value: like ``key``.

    Returns:
        like ``query``.
    """
    count, rank = group.size(), group.rank()
    key, value = GatherSequence.apply(key, group), GatherSequence.apply(value, group)
    length = query.shape[2] // 2
    parts = []
    for part, chunk in zip(query.chunk(2, 2), (rank, 2 * count - 1 - rank), strict=True):
        end = (chunk + 1) * length
        seen = torch.ones(length, end, dtype=torch.bool, device=query.device).tril(end - length)
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                part, key[:, :, :end], value[:, :, :end], attn_mask=seen, enable_gqa=query.shape[1] != key.shape[1]
            )
        )
    return torch.cat(parts, 2)
