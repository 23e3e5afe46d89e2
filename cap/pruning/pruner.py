"""What every pruning type has in common: it puts masks on matrices, moves them, and folds them in the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cap.pruning.masks import FixedMask, ScoredMask, fold, keep_highest, n_to_prune

Scope = Literal["matrix", "global"]
MaskModule = FixedMask | ScoredMask


@dataclass(frozen=True)
class MaskCounts:
    """Count what a move of the masks changed.

    Args:
        n_weights: Prunable weights.
        n_pruned_before: Pruned before the move.
        n_pruned: Pruned after it.
    """

    n_weights: int
    n_pruned_before: int
    n_pruned: int

    @property
    def sparsity(self) -> float:
        """Fraction of prunable weights that are pruned."""
        return self.n_pruned / self.n_weights


class Pruner(ABC):
    """Own the masks of a student; a subclass says how important each weight is.

    Args:
        scope: ``matrix`` prunes every matrix to the target, ``global`` ranks the weights of all matrices together.

    Raises:
        ValueError: If ``scope`` is unknown.
    """

    learns_scores: ClassVar[bool] = False
    """True if importance comes from training: a first step then has nothing to rank by but ties."""

    mask_type: ClassVar[type[FixedMask] | type[ScoredMask]] = FixedMask

    def __init__(self, *, scope: Scope = "matrix") -> None:
        if scope not in ("matrix", "global"):
            raise ValueError(f"pruning.scope must be 'matrix' or 'global', got {scope!r}")
        self.scope = scope
        self._linears: dict[str, nn.Linear] = {}
        self._n_pruned = 0

    def attach(self, linears: dict[str, nn.Linear], *, seed: int) -> None:
        """Put a mask on every matrix; all weights are kept at first.

        Args:
            linears: The prunable linear layers by name.
            seed: For what is drawn at random.
        """
        self._linears = linears
        for linear in linears.values():
            parametrize.register_parametrization(linear, "weight", self.mask_type(linear.weight))

    @property
    def masks(self) -> dict[str, Tensor]:
        """Masks by matrix name, True = kept."""
        return {name: _mask_module(linear).mask for name, linear in self._linears.items()}

    @property
    def score_learning_rate(self) -> float:
        """Learning rate of ``score_parameters``."""
        return 0.0

    def score_parameters(self) -> list[nn.Parameter]:
        """List the scores that the optimizer trains."""
        return []

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """List parameters that only collect gradients; no optimizer may touch them."""
        return []

    @abstractmethod
    def importance(self, name: str) -> Tensor:
        """Score each weight of a matrix, larger = keep."""

    def weight(self, name: str) -> Tensor:
        """Return the unmasked weight of a matrix."""
        weight = self._linears[name].get_parameter("parametrizations.weight.original")
        return weight.detach()

    def update_masks(self, sparsity: float) -> MaskCounts:
        """Move the masks to a target sparsity.

        Args:
            sparsity: Fraction of prunable weights to prune, in [0, 1).

        Returns:
            The counts before and after.
        """
        before = self._n_pruned
        with torch.no_grad():
            new_masks = self._choose(sparsity)
            for name, mask in self.masks.items():
                mask.copy_(new_masks[name])
        self._n_pruned = sum(mask.numel() - int(mask.count_nonzero()) for mask in self.masks.values())
        return MaskCounts(self.n_weights, before, self._n_pruned)

    def observe_gradients(self, *, scale: float) -> None:  # noqa: B027 - most types look at no gradient
        """See the gradients of an optimizer step before it is taken.

        Args:
            scale: Factor by which a loss scaler has multiplied them.
        """

    def regularizer(self) -> Tensor | None:
        """Return the weighted score regulariser to add to the loss; None if the type has none."""
        return None

    def fold(self) -> None:
        """Write the masked weights into the modules and take the masks off."""
        for linear in self._linears.values():
            fold(linear)

    @property
    def n_weights(self) -> int:
        """Count the prunable weights."""
        return sum(mask.numel() for mask in self.masks.values())

    def scored(self, name: str) -> ScoredMask:
        """Return the mask module of a matrix whose type keeps scores."""
        module = _mask_module(self._linears[name])
        if not isinstance(module, ScoredMask):
            raise TypeError(f"{type(self).__name__} keeps no scores")
        return module

    def _choose(self, sparsity: float) -> dict[str, Tensor]:
        """Choose the masks of a target; a subclass with another rule than top-k overrides it."""
        importance = {name: self.importance(name) for name in self._linears}
        if self.scope == "global":
            return self.choose_globally(importance, n_to_prune(sparsity, self.n_weights))
        return {
            name: keep_highest(scores, n_to_prune(sparsity, scores.numel()), tie_breaker=self.weight(name).abs)
            for name, scores in importance.items()
        }

    def choose_globally(self, importance: dict[str, Tensor], n_pruned: int) -> dict[str, Tensor]:
        """Rank the weights of all matrices together.

        Args:
            importance: By matrix name, larger = keep; among equals the larger |w| is kept.
            n_pruned: How many weights of all matrices together become False.

        Returns:
            Masks by matrix name.
        """
        flat = torch.cat([scores.detach().flatten() for scores in importance.values()])
        mask = keep_highest(
            flat, n_pruned, tie_breaker=lambda: torch.cat([self.weight(name).abs().flatten() for name in importance])
        )
        parts = mask.split([scores.numel() for scores in importance.values()])
        return {name: part.view_as(importance[name]) for name, part in zip(importance, parts, strict=True)}


def _mask_module(linear: nn.Linear) -> MaskModule:
    module = linear.get_submodule("parametrizations.weight.0")
    if not isinstance(module, FixedMask | ScoredMask):
        raise TypeError(f"a prunable matrix carries a mask, got {type(module).__name__}")
    return module


__all__ = ["MaskCounts", "Pruner", "Scope"]
