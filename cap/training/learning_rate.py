"""How the weights of a run move: the peak of the learning rate, and its fraction at each step."""

from __future__ import annotations

from dataclasses import dataclass

from cap.pruning.schedule import SchedulePlan


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """Say how the weights move.

    Args:
        learning_rate: Peak learning rate of the weights.
        weight_decay: Decoupled decay of 2-D weights; biases, LayerNorm and scores have none.
        warmup: Fraction of the run, up to its first rewind, in which the learning rate rises.
        floor: Where the linear decay that follows ends, as a fraction of the peak, in [0, 1].
        start: Fraction of all this that applies while nothing is pruned, in [0, 1]; it rises to 1 in proportion to
            the plan's sparsity.
        plan: Says how sparsity rises, and where the learning rate restarts, each time with the plan's own warm-up;
            None trains a dense model in one part.
    """

    learning_rate: float
    weight_decay: float
    warmup: float
    floor: float = 0.0
    start: float = 1.0
    plan: SchedulePlan | None = None

    def multiplier(self, step: int, n_steps: int) -> float:
        """Return the learning rate of a step as a fraction of its peak."""
        rewinds = self.plan.rewinds(n_steps) if self.plan is not None else []
        bounds = [0, *rewinds, n_steps]
        begin = max(bound for bound in bounds[:-1] if bound <= step)
        length = bounds[bounds.index(begin) + 1] - begin
        warmup = self.plan.rewind_warmup if self.plan is not None and begin > 0 else self.warmup
        n_warmup, since = round(warmup * length), step - begin
        if since < n_warmup:
            return since / n_warmup * self._share(step, n_steps)
        remaining = max(0.0, (length - since) / max(1, length - n_warmup))
        return (self.floor + (1 - self.floor) * remaining) * self._share(step, n_steps)

    def _share(self, step: int, n_steps: int) -> float:
        """Return what of the learning rate applies at the sparsity of a step."""
        if self.plan is None or self.start == 1 or self.plan.sparsity == 0:
            return 1.0
        return self.start + (1 - self.start) * self.plan.over(n_steps)(step) / self.plan.sparsity


__all__ = ["Optimisation"]
