"""Differentiable operations in few passes over memory: norm, rotary heads, SwiGLU, cross entropy, matrix products.

Each of these replaces a chain of torch operations whose intermediate results would each be written, read and kept. On a
CPU torch's operations write over what is no longer needed; on a GPU the same formulas are compiled into a kernel each.
"""

import functools
from collections.abc import Callable

import torch

_CROSS_ENTROPY_BYTES = {"cpu": 2**21, "cuda": 2**28}
"""Of FP32 logits worked on at once: what stays in a core's cache, or a small share of a GPU's memory."""

_ONEDNN = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
_MULTIPLIES_BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def compiled(formula: Callable) -> Callable:
    """``formula`` of tensors on a GPU as one kernel, made at its first call; else, or without Triton, as it stands."""

    @functools.cache
    def make() -> Callable:
        from torch.utils._triton import has_triton

        return torch.compile(formula) if has_triton() else formula

    @functools.wraps(formula)
    def run(first: torch.Tensor, *others: torch.Tensor | int) -> torch.Tensor:
        return (make() if _on_gpu(first) else formula)(first, *others)

    return run


def _on_gpu(x: torch.Tensor) -> bool:
    return x.is_cuda


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left @ right`` of two matrices; best where ``left`` is contiguous.

    For FP32 this takes oneDNN on every processor with AVX-512, where torch's own choice (MKL) uses AVX2 on AMD's: twice
    as fast there, and equal on Intel's. Without AVX-512 MKL is the faster, by half where a matrix comes transposed. A
    CPU that can't multiply BF16 does it in FP32 and rounds once, as one that can sums in FP32; torch would take the
    numbers one by one.
    """
    if left.dtype == torch.bfloat16 and left.device.type == "cpu" and not _MULTIPLIES_BF16:
        return product(left.float(), right.float()).bfloat16()
    if _takes_onednn(left):
        return torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")
    return torch.mm(left, right)


def add_weight_gradient_(buffer: torch.Tensor, gradient: torch.Tensor, given: torch.Tensor) -> None:
    """Adds ``gradient.T @ given`` of (rows, out) and (rows, in) to ``buffer``, (out, in).

    oneDNN gets the smaller of the two as a transposed copy; BLAS takes either as it lies, and adds on its way.
    """
    if buffer.dtype == gradient.dtype and not _takes_onednn(gradient):
        buffer.addmm_(gradient.t(), given)
    elif gradient.shape[1] > given.shape[1]:
        buffer.add_(product(given.t(), gradient).t())
    else:
        buffer.add_(product(gradient.t(), given))


def _takes_onednn(matrix: torch.Tensor) -> bool:
    return _ONEDNN and matrix.dtype == torch.float32 and matrix.device.type == "cpu"


class RMSNormalize(torch.autograd.Function):
    """``x / sqrt(mean(x^2) + epsilon) * gain`` over the last dimension, computed in FP32."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, gain: torch.Tensor, epsilon: float) -> torch.Tensor:
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, gain, scale)
        return (wide * scale).mul_(gain).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        x, gain, scale = ctx.saved_tensors
        size = x.shape[-1]
        x_2d, scale_2d = x.reshape(-1, size).float(), scale.view(-1, 1)
        gradient_2d, gain_wide = gradient.reshape(-1, size).float(), gain.float()
        products = gradient_2d * x_2d
        gain_gradient = torch.mv(products.t(), scale_2d[:, 0])
        # d x = scale (g gain - x scale^2 mean(g gain x))
        along = torch.mv(products, gain_wide)[:, None].mul_(scale_2d.pow(3)).div_(size)
        x_gradient = torch.mul(gradient_2d, gain_wide, out=products).mul_(scale_2d).addcmul_(x_2d, along, value=-1)
        return x_gradient.view(x.shape).to(x.dtype), gain_gradient.to(gain.dtype), None


class RotaryHeads(torch.autograd.Function):
    """Cuts the output of a query-key-value product into heads and turns queries and keys by their positions.

    Args:
        mixed: (sequence, batch, groups x (queries of a group + 2) x head size), as megatron-core lays it out.
        cosine: (sequence, head size / 2) of the angles; channel i turns with channel i + head size / 2.
        sine: like ``cosine``.
        groups: key-value heads in ``mixed``.

    Returns:
        queries (batch, heads, sequence, head size), keys and values (batch, groups, sequence, head size).
    """

    @staticmethod
    def forward(ctx, mixed: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, groups: int):
        ctx.save_for_backward(cosine, sine)
        sequence, batch = mixed.shape[:2]
        size = 2 * cosine.shape[-1]
        # (batch, groups, queries + key + value, sequence, size)
        heads = mixed.view(sequence, batch, groups, -1, size).permute(1, 2, 3, 0, 4)
        ctx.shape = heads.shape
        queries = heads.shape[2] - 2
        # Copied: attention keeps the values for its backward pass, and as a view they would keep all of ``mixed``.
        value = heads[:, :, -1].clone(memory_format=torch.contiguous_format)
        if _on_gpu(mixed):
            query = rotated(heads[:, :, :queries], cosine, sine).flatten(1, 2)
            return query, rotated(heads[:, :, queries], cosine, sine), value
        query = mixed.new_empty(batch, groups, queries, sequence, size)
        key = mixed.new_empty(batch, groups, 1, sequence, size)
        _rotate(heads[:, :, :queries], cosine, sine, query)
        _rotate(heads[:, :, queries : queries + 1], cosine, sine, key)
        return query.flatten(1, 2), key.flatten(1, 2), value

    @staticmethod
    def backward(ctx, query_gradient: torch.Tensor, key_gradient: torch.Tensor, value_gradient: torch.Tensor):
        cosine, sine = ctx.saved_tensors
        batch, groups, per_group, sequence, size = ctx.shape
        queries = per_group - 2
        if _on_gpu(query_gradient):
            turned = torch.cat([query_gradient.unflatten(1, (groups, queries)), key_gradient.unsqueeze(2)], 2)
            heads = torch.cat([rotated(turned, cosine, -sine), value_gradient.unsqueeze(2)], 2)
            return heads.permute(3, 0, 1, 2, 4).reshape(sequence, batch, -1), None, None, None
        mixed = query_gradient.new_empty(sequence, batch, groups * per_group * size)
        heads = mixed.view(sequence, batch, groups, per_group, size).permute(1, 2, 3, 0, 4)
        # The inverse of a rotation turns by the opposite angle.
        _rotate(query_gradient.unflatten(1, (groups, queries)), cosine, -sine, heads[:, :, :queries])
        _rotate(key_gradient.unsqueeze(2), cosine, -sine, heads[:, :, queries : queries + 1])
        heads[:, :, -1].copy_(value_gradient)
        return mixed, None, None, None


