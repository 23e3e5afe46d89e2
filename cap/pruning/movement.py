"""Keep the weights that training moves away from zero."""

from __future__ import annotations

from torch import Tensor, nn

from cap.pruning.masks import ScoredMask
from cap.pruning.pruner import Pruner, Scope


class Movement(Pruner):
    """Prune by scores that are learned with the straight-through estimator and start at 0.

    Args:
        scope: ``matrix`` (published) or ``global``.
        score_learning_rate: Peak learning rate of the scores, > 0.

    Raises:
        ValueError: If an argument is out of range.

    Source: movement pruning, arXiv:2005.07683, section 4.
    """

    learns_scores = True
    mask_type = ScoredMask

    def __init__(self, *, scope: Scope = "matrix", score_learning_rate: float) -> None:
        super().__init__(scope=scope)
        if score_learning_rate <= 0:
            raise ValueError(f"pruning.score_learning_rate must be > 0, got {score_learning_rate}")
        self._score_learning_rate = score_learning_rate

    @property
    def score_learning_rate(self) -> float:
        """Peak learning rate of the scores."""
        return self._score_learning_rate

    def score_parameters(self) -> list[nn.Parameter]:
        """List the scores of all matrices."""
        return [self.scored(name).scores for name in self.masks]

    def importance(self, name: str) -> Tensor:
        """Return the learned scores."""
        return self.scored(name).scores


__all__ = ["Movement"]
