"""How the weights of a run move: the peak of the learning rate, and its fraction at each step."""

from __future__ import annotations

from collections.abc import Callable
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

    def over(self, n_steps: int) -> Callable[[int], float]:
        """Return the learning rate of each optimizer step of a run, as a fraction of its peak.

        Args:
            n_steps: Optimizer steps of the run.
        """
        plan = self.plan
        bounds = [0, *(plan.rewinds(n_steps) if plan is not None else []), n_steps]
        sparsity = None if plan is None or self.start == 1 or plan.sparsity == 0 else plan.over(n_steps)

        def multiplier(step: int) -> float:
            begin = max(bound for bound in bounds[:-1] if bound <= step)
            length = bounds[bounds.index(begin) + 1] - begin
            warmup = plan.rewind_warmup if plan is not None and begin > 0 else self.warmup
            n_warmup, since = round(warmup * length), step - begin
            if since < n_warmup:
                part = since / n_warmup
            else:
                remaining = max(0.0, (length - since) / max(1, length - n_warmup))
                part = self.floor + (1 - self.floor) * remaining
            if plan is None or sparsity is None:
                return part
            return part * (self.start + (1 - self.start) * sparsity(step) / plan.sparsity)

        return multiplier


__all__ = ["Optimisation"]
