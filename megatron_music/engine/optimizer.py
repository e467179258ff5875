"""AdamW over megatron-core's flat gradient buffers, by torch's fused kernel."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import optimizer as core
from megatron.core.optimizer import OptimizerConfig, distrib_optimizer, get_standard_config_overrides
from megatron.core.optimizer.optimizer import MegatronOptimizer
from megatron.core.tensor_parallel import param_is_not_tensor_parallel_duplicate

from megatron_music.engine.guard import StepGuard
from megatron_music.recipe.recipe import Optimizer

KINDS = 16
"""Columns of a table of losses for kinds of tokens: more than there are."""
COUNTED = KINDS - 1
"""The column, of no kind, of the tokens that count in the loss, where not all do."""
PARTS = ("embedding", "attention", "feed_forward", "norms", "output")
"""Of a network, for the gradient's norm."""


@dataclass(frozen=True)
class Update:
    """An update, taken or left out; tensors on the device, so that whoever reads one waits for it.

    Attributes:
        loss_table: (2, columns) sums of nats and counts of tokens, as ``Engine.forward_backward`` has them, of all
            processes.
        loss: () FP64, mean nats of the step's tokens that count.
        limit: () FP64, the loss above which it would have been left out.
        gradient_norm: () FP32, over all processes, before clipping.
        skipped: () FP32, 1 where it was left out: weights, moments and the count of updates are what they were.
        norms_by_part: where they were asked for, () FP64 for each of ``PARTS``.
    """

    loss_table: torch.Tensor
    loss: torch.Tensor
    limit: torch.Tensor
    gradient_norm: torch.Tensor
    skipped: torch.Tensor
    norms_by_part: dict[str, torch.Tensor] | None = None


