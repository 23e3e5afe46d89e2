"""Movement scores against one threshold for all matrices, so that each matrix finds its own sparsity."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from cap.models.families import Prunable
from cap.pruning.masks import count_kept, keep_highest_of_each, n_floor, n_to_prune
from cap.pruning.movement import SCORE_LEARNING_RATE, ScoreInit
from cap.pruning.regularized import RegularizedMovement

# The least that is kept of each matrix, and the final threshold on sigmoid(score): both as released with CAP.
KEPT_FLOOR = 0.005
PUBLISHED_THRESHOLD = 0.1


class SoftMovement(RegularizedMovement):
    """Keep a weight where sigmoid(score) exceeds a threshold, with at least 0.5 % of each matrix kept.

    Args:
        score_learning_rate: Peak learning rate of the scores, > 0.
        score_init: As in ``Movement``; the published threshold means scores that start at 0.
        threshold: ``target`` sets the threshold where the schedule is met exactly; ``published`` raises it from 0 to
            0.1 along the schedule's shape, and nobody knows the sparsity beforehand.
        regularizer_weight: Final factor of the mean of sigmoid(score) in the loss, >= 0; it follows the schedule.
        final_sparsity: Where the schedule ends, in [0, 1).

    Raises:
        ValueError: If an argument is out of range, or the floor makes the target unreachable.

    Source: movement pruning, arXiv:2005.07683, section 4 and appendix; the exact target is ours.
    """

    def __init__(
        self,
        *,
        final_sparsity: float,
        score_learning_rate: float = SCORE_LEARNING_RATE,
        threshold: Literal["target", "published"] = "target",
        regularizer_weight: float = 190.0,
        score_init: ScoreInit = "magnitude",
    ) -> None:
        super().__init__(
            final_sparsity=final_sparsity,
            regularizer_weight=regularizer_weight,
            scope="global",
            score_learning_rate=score_learning_rate,
            score_init=score_init,
        )
        if threshold not in ("target", "published"):
            raise ValueError(f"pruning.threshold must be 'target' or 'published', got {threshold!r}")
        if threshold == "published" and score_init != "zero":
            raise ValueError(
                f"pruning.threshold=published is about scores that start at 0: pruning.score_init must be zero, "
                f"got {score_init!r}"
            )
        if final_sparsity > 1 - KEPT_FLOOR:
            raise ValueError(
                f"soft movement keeps at least {KEPT_FLOOR:.1%} of each matrix, so sparsity can be at most "
                f"{1 - KEPT_FLOOR}, got {final_sparsity}; use pruning=movement for more"
            )
        self.threshold = threshold

    def check(self, prunable: Prunable) -> None:
        """Refuse a target for which the floor of each matrix leaves no room."""
        matrices = prunable.matrices.values()
        sizes = [prunable.linears[matrix.linear].weight.numel() // matrix.n_parts for matrix in matrices]
        n_weights, n_kept = sum(sizes), sum(n_floor(KEPT_FLOOR, n) for n in sizes)
        highest = 1 - n_kept / n_weights
        if n_to_prune(self.final_sparsity, n_weights) > n_weights - n_kept:
            raise ValueError(
                f"with {KEPT_FLOOR:.1%} of each matrix kept, this model reaches sparsity {highest:.4f} at most, "
                f"got {self.final_sparsity}; lower sparsity or use pruning=movement"
            )

    def attach(self, prunable: Prunable, *, seed: int) -> None:
        """Put the masks on and start the scores."""
        self.check(prunable)
        super().attach(prunable, seed=seed)

    def _choose(self, sparsity: float) -> dict[str, Tensor]:
        self._note_progress(sparsity)
        if self.threshold == "published":
            return self._choose_above(PUBLISHED_THRESHOLD * self._progress)
        n_pruned = n_to_prune(sparsity, self.n_weights)
        importance = self.by_matrix(self.importance)
        masks = self.choose_globally(importance, n_pruned)
        if not _below_floor(masks):
            return masks
        # A matrix fell below its floor: protect the best of each matrix, then rank the rest.
        best = self._best(importance)
        protected = {name: scores.masked_fill(best[name], math.inf) for name, scores in importance.items()}
        return self.choose_globally(protected, n_pruned)

    def _choose_above(self, threshold: float) -> dict[str, Tensor]:
        cut = math.log(threshold / (1 - threshold)) if threshold > 0 else -math.inf
        importance = self.by_matrix(self.importance)
        masks = {name: scores > cut for name, scores in importance.items()}
        return masks | self._best({name: importance[name] for name in _below_floor(masks)})

    def _best(self, importance: dict[str, Tensor]) -> dict[str, Tensor]:
        n_pruned = {name: scores.numel() - n_floor(KEPT_FLOOR, scores.numel()) for name, scores in importance.items()}
        return keep_highest_of_each(importance, n_pruned, tie_breaker=self._size)


def _below_floor(masks: dict[str, Tensor]) -> list[str]:
    """List the matrices that keep less than the floor."""
    n_kept = zip(masks.items(), count_kept(masks.values()), strict=True)
    return [name for (name, mask), n in n_kept if n < n_floor(KEPT_FLOOR, mask.numel())]


__all__ = ["KEPT_FLOOR", "SoftMovement"]
