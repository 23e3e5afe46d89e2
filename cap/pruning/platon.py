"""Keep the weights that the loss depends on, and those of which it is uncertain how much."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cap.models.families import Prunable
from cap.pruning.masks import ScoredMask
from cap.pruning.weights import Scope, WeightPruner


class Platon(WeightPruner):
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

    learns_scores = True
    mask_type = ScoredMask

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

    def attach(self, prunable: Prunable, *, seed: int) -> None:
        """Put the masks on; every average starts at 0."""
        super().attach(prunable, seed=seed)
        for name in prunable.linears:
            module = self.scored(name)
            for buffer in ("in_window", "sensitivity", "uncertainty"):
                module.register_buffer(buffer, torch.zeros_like(module.scores))

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """List the scores: their gradient w · dL/d(w·mask), summed over micro-batches, is all that is used of them."""
        return [self.scored(name).scores for name in self.masks]

    def observe_gradients(self, *, scale: float) -> None:
        """Add this step's |w · dL/d(w·mask)| to the window and clear the gradients; a full one moves the averages."""
        self._n_seen += 1
        for name in self.masks:
            module = self.scored(name)
            if module.scores.grad is not None:
                observed = module.scores.grad.abs().div_(scale)
                # A loss scaler provokes infinities to find its scale; one would stay in the averages for good.
                module.get_buffer("in_window").add_(observed.nan_to_num_(nan=0.0, posinf=0.0))
                module.scores.grad = None
            if self._n_seen == self.window:
                self._end_window(module)
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

    def _end_window(self, module: ScoredMask) -> None:
        in_window, sensitivity = module.get_buffer("in_window"), module.get_buffer("sensitivity")
        in_window.div_(self.window)
        sensitivity.lerp_(in_window, 1 - self.sensitivity_decay)
        module.get_buffer("uncertainty").lerp_(in_window.sub_(sensitivity).abs_(), 1 - self.uncertainty_decay)
        in_window.zero_()


__all__ = ["Platon"]
