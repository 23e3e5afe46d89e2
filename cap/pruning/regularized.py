"""Movement scores that a term of the loss pushes down as sparsity rises."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cap.pruning.movement import SCORE_LEARNING_RATE, Movement, ScoreInit
from cap.pruning.weights import Scope


class RegularizedMovement(Movement):
    """Add the mean of sigmoid(score) to the loss, with a factor that follows the schedule; a subclass chooses masks.

    Args:
        final_sparsity: Where the schedule ends, in [0, 1).
        regularizer_weight: Final factor, >= 0.
        scope: As in ``WeightPruner``.
        score_learning_rate: Peak learning rate of the scores, > 0.
        score_init: As in ``Movement``.

    Raises:
        ValueError: If an argument is out of range.

    Source: soft movement pruning, arXiv:2005.07683, section 4.
    """

    def __init__(
        self,
        *,
        final_sparsity: float,
        regularizer_weight: float,
        scope: Scope,
        score_learning_rate: float = SCORE_LEARNING_RATE,
        score_init: ScoreInit = "magnitude",
    ) -> None:
        super().__init__(scope=scope, score_learning_rate=score_learning_rate, score_init=score_init)
        if regularizer_weight < 0:
            raise ValueError(f"pruning.regularizer_weight must be >= 0, got {regularizer_weight}")
        self.regularizer_weight = regularizer_weight
        self.final_sparsity: float = final_sparsity
        self._progress = 0.0

    def regularizer(self) -> Tensor | None:
        """Return the mean over matrices of the mean sigmoid(score), times its weight at this point of the schedule."""
        weight = self.regularizer_weight * self._progress
        if weight == 0:
            return None
        scores = self.by_matrix(self.importance).values()
        return weight * torch.stack([own.sigmoid().mean() for own in scores]).mean()

    def state_dict(self) -> dict[str, int | float]:
        """Add how far the schedule has come, which the regulariser follows."""
        return {**super().state_dict(), "progress": self._progress}

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:
        """Take it back."""
        super().load_state_dict(state)
        self._progress = state["progress"]

    def _note_progress(self, sparsity: float) -> None:
        """Note how far the schedule has come, for a subclass to call when it chooses masks."""
        self._progress = sparsity / self.final_sparsity if self.final_sparsity > 0 else 0.0


__all__ = ["RegularizedMovement"]
