"""Leave every weight as it is, and learn which of them to keep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from cap.models.families import MatrixKind, Prunable
from cap.pruning.masks import keep_highest_of_each, n_to_prune
from cap.pruning.movement import ScoreInit
from cap.pruning.regularized import RegularizedMovement

_LEAST_SHARE = 1e-9


class StaticScores(RegularizedMovement):
    """Prune weights that are never trained, by scores that are: a task is a set of masks on the model as it was.

    With the scope ``type`` all query matrices together meet the target, and so do all key matrices and those of every
    other type. Within a type a matrix keeps a part of its weights in proportion to R, its mean sigmoid(score), and the
    highest scores of its own.

    Args:
        final_sparsity: Where the schedule ends, in [0, 1).
        scope: ``type`` (published as SMP-S), ``matrix`` gives each matrix the target (published as SMP-L), ``global``
            ranks the weights of all matrices together (published as worse).
        score_learning_rate: Peak learning rate of the scores, > 0.
        score_init: As in ``Movement``.
        regularizer_weight: Final factor of the mean of sigmoid(score) in the loss, >= 0; it follows the sparsity. A
            cubic rise from 0 gives the published 1 - (1 - t/T)³, with the step that reaches the target for T.
        budget_temperature: Divides the scores within R, > 0; the larger, the more alike are the matrices of a type.
            Published are 1, and 3 to 4 where 50 to 80 % of the weights stay.

    Raises:
        ValueError: If an argument is out of range.

    Source: static model pruning, arXiv:2210.06210. Ours: a matrix keeps all of its weights at most, what is beyond that
    goes to the others of its type, and every type keeps its target to the weight.
    """

    trains_weights = False

    def __init__(
        self,
        *,
        final_sparsity: float,
        scope: Literal["type", "matrix", "global"] = "type",
        score_learning_rate: float = 0.02,
        score_init: ScoreInit = "zero",
        regularizer_weight: float = 400.0,
        budget_temperature: float = 1.0,
    ) -> None:
        if scope not in ("type", "matrix", "global"):
            raise ValueError(f"pruning.scope must be 'type', 'matrix' or 'global', got {scope!r}")
        super().__init__(
            final_sparsity=final_sparsity,
            regularizer_weight=regularizer_weight,
            scope="global" if scope == "global" else "matrix",
            score_learning_rate=score_learning_rate,
            score_init=score_init,
        )
        if budget_temperature <= 0:
            raise ValueError(f"pruning.budget_temperature divides scores and must be > 0, got {budget_temperature}")
        self.scope = scope
        self.budget_temperature = budget_temperature

    def check(self, prunable: Prunable) -> None:
        """Refuse budgets by type for matrices of no known type."""
        super().check(prunable)
        unknown = [name for name, matrix in prunable.matrices.items() if matrix.kind is None]
        if self.scope == "type" and unknown:
            raise ValueError(
                f"pruning.scope=type gives each type of matrix a budget, so every matrix must be of a known one, but "
                f"{len(unknown)} are not, {unknown[0]} first; set scope=matrix"
            )

    def attach(self, prunable: Prunable, *, seed: int) -> None:
        """Put the masks on, start the scores, and freeze the weights under the masks."""
        super().attach(prunable, seed=seed)
        for name in self.masks:
            self.original(name).requires_grad_(False)

    def _choose(self, sparsity: float) -> dict[str, Tensor]:
        self._note_progress(sparsity)
        if self.scope != "type":
            return super()._choose(sparsity)
        importance = self.by_matrix(self.importance)
        return keep_highest_of_each(importance, self._n_pruned_of_each(importance, sparsity), tie_breaker=self._size)

    def _n_pruned_of_each(self, importance: dict[str, Tensor], sparsity: float) -> dict[str, int]:
        """Say how many weights each matrix loses, by its name."""
        means = [(scores.detach().float() / self.budget_temperature).sigmoid().mean() for scores in importance.values()]
        # All at once, so that the device is waited for once.
        shares = dict(zip(importance, torch.stack(means).tolist(), strict=True))
        names_of: dict[MatrixKind | None, list[str]] = {}
        for name, matrix in self._matrices.items():
            names_of.setdefault(matrix.kind, []).append(name)
        n_pruned: dict[str, int] = {}
        for names in names_of.values():
            sizes = [importance[name].numel() for name in names]
            n = sum(sizes)
            kept = split_budget(n - n_to_prune(sparsity, n), sizes, [shares[name] for name in names])
            n_pruned |= {name: size - n for name, size, n in zip(names, sizes, kept, strict=True)}
        return n_pruned


def split_budget(n_kept: int, sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Split the weights that matrices keep together, so that their densities are in proportion to their shares.

    Args:
        n_kept: How many they keep together, 0 to the sum of the sizes.
        sizes: Weights of each matrix.
        shares: One for each matrix, >= 0; only their ratios count.

    Returns:
        How many each keeps: whole numbers that add up to ``n_kept``. A matrix that would keep more than it has keeps
        all, and the others share the rest. What rounding down leaves goes to the largest remainders, the first among
        equals.
    """
    # A share may have been too small for a float: above 0 a matrix still takes what the full ones cannot.
    highest = max(shares) or 1.0
    shares = [max(share / highest, _LEAST_SHARE) for share in shares]
    exact = [float(size) for size in sizes]
    left, open_ = n_kept, list(range(len(sizes)))
    while open_:
        density = left / math.fsum(sizes[i] * shares[i] for i in open_)
        full = [i for i in open_ if density * shares[i] >= 1]
        if not full:
            break
        left -= sum(sizes[i] for i in full)
        open_ = [i for i in open_ if i not in full]
    for i in open_:
        exact[i] = density * shares[i] * sizes[i]
    kept = [int(number) for number in exact]
    by_remainder = sorted(open_, key=lambda i: kept[i] - exact[i])
    for i in by_remainder[: n_kept - sum(kept)]:
        kept[i] += 1
    return kept


__all__ = ["StaticScores", "split_budget"]