class GroupStepAdamW(torch.optim.AdamW):
    """AdamW with one step counter for each parameter group, by torch's fused kernel.

    Torch keeps a counter for each parameter. Megatron-core's distributed optimizer asks for it when it saves, loads one
    tensor for all of them (which torch would then count up once for each parameter), and fails where it looks for
    a sharded state of that name. So the counter belongs to the group, and only ``state_dict`` shows it by parameter. It
    is on the device, as what decides whether it counts.
    """

    skip: torch.Tensor | None = None
    """() FP32 on the device; where it is 1, ``step`` changes nothing."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            states = [self._state_of(parameter) for parameter in parameters]
            step = self._counter(group)
            step += 1.0 if self.skip is None else 1.0 - self.skip
            torch._fused_adamw_(
                parameters,
                [parameter.grad for parameter in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [step] * len(parameters),
                lr=group["lr"],
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
                found_inf=self.skip,
            )

    def state_dict(self) -> dict[str, Any]:
        """State with the group's step beside every parameter's moments, where megatron-core reads it."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._state_of(parameter)
        content = super().state_dict()
        for group in content["param_groups"]:
            step = group.pop("counter", torch.zeros(())).to("cpu", copy=True)
            for index in group["params"]:
                content["state"][index] = {**content["state"][index], "step": step}
        return content

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Reads what ``state_dict`` gave, or megatron-core's version of it."""
        super().load_state_dict(content)
        for group in self.param_groups:
            group.pop("step", None)  # megatron-core's copy of the counter
            for parameter in group["params"]:
                step = self.state[parameter].pop("step", None)
                if step is not None:
                    self._counter(group).fill_(float(step))

    @staticmethod
    def _counter(group: dict[str, Any]) -> torch.Tensor:
        """Updates of a group, () FP32 on the device of its parameters."""
        if "counter" not in group:
            # Filled on the device: a copy from the host would wait for all that the device has yet to do.
            group["counter"] = torch.zeros((), device=group["params"][0].device)
        return group["counter"]

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        state = self.state[parameter]
        if not state:
            state.update(exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        return state


def build_optimizer(options: Optimizer, chunks: list[torch.nn.Module], bf16: bool) -> MegatronOptimizer:
    """Distributed optimizer of the wrapped ``chunks``; norm gains are not decayed; master weights are FP32."""
    config = OptimizerConfig(
        optimizer="adam",
        lr=0.0,  # every step brings its own
        weight_decay=options.weight_decay,
        adam_beta1=options.beta1,
        adam_beta2=options.beta2,
        adam_eps=options.epsilon,
        clip_grad=options.clip_norm,
        bf16=bf16,
        params_dtype=torch.bfloat16 if bf16 else torch.float32,
        use_distributed_optimizer=True,
        overlap_param_gather=chunks[0].ddp_config.overlap_param_gather,
    )
    # Transformer Engine's Adam, which megatron-core takes where it finds it, can't leave out an update on the device.
    core.USING_PYTORCH_OPTIMIZER = True
    distrib_optimizer.HAVE_APEX_OR_TE = distrib_optimizer.USING_TE_OPTIMIZER = False
    distrib_optimizer.USING_APEX_OPTIMIZER = False
    optimizer = core.get_megatron_optimizer(config, chunks, get_standard_config_overrides(config))
    for part in optimizer.chained_optimizers:
        if isinstance(part.optimizer, torch.optim.AdamW):
            # Megatron-core names torch's class itself, and torch refuses to start from the views that it optimizes.
            part.optimizer.__class__ = GroupStepAdamW
    set_constants(options, optimizer)
    return optimizer


@torch.no_grad()
def clip_and_update(
    optimizer: MegatronOptimizer,
    clip_norm: float,
    loss_table: torch.Tensor,
    guard: StepGuard,
    by_part: Callable[[], dict[str, list[torch.Tensor]]] | None = None,
) -> Update:
    """Clips the gradients of all processes to ``clip_norm`` together and updates, unless ``guard`` objects.

    Megatron-core's ``step`` does the same and reads the norm, for which the host waits in every step.

    Args:
        loss_table: this process' share, as ``Engine.forward_backward`` gives.
        by_part: gives the gradients of which the norms are asked for.
    """
    optimizer.prepare_grads()
    parts = optimizer.chained_optimizers
    counted = [gradient for part in parts for gradient in part.get_main_grads_for_grad_norm()]
    # The parts of one tensor on several processes are summed as squares.
    squares = [_square(counted, loss_table)]
    if by_part is not None:
        squares += [_square(gradients, loss_table) for gradients in by_part().values()]
    total = torch.cat([loss_table.flatten(), torch.stack(squares)])
    torch.distributed.all_reduce(total)
    loss_table, norms = total[: -len(squares)].view_as(loss_table), total[-len(squares) :].sqrt()
    norm = norms[0].float()
    loss = mean_loss(loss_table)
    skipped, limit = guard.judge(loss, norm)
    factor = (clip_norm / (norm + 1e-6)).clamp_(max=1.0)
    gradients = [parameter.grad for part in parts for parameter in part.get_parameters() if parameter.grad is not None]
    # Where the host can read the factor without waiting, a pass over memory that changes nothing is saved.
    if gradients and (factor.is_cuda or factor < 1):
        torch._foreach_mul_(gradients, factor)
    for part in parts:
        if part.optimizer is not None:
            part.optimizer.skip = skipped
    optimizer.step_with_ready_grads()
    parts_norms = dict(zip(PARTS, norms[1:], strict=True)) if by_part is not None else None
    return Update(loss_table, loss, limit, norm, skipped, parts_norms)


def _square(gradients: list[torch.Tensor], like: torch.Tensor) -> torch.Tensor:
    """Sum of squares, () of the type and on the device of ``like``."""
    if not gradients:
        return like.new_zeros(())
    return torch.stack(torch._foreach_norm(gradients)).to(like.dtype).square().sum()


def gradients_by_part(
    optimizer: MegatronOptimizer, chunks: list[torch.nn.Module]
) -> Callable[[], dict[str, list[torch.Tensor]]]:
    """What gives, once gradients are ready, those of this process' share of the weights for each of ``PARTS``.

    What several processes hold alike is with one of them, as in the norm of all.
    """

    def gather() -> dict[str, list[torch.Tensor]]:
        found: dict[str, list[torch.Tensor]] = {part: [] for part in PARTS}
        names = {parameter: name for chunk in chunks for name, parameter in chunk.named_parameters()}
        for optimized in optimizer.chained_optimizers:
            if optimized.optimizer is None:  # nothing to train on this process
                continue
            for model_parameter, (group, place) in optimized.model_param_group_index_map.items():
                parameter = optimized.optimizer.param_groups[group]["params"][place]
                if parameter.grad is not None and param_is_not_tensor_parallel_duplicate(parameter):
                    found[part_of(names[model_parameter])].append(parameter.grad)
        return found

    return gather


def part_of(name: str) -> str:
    """The part of the network that a parameter of megatron-core's name belongs to."""
    if "norm" in name:  # Transformer Engine keeps a layer's norms in the matrices behind them
        return "norms"
    marks = {"embedding": "embedding", "attention": "attention", "mlp": "feed_forward", "output_layer": "output"}
    return next(part for mark, part in marks.items() if mark in name)


def mean_loss(loss_table: torch.Tensor) -> torch.Tensor:
    """Mean nats of the tokens that count in a table of all processes, () FP64: of all tokens where no column tells."""
    nats, counts = torch.where(loss_table[1, COUNTED] > 0, loss_table[:, COUNTED], loss_table[:, :COUNTED].sum(dim=1))
    return nats / counts


def set_constants(options: Optimizer, optimizer: MegatronOptimizer) -> None:
    """Gives every parameter group the recipe's constants; call it again after a load, which brings the writer's.

    Megatron-core marks the groups that are not decayed and leaves it to the caller to act on the mark.
    """
    for group in optimizer.param_groups:
        group["weight_decay"] = options.weight_decay * group["wd_mult"]
        group["betas"], group["eps"] = (options.beta1, options.beta2), options.epsilon
