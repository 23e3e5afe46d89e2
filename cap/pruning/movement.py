"""Keep the weights that training moves away from zero."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from cap.models.families import Prunable
from cap.pruning.masks import ScoredMask
from cap.pruning.weights import Scope, WeightPruner

ScoreInit = Literal["zero", "magnitude"]
SCORE_LEARNING_RATE = 1e-2


class Movement(WeightPruner):
    """Prune by scores that are learned with the straight-through estimator.

    Args:
        scope: ``matrix`` (published) or ``global``.
        score_learning_rate: Peak learning rate of the scores, > 0.
        score_init: ``zero`` (published) starts every score at 0, so that the first weights to go are all those that
            the gradient wants smaller: together a step that a model survives only if sparsity rises over very many
            optimizer steps. ``magnitude`` (ours, the default) starts a score at |w| over its matrix's mean |w|.
        pattern: As in ``WeightPruner``.

    Raises:
        ValueError: If an argument is out of range.

    Source: movement pruning, arXiv:2005.07683, section 4.
    """

    learns_scores = True
    mask_type = ScoredMask

    def __init__(
        self,
        *,
        scope: Scope = "matrix",
        score_learning_rate: float = SCORE_LEARNING_RATE,
        score_init: ScoreInit = "magnitude",
        pattern: str | None = None,
    ) -> None:
        super().__init__(scope=scope, pattern=pattern)
        if score_init not in ("zero", "magnitude"):
            raise ValueError(f"pruning.score_init must be 'zero' or 'magnitude', got {score_init!r}")
        if score_learning_rate <= 0:
            raise ValueError(f"pruning.score_learning_rate must be > 0, got {score_learning_rate}")
        self._score_learning_rate = score_learning_rate
        self.score_init = score_init

    def attach(self, prunable: Prunable, *, seed: int) -> None:
        """Put the masks on and start the scores."""
        super().attach(prunable, seed=seed)
        if self.score_init == "magnitude":
            with torch.no_grad():
                for name, scores in self.by_matrix(self.importance).items():
                    magnitude = self._size(name)
                    # A matrix of zeros, as pruning or an initialisation may leave it, has scores of zero.
                    scores.copy_(magnitude / magnitude.mean().clamp(min=torch.finfo(magnitude.dtype).tiny))

    @property
    def score_learning_rate(self) -> float:
        """Peak learning rate of the scores."""
        return self._score_learning_rate

    def score_parameters(self) -> list[nn.Parameter]:
        """List the scores of all matrices."""
        return [module.scores for module in self.scored_masks()]

    def importance(self, name: str) -> Tensor:
        """Return the learned scores."""
        return self.scored(name).scores


__all__ = ["SCORE_LEARNING_RATE", "Movement", "ScoreInit"]
