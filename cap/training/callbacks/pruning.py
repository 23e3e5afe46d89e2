"""When masks move."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cap.pruning.pruner import MaskCounts, Pruner
from cap.pruning.schedule import Schedule, SchedulePlan
from cap.training.module import pruner_of

log = logging.getLogger(__name__)

# A gradual schedule has a level at every step; one line per this many points keeps the log readable.
_LOG_EVERY = 0.05


class PruningCallback(Callback):
    """Move the masks along the schedule, on optimizer steps.

    Args:
        plan: The schedule in fractions of a run.
        every_n_steps: Move the masks every so many optimizer steps, >= 1; a jump of the sparsity, the step that reaches
            the target and the last step always move them, so that the run ends on its target.
        warn: Told of what a reader of the result must know.

    Raises:
        ValueError: If ``every_n_steps`` is below 1.
    """

    def __init__(self, plan: SchedulePlan, *, every_n_steps: int, warn: Callable[[str], None] = log.warning) -> None:
        if every_n_steps < 1:
            raise ValueError(f"pruning.every_n_steps must be at least 1, got {every_n_steps}")
        self.plan = plan
        self.every_n_steps = every_n_steps
        self.warn = warn
        self.target = 0.0
        self.reached = 0.0
        self._schedule: Schedule = lambda step: 0.0
        self._last_step = -1
        self._logged_target = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay the schedule over the steps of this run."""
        self._n_steps = int(trainer.estimated_stepping_batches)
        self._schedule = self.plan.over(self._n_steps)
        self._jumps = set(self.plan.jumps(self._n_steps))
        starts = self.plan.level_starts(self._n_steps)
        self._has_levels = starts is not None
        if starts is not None and len(set(starts)) < len(starts):
            self.warn(
                f"{len(starts)} levels found only {len(set(starts))} steps of their own in a run of {self._n_steps} "
                f"steps: the others were passed over."
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Move the masks if this optimizer step is due."""
        step = trainer.global_step  # several batches share one under accumulation
        if step == self._last_step:
            return
        pruner, target = pruner_of(pl_module), self._schedule(step)
        if self.is_due(step, pruner):
            counts = pruner.update_masks(target)
            self._log_level(step, target, counts)
            self.target, self.reached = target, counts.sparsity
        self._last_step = step
        pl_module.log_dict({"pruning/target": self.target, "pruning/sparsity": self.reached})

    @property
    def holds_levels(self) -> bool:
        """Say whether the schedule jumps from level to level."""
        return self._has_levels

    def target_at(self, step: int) -> float:
        """Return the target sparsity of an optimizer step."""
        return self._schedule(step)

    def is_due(self, step: int, pruner: Pruner) -> bool:
        """Say whether the masks move at an optimizer step that has not begun."""
        target = self._schedule(step)
        if target <= 0 or step == self._last_step:
            return False
        if step in self._jumps and target != self.target:
            return True
        if self._has_levels and not pruner.moves_within_levels:
            return False
        return step % self.every_n_steps == 0 or step == self._n_steps - 1

    def state_dict(self) -> dict[str, Any]:  # noqa: D102 - Lightning's hook
        return {
            "target": self.target,
            "reached": self.reached,
            "last_step": self._last_step,
            "logged_target": self._logged_target,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102 - Lightning's hook
        self.target, self.reached = state_dict["target"], state_dict["reached"]
        self._last_step, self._logged_target = state_dict["last_step"], state_dict["logged_target"]

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


__all__ = ["PruningCallback"]
