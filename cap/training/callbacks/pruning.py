"""When masks move, when importance is measured, when the optimizer starts anew; and how long a step takes."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from cap.pruning.pruner import MaskCounts, Pruner
from cap.pruning.schedule import Schedule, SchedulePlan
from cap.training.importance import measure_importance
from cap.training.module import CapModule

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
        pruner, target = _pruner(pl_module), self._schedule(step)
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


class ImportanceCallback(Callback):
    """Measure importance before the masks move, for a pruner that needs a pass over the training rows.

    It stands before the snapshots: a level's importance is measured against the banks as they were before its snapshot,
    and that of the first level against none, as in the released code, which makes its banks after it.

    Args:
        pruning: Knows when the masks move.
        loader: Makes a loader of training batches.
        batch_size: Training examples of a batch.
        n_examples: Training examples there are: rows, or windows where answers are spans.
        warn: Told of what a reader of the result must know.
    """

    def __init__(
        self,
        pruning: PruningCallback,
        *,
        loader: Callable[[], DataLoader],
        batch_size: int,
        n_examples: int,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self.pruning = pruning
        self.loader = loader
        self.batch_size = batch_size
        self.n_examples = n_examples
        self.warn = warn
        self.seconds = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if more rows are asked for than there are."""
        wanted = _pruner(pl_module).importance_pass
        if wanted is not None and wanted.rows is not None and wanted.rows > self.n_examples:
            self.warn(f"pruning.importance_rows={wanted.rows}, but there are {self.n_examples}: all are used.")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Run the pass if the masks are about to move."""
        pruner = _pruner(pl_module)
        wanted = pruner.importance_pass
        if wanted is None or not self.pruning.is_due(trainer.global_step, pruner):
            return
        started = time.perf_counter()
        measure_importance(
            cap_module(pl_module),
            self.loader(),
            wanted,
            batch_size=self.batch_size,
            trainer=trainer,
            with_contrast=self.pruning.target > 0,  # the masks have moved before
        )
        self.seconds += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:  # noqa: D102 - Lightning's hook
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102 - Lightning's hook
        self.seconds = state_dict["seconds"]


class RestartCallback(Callback):
    """Forget the optimizer's moving averages where the plan asks for that.

    Args:
        plan: Names the steps.
    """

    def __init__(self, plan: SchedulePlan) -> None:
        self.plan = plan
        self._steps: set[int] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the steps."""
        self._steps = set(self.plan.restarts(int(trainer.estimated_stepping_batches)))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start anew if this optimizer step is due."""
        if trainer.global_step in self._steps:
            self._steps.discard(trainer.global_step)
            for optimizer in trainer.optimizers:
                optimizer.state.clear()


class StepTimer(Callback):
    """Measure optimizer steps: moving the masks included; validation, snapshots and loading not."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0
        self._step = -1
        self._so_far = 0.0  # of the batches of an accumulated step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Start the clock; this callback stands after those that evaluate and before the one that moves the masks."""
        if trainer.global_step != self._step:
            self._step, self._so_far = trainer.global_step, 0.0
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock."""
        self._so_far += time.perf_counter() - self._started
        if trainer.global_step != self._step:
            self.seconds.append(self._so_far)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102 - Lightning's hook
        return {"seconds": torch.tensor(self.seconds, dtype=torch.float64)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102 - Lightning's hook
        self.seconds = state_dict["seconds"].tolist()

    def median(self) -> float | None:
        """Return the median seconds of a step; None if there was none."""
        return statistics.median(self.seconds) if self.seconds else None


def _pruner(pl_module: LightningModule) -> Pruner:
    pruner = cap_module(pl_module).pruner
    if pruner is None:
        raise ValueError("masks move on a module with a pruner, but it has none")
    return pruner


def cap_module(pl_module: LightningModule) -> CapModule:
    """Return the module as what it is.

    Raises:
        TypeError: If it is another one.
    """
    if not isinstance(pl_module, CapModule):
        raise TypeError(f"this callback works on a CapModule, got {type(pl_module).__name__}")
    return pl_module


__all__ = ["ImportanceCallback", "PruningCallback", "RestartCallback", "StepTimer", "cap_module"]
