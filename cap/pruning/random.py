"""The random baseline."""

from __future__ import annotations

import torch
from torch import Tensor

from cap.models.families import Prunable
from cap.pruning.weights import Scope, WeightPruner


class Random(WeightPruner):
    """Prune weights in a random order that is drawn once, so that masks nest as sparsity rises.

    Arguments are those of ``WeightPruner``.
    """

    moves_within_levels = False

    def __init__(self, *, scope: Scope = "matrix", pattern: str | None = None) -> None:
        super().__init__(scope=scope, pattern=pattern)
        self._order: dict[str, Tensor] = {}

    def attach(self, prunable: Prunable, *, seed: int) -> None:
        """Put the masks on and draw the order from ``seed``."""
        super().attach(prunable, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        self._order = {
            name: torch.rand(linear.weight.shape, generator=generator) for name, linear in prunable.linears.items()
        }

    def importance(self, name: str) -> Tensor:
        """Return each weight's place in the random order, in [0, 1)."""
        # It follows the weight to its device once, not in every step.
        order = self._order[name] = self._order[name].to(self.weight(name).device)
        return order


__all__ = ["Random"]
