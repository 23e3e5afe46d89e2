"""Keep the weights whose removal would change the loss most, to first order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cap.models.families import Prunable
from cap.pruning.masks import ScoredMask
from cap.pruning.weights import Scope, WeightPruner

DECAY = 0.9


class FirstOrder(WeightPruner):
    """Prune by the moving average of |w · dL/d(w·mask)|; pruned weights are scored too, so that they can return.

    Args:
        scope: As in ``WeightPruner``; ``global`` by default, so that each matrix finds its own sparsity.
        pattern: Likewise.

    Source: Taylor criterion, arXiv:1906.10771, equation 8 without the square, smoothed over optimizer steps.
    """

    learns_scores = True
    mask_type = ScoredMask

    def __init__(self, *, scope: Scope = "global", pattern: str | None = None) -> None:
        super().__init__(scope=scope, pattern=pattern)

    def attach(self, prunable: Prunable, *, seed: int) -> None:
        """Put the masks on; every average starts at 0."""
        super().attach(prunable, seed=seed)
        for name in prunable.linears:
            module = self.scored(name)
            module.register_buffer("average", torch.zeros_like(module.scores))

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """List the scores: their gradient w · dL/d(w·mask), summed over micro-batches, is all that is used of them."""
        return [self.scored(name).scores for name in self.masks]

    def observe_gradients(self, *, scale: float) -> None:
        """Move the averages towards this step's |w · dL/d(w·mask)| and clear the gradients."""
        seen = {name: grad for name in self.masks if (grad := self.scored(name).scores.grad) is not None}
        for name in seen:
            self.scored(name).scores.grad = None
        if not seen:
            return
        averages, observed = [self.importance(name) for name in seen], list(seen.values())
        torch._foreach_abs_(observed)
        if scale == 1:
            torch._foreach_lerp_(averages, observed, 1 - DECAY)
            return
        torch._foreach_div_(observed, scale)
        for average, step in zip(averages, observed, strict=True):
            # A loss scaler provokes infinities to find its scale; one would stay in the average for good.
            average.copy_(torch.where(step.isfinite(), average.lerp(step, 1 - DECAY), average))

    def importance(self, name: str) -> Tensor:
        """Return the moving average."""
        average: Tensor = self.scored(name).get_buffer("average")
        return average


__all__ = ["DECAY", "FirstOrder"]