@compiled
def rotated(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """``x`` (..., sequence, head size) turned by the angles of (sequence, head size / 2)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def _rotate(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, out: torch.Tensor) -> None:
    (first, second), (out_first, out_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cosine, out=out_first).addcmul_(second, sine, value=-1)
    torch.mul(second, cosine, out=out_second).addcmul_(first, sine)


class SwiGLU(torch.autograd.Function):
    """``silu(gate) * up`` of (..., gate and up side by side); keeps its input only."""

    @staticmethod
    def forward(ctx, both: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(both)
        if _on_gpu(both):
            return gated(both)
        gate, up = both.chunk(2, dim=-1)
        return torch.nn.functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        (both,) = ctx.saved_tensors
        if _on_gpu(both):
            return gated_gradient(both, gradient)
        gate, up = both.chunk(2, dim=-1)
        result = torch.empty_like(both)
        gate_gradient, up_gradient = result.chunk(2, dim=-1)
        torch.mul(gradient, up, out=gate_gradient)
        torch.ops.aten.silu_backward.grad_input(gate_gradient, gate, grad_input=gate_gradient)
        torch.ops.aten.silu.out(gate, out=up_gradient).mul_(gradient)
        return result


@compiled
def gated(both: torch.Tensor) -> torch.Tensor:
    """SwiGLU of (..., gate and up side by side)."""
    gate, up = both.float().chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(both.dtype)


@compiled
def gated_gradient(both: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Gradient of ``both`` from that of ``gated(both)``."""
    gate, up = both.float().chunk(2, dim=-1)
    sigmoid, gradient = torch.sigmoid(gate), gradient.float()
    gate_gradient = gradient * up * sigmoid * (1 + gate * (1 - sigmoid))
    return torch.cat([gate_gradient, gradient * gate * sigmoid], dim=-1).to(both.dtype)


class VocabularyCrossEntropy(torch.autograd.Function):
    """Cross entropy of logits whose vocabulary lies in equal, consecutive shares on the processes of ``group``.

    The backward pass writes the gradient over the logits, which nothing else may use: they never live twice, and
    never in FP32 where they came in BF16. It can run only once.

    Args:
        logits: (rows, share of the vocabulary), contiguous.
        labels: (rows,) ids of the whole vocabulary.

    Returns:
        (rows,) nats, FP32.
    """

    @staticmethod
    def forward(ctx, logits: torch.Tensor, labels: torch.Tensor, group: torch.distributed.ProcessGroup):
        share, shared = logits.shape[1], group.size() > 1
        local = labels - group.rank() * share
        inside = (local >= 0) & (local < share)
        local = local.clamp(0, share - 1)[:, None]
        target = logits.gather(1, local)[:, 0].float().mul_(inside)
        log_sum = torch.cat([log_sum_exp(piece) for piece in logits.split(_rows(logits))])
        if shared:
            shares = log_sum.new_empty(group.size() * len(log_sum))
            torch.distributed.all_gather_into_tensor(shares, log_sum, group=group)
            torch.distributed.all_reduce(target, group=group)
            log_sum = shares.view(group.size(), -1).logsumexp(0)
        ctx.save_for_backward(logits, local, inside, log_sum)
        return log_sum - target

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        logits, local, inside, log_sum = ctx.saved_tensors
        rows = _rows(logits)
        columns = (local, -inside[:, None].float(), log_sum[:, None], gradient[:, None])
        for piece, index, hit, constant, factor in zip(
            logits.split(rows), *(column.split(rows) for column in columns), strict=True
        ):
            target = (piece.gather(1, index).float() - constant).exp_().add_(hit).mul_(factor)
            scaled_probabilities_(piece, constant, factor).scatter_(1, index, target.to(piece.dtype))
        return logits, None, None


@compiled
def log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """FP32 logarithm of the summed exponentials of every row."""
    return logits.float().logsumexp(1)


@compiled
def scaled_probabilities_(logits: torch.Tensor, log_sum: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Writes ``factor`` times the probabilities over the logits; (rows, columns), (rows, 1), (rows, 1)."""
    return logits.copy_(logits.float().sub_(log_sum).exp_().mul_(factor))


def _rows(logits: torch.Tensor) -> int:
    return max(1, _CROSS_ENTROPY_BYTES[logits.device.type] // (4 * logits.shape[1]))
