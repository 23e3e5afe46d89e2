"""Keep the zeros that a pruned model comes with, while its other weights learn."""

from __future__ import annotations

import torch
from torch import Tensor

from cap.models.families import Prunable
from cap.pruning.masks import count_kept, count_zeros, n_to_prune
from cap.pruning.pruner import MaskCounts
from cap.pruning.weights import WeightPruner

_DIGITS = 17  # of a float in full


class KeepZeros(WeightPruner):
    """Mask the weights that are zero when the masks go on; no move changes that, so that a sparse model stays sparse.

    Args:
        final_sparsity: The fraction of prunable weights that are zero, where the schedule ends, to within one weight
            for each matrix, as ``scope=matrix`` meets it; None takes what is there.

    Source: transfer of sparse models, arXiv:2203.07259 and arXiv:2111.05754.
    """

    moves_within_levels = False
    keeps_zeros = True

    def __init__(self, *, final_sparsity: float | None = None) -> None:
        super().__init__()
        self.final_sparsity = final_sparsity

    def check(self, prunable: Prunable) -> None:
        """Refuse a model without zeros, and a target that is not the model's own."""
        super().check(prunable)
        counts = count_zeros(prunable.linears).values()
        n_zero, n = sum(zeros for zeros, _ in counts), sum(size for _, size in counts)
        rule, margin = "pruning=keep_zeros keeps the zeros that a model comes with", len(prunable.matrices)
        if n_zero <= margin:
            raise ValueError(
                f"{rule}, but {n_zero or 'none'} of its {n:,} prunable weights is zero; give a model that single "
                f"weights or units were pruned of (model.name_or_path=RUN/model; layers that are gone leave no zeros), "
                f"or choose another pruning type"
            )
        if n_zero + margin >= n:
            raise ValueError(f"{rule}, but {n_zero:,} of its {n:,} prunable weights are zero; give another model")
        if self.final_sparsity is not None and abs(n_to_prune(self.final_sparsity, n) - n_zero) > margin:
            raise ValueError(
                f"{rule}, {n_zero:,} of its {n:,} prunable weights, got sparsity={self.final_sparsity}; set "
                f"sparsity={_as_written(n_zero, n, margin)}, or choose another pruning type"
            )

    def attach(self, prunable: Prunable, *, seed: int) -> None:
        """Put the masks on: what is zero now stays zero."""
        super().attach(prunable, seed=seed)
        with torch.no_grad():
            for name, mask in self.masks.items():
                mask.copy_(self.weight(name) != 0)
        self._n_pruned = self.n_weights - sum(count_kept(self.masks.values()))

    def importance(self, name: str) -> Tensor:
        """Return 1 for what is kept, and 0 for what is not."""
        return self.masks[name].float()

    def update_masks(self, sparsity: float) -> MaskCounts:
        """Leave the masks as they are, whatever the target."""
        self.require_movable(sparsity)
        return MaskCounts(self.n_weights, self._n_pruned, self._n_pruned)


def _as_written(n_zero: int, n: int, margin: int) -> float:
    """Return the shortest sparsity that is about so many of so many weights."""
    shortened = (round(n_zero / n, digits) for digits in range(1, _DIGITS))
    return next((value for value in shortened if abs(n_to_prune(value, n) - n_zero) <= margin), n_zero / n)


__all__ = ["KeepZeros"]
