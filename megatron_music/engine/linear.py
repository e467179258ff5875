"""Tensor-parallel linear layers that add their weights' gradients straight into the gradient buffer.

A weight that is not trained takes no gradient, and its layer keeps no input for one.
"""

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from megatron_music.engine.kernels import add_weight_gradient_, product


class Product(torch.autograd.Function):
    """``x @ weight.T`` and megatron-core's communication around it.

    With ``sequence_parallel``, ``x`` is this process' share of the sequence, gathered before the product, and its
    gradient is summed and scattered; with ``sum_gradient`` the gradient is summed over ``group``. Both overlap with the
    weight's gradient.
    """

    @staticmethod
    def forward(ctx, x, weight, group, sequence_parallel: bool, sum_gradient: bool):
        ctx.save_for_backward(*([x] if weight.requires_grad else []))
        ctx.shape = x.shape
        ctx.weight, ctx.group, ctx.sequence_parallel, ctx.sum_gradient = weight, group, sequence_parallel, sum_gradient
        whole = _gather(x, group)[0] if sequence_parallel else x
        return _rows(product(_matrix(whole), weight.t()), whole)

    @staticmethod
    def backward(ctx, gradient):
        weight, trained = ctx.weight, ctx.weight.requires_grad
        whole, gathering = ctx.saved_tensors[0] if trained else None, None
        if trained and ctx.sequence_parallel:
            whole, gathering = _gather(whole, ctx.group, wait=False)
        lengths, gradient = gradient, _matrix(gradient)
        x_gradient = _rows(product(gradient, weight), lengths)
        if gathering is not None:
            gathering.wait()
        summing = None
        if ctx.sequence_parallel:
            summed, x_gradient = x_gradient, x_gradient.new_empty(ctx.shape)
            summing = torch.distributed.reduce_scatter_tensor(x_gradient, summed, group=ctx.group, async_op=True)
        elif ctx.sum_gradient:
            summing = torch.distributed.all_reduce(x_gradient, group=ctx.group, async_op=True)
        if trained:
            add_weight_gradient_(weight.main_grad, gradient, _matrix(whole))
            weight.grad_added_to_main_grad = True
        if summing is not None:
            summing.wait()
        # The wrapper for data parallelism waits for a gradient of every trained weight; it does not read this one.
        return x_gradient, torch.empty_like(weight) if trained else None, None, None, None


def _matrix(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


def _rows(matrix: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return matrix.view(*like.shape[:-1], matrix.shape[-1])


def _gather(x: torch.Tensor, group, wait: bool = True):
    whole = x.new_empty(x.shape[0] * group.size(), *x.shape[1:])
    handle = torch.distributed.all_gather_into_tensor(whole, x.contiguous(), group=group, async_op=not wait)
    return whole, handle


class _OwnProduct:
    def _forward_impl(self, input, weight, **options):
        return Product.apply(
            input, weight, options["tp_group"], options["sequence_parallel"], options["allreduce_dgrad"]
        )


class ColumnLinear(_OwnProduct, ColumnParallelLinear):
    """Megatron-core's linear layer cut by outputs, for networks wrapped for data parallelism."""


class RowLinear(_OwnProduct, RowParallelLinear):
    """Megatron-core's linear layer cut by inputs, for networks wrapped for data parallelism."""
