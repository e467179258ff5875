"""AdamW over megatron-core's flat gradient buffers: torch's fused kernel, or Transformer Engine's."""

from typing import Any

import torch
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer.optimizer import MegatronOptimizer

from megatron_music.recipe.recipe import Optimizer


class GroupStepAdamW(torch.optim.AdamW):
    """AdamW with one step counter for each parameter group, as Transformer Engine's has, by torch's fused kernel.

    Torch keeps a counter for each parameter. Megatron-core's distributed optimizer asks for it when it saves, loads one
    tensor for all of them (which torch would then count up once for each parameter), and fails where it looks for
    a sharded state of that name. So the counter lives in the group, and only ``state_dict`` shows it by parameter.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Updates every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            states = [self._state_of(parameter) for parameter in parameters]
            # Filled on the device: a copy from the host would wait for all that the device has yet to do.
            step = torch.full((), float(group["step"]), device=parameters[0].device)
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
            )

    def state_dict(self) -> dict[str, Any]:
        """State with the group's step beside every parameter's moments, where megatron-core reads it."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._state_of(parameter)
        content = super().state_dict()
        for group in content["param_groups"]:
            step = torch.tensor(float(group.get("step", 0)))
            for index in group["params"]:
                content["state"][index] = {**content["state"][index], "step": step}
        return content

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Reads what ``state_dict`` gave, or megatron-core's version of it."""
        super().load_state_dict(content)
        for group in self.param_groups:
            for parameter in group["params"]:
                step = self.state[parameter].pop("step", None)
                if step is not None:
                    group["step"] = int(step)

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
    optimizer = get_megatron_optimizer(config, chunks, get_standard_config_overrides(config))
    for part in optimizer.chained_optimizers:
        if isinstance(part.optimizer, torch.optim.AdamW):
            # Megatron-core names torch's class itself, and torch refuses to start from the views that it optimizes.
            part.optimizer.__class__ = GroupStepAdamW
    set_constants(options, optimizer)
    return optimizer


@torch.no_grad()
def clip_and_update(optimizer: MegatronOptimizer, clip_norm: float) -> torch.Tensor:
    """Clips the gradients of all processes to ``clip_norm`` together and updates the parameters.

    Megatron-core's ``step`` does the same and reads the norm, for which the host waits in every step.

    Returns:
        () FP32: the norm before clipping.
    """
    optimizer.prepare_grads()
    parts = optimizer.chained_optimizers
    counted = [gradient for part in parts for gradient in part.get_main_grads_for_grad_norm()]
    # The parts of one tensor on several processes are summed as squares.
    square = torch.zeros((), device=torch.cuda.current_device())
    if counted:
        square = torch.stack(torch._foreach_norm(counted)).square_().sum()
    torch.distributed.all_reduce(square, group=optimizer.get_grad_stats_parallel_group())
    norm = square.sqrt_()
    factor = (clip_norm / (norm + 1e-6)).clamp_(max=1.0)
    gradients = [parameter.grad for part in parts for parameter in part.get_parameters() if parameter.grad is not None]
    # Where the host can read the factor without waiting, a pass over memory that changes nothing is saved.
    if gradients and (factor.is_cuda or factor < 1):
        torch._foreach_mul_(gradients, factor)
    optimizer.step_with_ready_grads()
    return norm


def set_constants(options: Optimizer, optimizer: MegatronOptimizer) -> None:
    """Gives every parameter group the recipe's constants; call it again after a load, which brings the writer's.

    Megatron-core marks the groups that are not decayed and leaves it to the caller to act on the mark.
    """
    for group in optimizer.param_groups:
        group["weight_decay"] = options.weight_decay * group["wd_mult"]
        group["betas"], group["eps"] = (options.beta1, options.beta2), options.epsilon
