"""Train dense weights towards sparse ones, and prune them once they are almost there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from cap.models.families import Prunable
from cap.pruning.pruner import MaskCounts
from cap.pruning.weights import Scope, WeightPruner


class Admm(WeightPruner):
    """Pull the weights w towards a sparse copy z of themselves, and prune when the schedule reaches its end.

    Until then no mask moves. Every ``interval`` optimizer steps z is made again: of all tensors of the final sparsity
    the one nearest to w + u, each weight counting as much as the mean square of its gradients; and u grows by w - z. In
    every step the gradient of penalty / 2 · |w - z + u|² is added to that of the loss. In the end those weights stay
    that a copy of w would hold, and the rest of the run recovers.

    Args:
        final_sparsity: Where the schedule ends, in [0, 1).
        scope: As in ``WeightPruner``; ``global`` by default.
        interval: Optimizer steps between two projections, >= 1.
        penalty: How hard the weights are pulled, > 0; published for language models of billions of weights.
        second_moment_decay: Of the moving mean square of each weight's gradient, in [0, 1); that of Adam.
        pattern: As in ``WeightPruner``.

    Raises:
        ValueError: If an argument is out of range, or the pattern has another sparsity.

    Source: ELSA, arXiv:2510.01650. Ours: the mean square is that of the loss's own gradients, without the penalty's and
    apart from the optimizer's, so that any optimizer will do; and training goes on behind the pruning.
    """

    learns_scores: ClassVar[bool] = True
    prunes_at_once: ClassVar[bool] = True

    def __init__(
        self,
        *,
        final_sparsity: float,
        scope: Scope = "global",
        interval: int = 32,
        penalty: float = 0.01,
        second_moment_decay: float = 0.999,
        pattern: str | None = None,
    ) -> None:
        super().__init__(scope=scope, pattern=pattern)
        if interval < 1:
            raise ValueError(f"pruning.interval counts optimizer steps and must be at least 1, got {interval}")
        if not penalty > 0:
            raise ValueError(f"pruning.penalty pulls the weights to the sparse ones and must be > 0, got {penalty}")
        if not 0 <= second_moment_decay < 1:
            raise ValueError(
                f"pruning.second_moment_decay is what a step leaves of an average and lies in [0, 1), "
                f"got {second_moment_decay}"
            )
        problem = None if self.pattern is None else self.pattern.problem(final_sparsity)
        if problem is not None:
            raise ValueError(problem)
        self.final_sparsity: float = final_sparsity
        self.interval = interval
        self.penalty = penalty
        self.second_moment_decay = second_moment_decay
        self._n_seen = 0
        self._points: dict[str, Tensor] = {}

    def attach(self, prunable: Prunable, *, seed: int) -> None:
        """Put the masks on; the sparse copy is made at the first projection."""
        super().attach(prunable, seed=seed)
        for name, module in self._masks.items():
            weight = self.weight(name)
            module.register_buffer("second_moment", torch.zeros_like(weight))
            module.register_buffer("anchor", torch.zeros_like(weight))  # z - u, which weights are pulled to
            module.register_buffer("is_in_copy", torch.ones_like(weight, dtype=torch.bool))  # where z is not 0

    def doubt(self, n_before_target: int) -> str | None:
        """Say it if the target comes before the first projection: nothing will have pulled the weights to it."""
        if self.final_sparsity == 0 or n_before_target >= self.interval:
            return None
        return (
            f"pruning=admm pulls weights to their sparse copy from the first projection on, after pruning.interval="
            f"{self.interval} optimizer steps, but the final sparsity is reached at step {n_before_target}: this run "
            f"only prunes. Lower pruning.interval, or give it more steps (trainer.max_epochs, trainer.max_steps)."
        )

    def update_masks(self, sparsity: float) -> MaskCounts:
        """Move the masks once, at the final sparsity; the targets before that are passed over."""
        self.require_movable(sparsity)
        if self._is_pruned or not math.isclose(sparsity, self.final_sparsity):
            return MaskCounts(self.n_weights, self._n_pruned, self._n_pruned)
        return super().update_masks(sparsity)

    @torch.no_grad()
    def adjust_gradients(self, *, scale: float | None) -> None:
        """Take in this step's gradients, project where it is time to, and add the pull; nothing once pruned."""
        if self._is_pruned:
            return
        found = [(name, gradient) for name in self._linears if (gradient := self.original(name).grad) is not None]
        self._take_in(found, scale)
        self._n_seen += 1
        if self._n_seen % self.interval == 0:
            self._project()
        if self._n_seen >= self.interval and found:
            apart = torch._foreach_sub([self.weight(name) for name, _ in found], self._buffers("anchor", found))
            torch._foreach_add_([gradient for _, gradient in found], apart, alpha=self.penalty * (scale or 1.0))

    def importance(self, name: str) -> Tensor:
        """Return the mean square of the gradient, times the square of the weight, or of w + u while z is made."""
        point = self._points.get(name, self.weight(name))
        return self._masks[name].get_buffer("second_moment") * point.square()

    def state_dict(self) -> dict[str, int | float]:
        """Add how many steps have been seen."""
        return {**super().state_dict(), "n_seen": self._n_seen}

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:
        """Take it back."""
        super().load_state_dict(state)
        self._n_seen = int(state["n_seen"])

    @property
    def _is_pruned(self) -> bool:
        return self._n_pruned > 0

    def _take_in(self, found: list[tuple[str, Tensor]], scale: float | None) -> None:
        """Move the mean squares towards this step's; what overflowed under a loss scaler counts as 0."""
        if not found:
            return
        gradients = [gradient for _, gradient in found]
        if scale is not None:
            gradients = [one.nan_to_num(0.0, 0.0, 0.0) for one in torch._foreach_div(gradients, scale)]
        averages = self._buffers("second_moment", found)
        torch._foreach_mul_(averages, self.second_moment_decay)
        torch._foreach_addcmul_(averages, gradients, gradients, value=1 - self.second_moment_decay)

    def _project(self) -> None:
        """Make z again. Where it is 0 it leaves w + u to u, elsewhere nothing: z - u is w + u with a sign."""
        for name, module in self._masks.items():
            is_in_copy, anchor = module.get_buffer("is_in_copy"), module.get_buffer("anchor")
            self._points[name] = self.weight(name) - anchor.masked_fill(is_in_copy, 0.0)
        chosen = self._choose(self.final_sparsity)
        for name, own in self.by_matrix(lambda name: self._masks[name].get_buffer("is_in_copy")).items():
            own.copy_(chosen[name])
        for name, module in self._masks.items():
            point = self._points[name]
            module.get_buffer("anchor").copy_(torch.where(module.get_buffer("is_in_copy"), point, -point))
        self._points = {}

    def _buffers(self, kind: str, found: list[tuple[str, Tensor]]) -> list[Tensor]:
        return [self._masks[name].get_buffer(kind) for name, _ in found]


__all__ = ["Admm"]
