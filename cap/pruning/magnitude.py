"""Keep the weights that are large."""

from __future__ import annotations

from torch import Tensor

from cap.pruning.weights import WeightPruner


class Magnitude(WeightPruner):
    """Prune the weights with the smallest absolute value; pruned weights get no gradient.

    Arguments are those of ``WeightPruner``.

    Source: arXiv:1710.01878.
    """

    moves_within_levels = False

    def importance(self, name: str) -> Tensor:
        """Return |w|."""
        return self.weight(name).abs()


__all__ = ["Magnitude"]
