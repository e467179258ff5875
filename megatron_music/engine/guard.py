"""Which updates are left out: decided where the loss is, from the losses before it, alike on every process."""

import math

import torch

from megatron_music.recipe.recipe import Skip

_SIGMA = 1.4826
"""Standard deviations of a normal distribution to a median absolute deviation."""


class StepGuard:
    """The losses of the last steps, and whether a step's loss and gradient may change the network beside them.

    All of it stays on ``device``: nothing waits for a GPU.
    """

    def __init__(self, rule: Skip, device: torch.device):
        self.rule = rule
        self._recent = torch.full((rule.window_steps,), math.nan, dtype=torch.float64, device=device)
        self._slot = 0

    def judge(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether an update is left out, () FP32 of 1 or 0, and the loss up to which it is not, () FP64.

        ``loss`` and ``gradient_norm`` are () over all processes. The limit is infinite while half of the window, or
        more, is without a loss. A loss that is taken joins the window.
        """
        count = self._recent.isfinite().sum()
        median = _median(self._recent, count)
        deviation = _SIGMA * _median((self._recent - median).abs(), count)
        limit = median + (self.rule.deviations * deviation).clamp(min=self.rule.least_nats)
        limit = torch.where(2 * count > len(self._recent), limit, math.inf)
        is_good = gradient_norm.isfinite() & loss.isfinite() & (loss <= limit)
        self._recent[self._slot].copy_(torch.where(is_good, loss, math.nan))
        self._slot = (self._slot + 1) % len(self._recent)
        return 1.0 - is_good.float(), limit

    def forget(self) -> None:
        """Starts over: the losses before say nothing about those to come."""
        self._recent.fill_(math.nan)
        self._slot = 0

    @property
    def recent_losses(self) -> list[float | None]:
        """The window from its oldest loss on; None where an update was left out. Waits for the device."""
        losses = self._recent.roll(-self._slot).tolist()
        return [None if math.isnan(loss) else loss for loss in losses]

    @recent_losses.setter
    def recent_losses(self, losses: list[float | None]) -> None:
        self.forget()
        kept = losses[-len(self._recent) :]
        for slot, loss in enumerate(kept):
            self._recent[slot] = math.nan if loss is None else loss
        self._slot = len(kept) % len(self._recent)


def _median(values: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The (lower) median of the ``count`` finite numbers among ``values``.

    Torch's ``nanmedian`` has the host wait for the number of them.
    """
    middle = (count - 1).clamp(min=0) // 2
    return values.sort().values.gather(0, middle[None])[0]
