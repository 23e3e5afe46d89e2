"""When masks move: a schedule laid over the optimizer steps of a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cap.pruning.pruner import MaskCounts, Pruner
from cap.pruning.schedule import SchedulePlan, stride_problem
from cap.pruning.targets import Schedule

log = logging.getLogger(__name__)

# A gradual schedule has a level at every step; one line per this many points keeps the log readable.
_LOG_EVERY = 0.05
_NEAR = 1e-3  # a sparsity that is written with a few digits


class MaskMoves:
    """Move the masks of a pruner along a schedule, at most once per optimizer step.

    Args:
        pruner: Owns the masks.
        plan: The schedule in fractions of a run.
        every_n_steps: Move the masks every so many optimizer steps, >= 1; a jump of the sparsity, the step that reaches
            the target and a last step of another target always move them, so that the run ends on its target. None:
            there alone, of a schedule with levels.
        measure: Runs the pass that a pruner ranks by, before each of its moves on the way to a target but the first,
            which the caller measures for.
        warn: Called with each warning for the record.

    Raises:
        ValueError: If ``every_n_steps`` is below 1, or None where sparsity rises gradually; if pruner and schedule name
            different sparsities, or the pruner needs levels and the schedule has none.
    """

    def __init__(
        self,
        pruner: Pruner,
        plan: SchedulePlan,
        *,
        every_n_steps: int | None = 1,
        measure: Callable[[], None] | None = None,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        if not isinstance(plan, SchedulePlan):
            raise ValueError(f"plan must be a schedule such as cap.Cubic(sparsity=0.9), got {plan!r}")
        if pruner.needs_levels and plan.level_starts(1) is None:
            raise ValueError(
                f"{type(pruner).__name__} prunes at levels with retraining in between, got {type(plan).__name__} that "
                f"rises in every step; give cap.Stepwise, cap.OneShot, or cap.Cubic(n_prunings=...)"
            )
        if (problem := stride_problem(every_n_steps, plan)) is not None:
            raise ValueError(f"every_n_steps {problem}")
        final = pruner.final_sparsity
        if final is not None and not math.isclose(final, plan.sparsity):
            raise ValueError(
                f"pruner and schedule must end at one sparsity, got final_sparsity={final} of "
                f"{type(pruner).__name__} and sparsity={plan.sparsity} of {type(plan).__name__}"
            )
        self.pruner = pruner
        self.plan = plan
        self.every_n_steps = every_n_steps
        self.measure = measure
        self.warn = warn
        self.target = 0.0
        self.reached = 0.0
        self._schedule: Schedule = lambda step: 0.0
        self._last_step = -1
        self._moved_at = -1
        self._logged_target = 0.0

    @property
    def has_arrived(self) -> bool:
        """Say whether the last move had the schedule's last target."""
        return self.target >= self.plan.sparsity

    def end(self) -> None:
        """Warn if the steps are over and the target was not reached: the run had fewer than were planned."""
        if not self.has_arrived:
            self.warn(
                f"The masks stop at a target of {self.target:.4f}, reached {self.reached:.4f}, and not at "
                f"{self.plan.sparsity:g}: the schedule lies over {self._n_steps} optimizer steps, of which number "
                f"{self._last_step + 1} was the last to begin. Give the callback n_steps, the steps that there are, or "
                f"let the run go to its end."
            )

    def begin(self, n_steps: int | float) -> None:
        """Lay the schedule over the steps of this run.

        Args:
            n_steps: Optimizer steps of the whole run, those before a resumed checkpoint included.

        Raises:
            ValueError: If their number is not known, or the pruner has no masks.
        """
        if math.isinf(n_steps):
            raise ValueError("a schedule of sparsity needs the number of steps, got a run without end; set max_steps")
        self.pruner.require_movable(0.0)
        if self.pruner.keeps_zeros:
            self._begin_with_zeros()
        self._n_steps = int(n_steps)
        self._schedule = self.plan.over(self._n_steps)
        self._jumps = set(self.plan.jumps(self._n_steps))
        starts = self.plan.level_starts(self._n_steps)
        self._has_levels = starts is not None
        if starts is not None and len(set(starts)) < len(starts):
            self.warn(
                f"{len(starts)} levels found only {len(set(starts))} steps of their own in a run of {self._n_steps} "
                f"steps: the others were passed over."
            )

    def _begin_with_zeros(self) -> None:
        """Note the sparsity of masks that lie on a model before anything moves.

        Raises:
            ValueError: If the schedule ends at another one.
        """
        self.reached = self.pruner.update_masks(self.plan.sparsity).sparsity
        if abs(self.reached - self.plan.sparsity) > _NEAR:
            raise ValueError(
                f"{type(self.pruner).__name__} keeps the zeros that the model has, a sparsity of {self.reached:.4f}, "
                f"got a schedule that ends at {self.plan.sparsity}; give it cap.OneShot(sparsity={self.reached:.4f}, "
                f"flat_before=0), or leave the callback out"
            )

    def advance(self, step: int) -> None:
        """Move the masks if an optimizer step that is about to begin is due."""
        if step == self._last_step:
            return
        if self.is_due(step):
            target = self._schedule(step)
            counts = self._move(target)
            self._log_level(step, target, counts)
            self.target, self.reached = target, counts.sparsity
            self._moved_at = step
        self._last_step = step

    def has_begun(self, step: int) -> bool:
        """Say whether an optimizer step has begun: several batches share one under accumulation."""
        return step == self._last_step

    def has_moved(self, step: int) -> bool:
        """Say whether an optimizer step that has begun moved the masks."""
        return step == self._moved_at

    @property
    def holds_levels(self) -> bool:
        """Say whether the schedule jumps from level to level."""
        return self._has_levels

    def target_at(self, step: int) -> float:
        """Return the target sparsity of an optimizer step."""
        return self._schedule(step)

    def is_due(self, step: int) -> bool:
        """Say whether the masks move at an optimizer step that has not begun."""
        target = self._schedule(step)
        if target <= 0 or step == self._last_step:
            return False
        # A trainer may count several steps at once, as Lightning does with two optimizers of one batch.
        if target != self.target and any(self._last_step < jump <= step for jump in self._jumps):
            return True
        if self._has_levels and not self.pruner.moves_within_levels:
            return False
        if self.pruner.is_monotone and target == self.target:
            return False
        # What is pruned in the last step has no steps to recover in; masks that are all that learns need none.
        must_end = target != self.target or not self.pruner.trains_weights
        if must_end and step >= self._n_steps - 1:
            return True
        return self.every_n_steps is not None and step % self.every_n_steps == 0

    def needs_pass(self, step: int) -> bool:
        """Say whether a pass over training rows has to run before the move of an optimizer step that has not begun."""
        return self.is_due(step) and self.pruner.needs_pass(self._schedule(step))

    def state_dict(self) -> dict[str, Any]:
        """Return where on the schedule the masks are, as numbers."""
        return {
            "target": self.target,
            "reached": self.reached,
            "last_step": self._last_step,
            "logged_target": self._logged_target,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.target, self.reached = state["target"], state["reached"]
        self._last_step, self._logged_target = state["last_step"], state["logged_target"]

    def _move(self, target: float) -> MaskCounts:
        first, *others = self.pruner.parts_of(target)
        counts = self.pruner.update_masks(first)
        for part in others:
            if self.measure is not None:
                self.measure()
            counts = replace(self.pruner.update_masks(part), n_pruned_before=counts.n_pruned_before)
        return counts

    def _log_level(self, step: int, target: float, counts: MaskCounts) -> None:
        is_final = target == self._schedule(self._n_steps - 1)
        is_last_line = is_final and self._logged_target != target
        if is_last_line or target - self._logged_target >= _LOG_EVERY or step == self._n_steps - 1:
            moves = {**counts.units, "prunable weights": (counts.n_pruned_before, counts.n_pruned, counts.n_weights)}
            log.info(
                "step %d: target sparsity %.4f, reached %.4f; pruned %s",
                step,
                target,
                counts.sparsity,
                ", ".join(f"{before:,} -> {after:,} of {n:,} {what}" for what, (before, after, n) in moves.items()),
            )
            self._logged_target = target


__all__ = ["MaskMoves"]
