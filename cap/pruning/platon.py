"""Keep the weights that the loss depends on, and those of which it is uncertain how much."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cap.pruning.masks import ScoredMask
from cap.pruning.observed import ObservedPruner
from cap.pruning.weights import Scope


class Platon(ObservedPruner):
    """Prune by sensitivity times uncertainty; pruned weights are scored too, so that they can return.

    The sensitivity I of a weight is |w · dL/d(w·mask)|, its mean over a window of optimizer steps. Ī is the moving
    average of I over windows, and the uncertainty that of |I - Ī|.

    Args:
        scope: As in ``WeightPruner``; ``global`` by default (published).
        window: Optimizer steps of a window, >= 1; masks have no reason to move more often.
        sensitivity_decay: Fraction of Ī that a window leaves, in [0, 1).
        uncertainty_decay: Likewise of the uncertainty; published are 0.85 for a sparsity of 0.9, up to 0.95 for less.
        pattern: As in ``WeightPruner``.

    Raises:
        ValueError: If an argument is out of range.

    Source: PLATON, arXiv:2206.12562, equations 6 to 9. Ours: masks hold between two moves and biases have none, whereas
    the released code sets pruned weights and biases to 0 at each move and trains them on from there;
    and gradients are those of the step before they are clipped.
    """

    averages = ("in_window", "sensitivity", "uncertainty")

    def __init__(
        self,
        *,
        scope: Scope = "global",
        window: int = 10,
        sensitivity_decay: float = 0.85,
        uncertainty_decay: float = 0.85,
        pattern: str | None = None,
    ) -> None:
        super().__init__(scope=scope, pattern=pattern)
        if window < 1:
            raise ValueError(f"pruning.window counts optimizer steps and must be at least 1, got {window}")
        for name, decay in (("sensitivity_decay", sensitivity_decay), ("uncertainty_decay", uncertainty_decay)):
            if not 0 <= decay < 1:
                raise ValueError(
                    f"pruning.{name} is what a window leaves of an average and lies in [0, 1), got {decay}"
                )
        self.window = window
        self.sensitivity_decay = sensitivity_decay
        self.uncertainty_decay = uncertainty_decay
        self._n_seen = 0

    def take_in(self, modules: Sequence[ScoredMask], observed: Sequence[Tensor], *, may_overflow: bool) -> None:
        """Add this step's to the window, an entry that overflowed as 0; a full window moves the averages."""
        self._n_seen += 1
        if modules:
            if may_overflow:
                for step in observed:
                    step.nan_to_num_(nan=0.0, posinf=0.0)
            torch._foreach_add_([module.get_buffer("in_window") for module in modules], list(observed))
        if self._n_seen == self.window:
            self._end_window()
        self._n_seen %= self.window

    def importance(self, name: str) -> Tensor:
        """Return the product of the two averages as the last full window has left them."""
        module = self.scored(name)
        return module.get_buffer("sensitivity") * module.get_buffer("uncertainty")

    def state_dict(self) -> dict[str, int | float]:
        """Add how many steps of the window have been seen."""
        return {**super().state_dict(), "n_seen": self._n_seen}

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:
        """Take it back."""
        super().load_state_dict(state)
        self._n_seen = int(state["n_seen"])

    def _end_window(self) -> None:
        modules = self.scored_masks()
        in_window, sensitivity, uncertainty = (
            [module.get_buffer(name) for module in modules] for name in self.averages
        )
        torch._foreach_div_(in_window, self.window)
        torch._foreach_lerp_(sensitivity, in_window, 1 - self.sensitivity_decay)
        torch._foreach_sub_(in_window, sensitivity)
        torch._foreach_abs_(in_window)
        torch._foreach_lerp_(uncertainty, in_window, 1 - self.uncertainty_decay)
        torch._foreach_zero_(in_window)


__all__ = ["Platon"]
