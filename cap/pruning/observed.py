"""What pruning types share that rank by the gradients of training as it goes by."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from cap.models.families import Prunable
from cap.pruning.masks import ScoredMask
from cap.pruning.weights import WeightPruner


class ObservedPruner(WeightPruner):
    """Rank by averages of |w · dL/d(w·mask)| over optimizer steps; pruned weights are seen too, and can return.

    Further arguments are those of ``WeightPruner``.
    """

    learns_scores = True
    mask_type = ScoredMask
    averages: ClassVar[tuple[str, ...]]
    """Names of the buffers, of a weight's shape each, that a subclass keeps beside every mask."""

    def attach(self, prunable: Prunable, *, seed: int) -> None:
        """Put the masks on; every average starts at 0."""
        super().attach(prunable, seed=seed)
        for module in self.scored_masks():
            for name in self.averages:
                module.register_buffer(name, torch.zeros_like(module.scores))

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """List the scores: their gradient w · dL/d(w·mask), summed over micro-batches, is all that is used of them."""
        return [module.scores for module in self.scored_masks()]

    def constant_parameters(self) -> list[nn.Parameter]:
        """List the scores: they stay 0."""
        return self.auxiliary_parameters()

    def observe_gradients(self, *, scale: float | None) -> None:
        """Take in this step's |w · dL/d(w·mask)|, and clear the gradients; few operations for all matrices at once."""
        modules, observed = [], []
        for module in self.scored_masks():
            if module.scores.grad is not None:
                modules.append(module)
                observed.append(module.scores.grad)
                module.scores.grad = None
        if observed:
            torch._foreach_abs_(observed)
            if scale is not None:
                torch._foreach_div_(observed, scale)
        self.take_in(modules, observed, may_overflow=scale is not None)

    @abstractmethod
    def take_in(self, modules: Sequence[ScoredMask], observed: Sequence[Tensor], *, may_overflow: bool) -> None:
        """Move the averages.

        Args:
            modules: Those masks whose weights had a gradient.
            observed: |w · dL/d(w·mask)| of each, to be kept or overwritten.
            may_overflow: True under a loss scaler, which provokes infinities to find its scale: one would stay in an
                average for good. Without a scaler what is not finite is a fault, and is refused when masks move.
        """


__all__ = ["ObservedPruner"]
