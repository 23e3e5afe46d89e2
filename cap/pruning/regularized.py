"""Movement scores that a term of the loss pushes down as sparsity rises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
        layers: dict[str, int] = Counter(matrix.linear for matrix in self._matrices.values())
        scores = [self.scored(name).scores for name in layers]
        # Matrices of one layer have one size, so that the mean over the layer is the mean of their means.
        shares = [n_matrices / len(self._matrices) for n_matrices in layers.values()]
        mean: Tensor = _MeanSigmoid.apply(shares, *scores)  # type: ignore[no-untyped-call]
        return weight * mean

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


class _MeanSigmoid(torch.autograd.Function):
    """Average sigmoid(score) over many tensors at once: autograd would start ten kernels for each, in every step."""

    @staticmethod
    def forward(ctx: Any, shares: Sequence[float], *scores: Tensor) -> Tensor:
        ctx.shares = shares
        ctx.save_for_backward(*scores)
        means = [own.mean() for own in torch._foreach_sigmoid(scores)]
        # Factors as numbers: a tensor of them would be copied to the device, and the host would wait.
        return torch.stack(torch._foreach_mul(means, list(shares))).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        scores = ctx.saved_tensors
        # sigmoid' = sigmoid · (1 - sigmoid) = sigmoid - sigmoid², in place: all activations are still alive here.
        slopes = torch._foreach_sigmoid(scores)
        squares = torch._foreach_mul(slopes, slopes)
        torch._foreach_sub_(slopes, squares)
        del squares
        torch._foreach_mul_(slopes, [share / own.numel() for share, own in zip(ctx.shares, scores, strict=True)])
        torch._foreach_mul_(slopes, gradient)
        return None, *slopes


__all__ = ["RegularizedMovement"]
