"""When masks move, when snapshots are taken, when levels are scored."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from cap.pruning.pruner import MaskCounts, Pruner
from cap.pruning.schedule import Schedule, SchedulePlan
from cap.training.encode import computation_of, encode_rows, save_snapshot
from cap.training.evaluation import evaluate
from cap.training.importance import measure_importance
from cap.training.module import CapModule

log = logging.getLogger(__name__)

# A gradual schedule has a level at every step; one line per this many points keeps the log readable.
_LOG_EVERY = 0.05


class PruningCallback(Callback):
    """Move the masks along the schedule, on optimizer steps.

    Args:
        plan: The schedule in fractions of a run.
        every_n_steps: Move the masks every so many optimizer steps, >= 1; a new level and the last step always move
            them, so that the run ends on its target.
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

    def is_due(self, step: int, pruner: Pruner) -> bool:
        """Say whether the masks move at an optimizer step that has not begun."""
        target = self._schedule(step)
        if target <= 0 or step == self._last_step:
            return False
        is_level = self._has_levels or target == self._schedule(self._n_steps - 1)
        if is_level and target != self.target:
            return True
        return pruner.moves_within_levels and (step % self.every_n_steps == 0 or step == self._n_steps - 1)

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

    It stands before the snapshots: a level's importance is measured against the banks as they were before its snapshot.

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
        measure_importance(_module(pl_module), self.loader(), wanted, batch_size=self.batch_size, trainer=trainer)
        self.seconds += time.perf_counter() - started


class RestartCallback(Callback):
    """Forget the optimizer's moving averages where its learning-rate schedule starts anew.

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
        """Start anew if this optimizer step is the first of a level."""
        if trainer.global_step in self._steps:
            self._steps.discard(trainer.global_step)
            for optimizer in trainer.optimizers:
                optimizer.state.clear()


class SnapshotCallback(Callback):
    """Encode the training set with the student itself, before the masks of that step move.

    Args:
        plan: The schedule; one with levels is encoded before each rise after the first, a gradual one at
            ``n_snapshots`` equally spaced steps.
        n_snapshots: How many snapshots of a gradual schedule, >= 0.
        loader: Makes the data loader with every training row once.
        folder: Where the encodings are kept during the run.
    """

    def __init__(self, plan: SchedulePlan, *, n_snapshots: int, loader: Callable[[], DataLoader], folder: Path) -> None:
        self.plan = plan
        self.n_snapshots = n_snapshots
        self.loader = loader
        self.folder = folder
        self.seconds = 0.0
        self._steps: set[int] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the steps of the snapshots."""
        self._steps = set(snapshot_steps(self.plan, int(trainer.estimated_stepping_batches), self.n_snapshots))
        if not self._steps:
            log.warning("no snapshot is due in this run's schedule and length: the term loss/snc is left out")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take a snapshot if this optimizer step is due."""
        step = trainer.global_step
        if step not in self._steps:
            return
        self._steps.discard(step)
        started = time.perf_counter()
        module = _module(pl_module)
        computation = computation_of(trainer)
        encodings, _ = encode_rows(
            module.student,
            self.loader(),
            device=computation.device,
            autocast=computation.autocast,
            with_logits=False,
            description=f"snapshot at step {step}",
            trainer=trainer,
        )
        path = self.folder / f"step-{step:07d}.npy"
        save_snapshot(encodings, path)
        if module.memory is None:
            raise ValueError("a snapshot needs a memory to go to, but the module has none")
        module.memory.add_encodings("snapshots", path)
        self.seconds += time.perf_counter() - started
        log.info("step %d: snapshot %d taken", step, module.memory.n_encodings("snapshots"))


def snapshot_steps(plan: SchedulePlan, n_steps: int, n_snapshots: int) -> list[int]:
    """Choose the optimizer steps at which snapshots are taken.

    Args:
        plan: The schedule.
        n_steps: Optimizer steps of the run.
        n_snapshots: For a gradual schedule.

    Returns:
        Rising steps, none of them 0: the student is the pre-trained model there, whose encodings exist already.

    Source: CAP's released scripts: before each rise of sparsity after the first (structured), at the start of each
    epoch after the first of ten (unstructured).
    """
    starts = plan.level_starts(n_steps)
    steps = (
        starts[1:]
        if starts is not None
        else [round(i * n_steps / (n_snapshots + 1)) for i in range(1, n_snapshots + 1)]
    )
    return sorted({step for step in steps if 0 < step < n_steps})


class ScoreCallback(Callback):
    """Keep the student's validation scores over the run, beside the sparsity they were reached at.

    Args:
        pruning: Knows target and reached sparsity.
        plan: A schedule with levels is scored at the end of each, wherever in an epoch that is.
        loaders: Makes the validation loaders by split.
        metric: The score that the log shows.
    """

    def __init__(
        self,
        pruning: PruningCallback,
        *,
        plan: SchedulePlan,
        loaders: Callable[[], Mapping[str, DataLoader]],
        metric: str,
    ) -> None:
        self.pruning = pruning
        self.plan = plan
        self.loaders = loaders
        self.metric = metric
        self.levels: list[dict[str, Any]] = []
        self._level_ends: set[int] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the steps at which a level gives way to the next."""
        starts = self.plan.level_starts(int(trainer.estimated_stepping_batches)) or []
        self._level_ends = set(starts) - {0}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Score a level before the next one begins, unless a validation has just done so."""
        step = trainer.global_step
        if step not in self._level_ends:
            return
        self._level_ends.discard(step)
        if not self.levels or self.levels[-1]["step"] != step:
            module = _module(pl_module)
            device = trainer.strategy.root_device
            scores, _ = evaluate(
                module.student, self.loaders(), module.metrics, device=device, description="level", trainer=trainer
            )
            self._note(step, scores)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the scores of a validation during training."""
        if trainer.sanity_checking:
            return
        scores = {
            name.removeprefix("val/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        self._note(trainer.global_step, scores)

    def _note(self, step: int, scores: dict[str, float]) -> None:
        self.levels.append(
            {
                "step": step,
                "target": self.pruning.target,
                "sparsity": self.pruning.reached,
                "scores": scores,
            }
        )
        log.info(
            "step %d: validation %s %.4f at sparsity %.4f",
            step,
            self.metric,
            scores[self.metric],
            self.pruning.reached,
        )


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

    def median(self) -> float | None:
        """Return the median seconds of a step; None if there was none."""
        return statistics.median(self.seconds) if self.seconds else None


def _pruner(pl_module: LightningModule) -> Pruner:
    pruner = _module(pl_module).pruner
    if pruner is None:
        raise ValueError("masks move on a module with a pruner, but it has none")
    return pruner


def _module(pl_module: LightningModule) -> CapModule:
    if not isinstance(pl_module, CapModule):
        raise TypeError(f"this callback works on a CapModule, got {type(pl_module).__name__}")
    return pl_module


__all__ = [
    "ImportanceCallback",
    "PruningCallback",
    "RestartCallback",
    "ScoreCallback",
    "SnapshotCallback",
    "StepTimer",
    "snapshot_steps",
]
