"""Keep the weights whose removal would change the loss most, to first order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cap.pruning.masks import ScoredMask
from cap.pruning.observed import ObservedPruner
from cap.pruning.weights import Scope

DECAY = 0.9


class FirstOrder(ObservedPruner):
    """Prune by the moving average of |w · dL/d(w·mask)|; pruned weights are scored too, so that they can return.

    Args:
        scope: As in ``WeightPruner``; ``global`` by default, so that each matrix finds its own sparsity.
        pattern: Likewise.

    Source: Taylor criterion, arXiv:1906.10771, equation 8 without the square, smoothed over optimizer steps.
    """

    averages = ("average",)

    def __init__(self, *, scope: Scope = "global", pattern: str | None = None) -> None:
        super().__init__(scope=scope, pattern=pattern)

    def take_in(self, modules: Sequence[ScoredMask], observed: Sequence[Tensor], *, may_overflow: bool) -> None:
        """Move the averages towards this step's; an entry that overflowed stays where it is."""
        if not modules:
            return
        averages = [module.get_buffer("average") for module in modules]
        if may_overflow:
            observed = [step.where(step.isfinite(), old) for step, old in zip(observed, averages, strict=True)]
        torch._foreach_lerp_(averages, list(observed), 1 - DECAY)

    def importance(self, name: str) -> Tensor:
        """Return the moving average."""
        average: Tensor = self.scored(name).get_buffer("average")
        return average


__all__ = ["FirstOrder"]
