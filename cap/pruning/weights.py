"""Pruning types that score single weights: one mask per linear layer, of its weight's shape.

Most linear layers are one matrix; of those that hold several, such as query, key and value, each is a matrix of its own
where weights are chosen.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cap.models.families import Matrix, Prunable
from cap.pruning.masks import (
    FixedMask,
    ScoredMask,
    count_kept,
    fold,
    is_on,
    keep_highest,
    keep_highest_of_each,
    n_to_prune,
)
from cap.pruning.patterns import check_divisible, choose_by_pattern, get_pattern
from cap.pruning.pruner import MaskCounts, Pruner

Scope = Literal["matrix", "global"]
MaskModule = FixedMask | ScoredMask


class WeightPruner(Pruner):
    """Own one mask per linear layer; a subclass says how important each weight is.

    Args:
        scope: ``matrix`` prunes every matrix to the target, ``global`` ranks the weights of all matrices together.
        pattern: ``2:4`` or ``4:8`` keeps so many of every 4 or 8 consecutive weights along the input dimension, see
            ``cap.pruning.patterns``, and the schedule must end at the pattern's own sparsity; None keeps any.

    Raises:
        ValueError: If ``scope`` or ``pattern`` is unknown.
    """

    mask_type: ClassVar[type[FixedMask] | type[ScoredMask]] = FixedMask

    def __init__(self, *, scope: Scope = "matrix", pattern: str | None = None) -> None:
        if scope not in ("matrix", "global"):
            raise ValueError(f"pruning.scope must be 'matrix' or 'global', got {scope!r}")
        self.scope: str = scope
        self.pattern = None if pattern is None else get_pattern(pattern)
        if self.pattern is not None:
            self.final_sparsity = self.pattern.sparsity
        self._linears: dict[str, nn.Linear] = {}
        # Of each: its mask and what holds its unmasked weight. To look them up by their paths takes longer than to use
        # them, and they are used in every step.
        self._masks: dict[str, MaskModule] = {}
        self._weights: dict[str, nn.Module] = {}
        self._matrices: dict[str, Matrix] = {}
        self._n_pruned = 0

    def check(self, prunable: Prunable) -> None:  # noqa: D102 - as the base class says
        if self.pattern is not None:
            check_divisible(prunable.linears, self.pattern)

    def attach(self, prunable: Prunable, *, seed: int) -> None:  # noqa: D102
        self.check(prunable)
        self._linears, self._matrices = prunable.linears, prunable.matrices
        for name, linear in self._linears.items():
            self._masks[name] = self.mask_type(linear.weight)
            parametrize.register_parametrization(linear, "weight", self._masks[name])
            self._weights[name] = linear.get_submodule("parametrizations.weight")

    @property
    def linears(self) -> Mapping[str, nn.Linear]:
        """The linear layers that have masks, by name, in the order of ``masks``; their ``weight`` is the masked one."""
        return self._linears

    @property
    def is_on(self) -> bool:  # noqa: D102 - as the base class says
        return bool(self._linears) and all(map(self._is_masked, self._linears))

    def _is_masked(self, name: str) -> bool:
        """Say whether this pruner's own mask is on a linear layer: another one's may be, once this one is folded."""
        return is_on(self._linears[name], self._masks[name])

    @property
    def masks(self) -> dict[str, Tensor]:  # noqa: D102
        return {name: module.mask for name, module in self._masks.items()}

    @abstractmethod
    def importance(self, name: str) -> Tensor:
        """Score each weight of a linear layer, larger = keep."""

    def weight(self, name: str) -> Tensor:
        """Return the unmasked weight of a linear layer."""
        return self.original(name).detach()

    def original(self, name: str) -> nn.Parameter:
        """Return the parameter that holds the unmasked weight of a linear layer."""
        return self._weights[name].get_parameter("original")

    def modules(self) -> list[nn.Module]:  # noqa: D102
        return [*self._linears.values()]

    def update_masks(self, sparsity: float) -> MaskCounts:  # noqa: D102
        self.require_movable(sparsity)
        before = self._n_pruned
        with torch.no_grad():
            new_masks = self._choose(sparsity)
            for name, mask in self.by_matrix(self.masks.__getitem__).items():
                mask.copy_(new_masks[name])
        self._n_pruned = self.n_weights - sum(count_kept(self.masks.values()))
        return MaskCounts(self.n_weights, before, self._n_pruned)

    def fold(self) -> None:  # noqa: D102
        for name, linear in self._linears.items():
            if self._is_masked(name):
                fold(linear)

    def state_dict(self) -> dict[str, int | float]:  # noqa: D102
        return {"n_pruned": self._n_pruned}

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:  # noqa: D102
        self._n_pruned = int(state["n_pruned"])

    @property
    def n_weights(self) -> int:
        """Count the prunable weights."""
        return sum(mask.numel() for mask in self.masks.values())

    def scored(self, name: str) -> ScoredMask:
        """Return the mask module of a linear layer whose type keeps scores."""
        return self._with_scores(self._masks[name])

    def scored_masks(self) -> list[ScoredMask]:
        """List the mask modules of all linear layers whose type keeps scores, in their order."""
        return [self._with_scores(module) for module in self._masks.values()]

    def _with_scores(self, module: MaskModule) -> ScoredMask:
        if not isinstance(module, ScoredMask):
            raise TypeError(f"{type(self).__name__} keeps no scores")
        return module

    def by_matrix(self, of: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Take what belongs to linear layers apart, where one holds several matrices, into views by matrix name.

        Args:
            of: Called with the name of a linear layer; rows come first in what it returns.
        """
        whole = {name: of(name) for name in self._linears}
        return {name: matrix.of(whole[matrix.linear]) for name, matrix in self._matrices.items()}

    def _choose(self, sparsity: float) -> dict[str, Tensor]:
        """Choose the masks of a target, by matrix; a subclass with another rule than top-k overrides it."""
        importance = self.by_matrix(self.importance)
        if self.pattern is not None:
            weights = self.by_matrix(self.weight)
            is_global = self.scope == "global"
            return choose_by_pattern(importance, weights, pattern=self.pattern, sparsity=sparsity, is_global=is_global)
        if self.scope == "global":
            return self.choose_globally(importance, n_to_prune(sparsity, self.n_weights))
        n_pruned = {name: n_to_prune(sparsity, scores.numel()) for name, scores in importance.items()}
        return keep_highest_of_each(importance, n_pruned, tie_breaker=self._size)

    def _size(self, name: str) -> Tensor:
        """Return |w| of a matrix."""
        matrix = self._matrices[name]
        return matrix.of(self.weight(matrix.linear)).abs()

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
            flat, n_pruned, tie_breaker=lambda: torch.cat([self._size(name).flatten() for name in importance])
        )
        parts = mask.split([scores.numel() for scores in importance.values()])
        return {name: part.view_as(importance[name]) for name, part in zip(importance, parts, strict=True)}


__all__ = ["Scope", "WeightPruner"]
