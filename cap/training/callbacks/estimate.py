"""How long the steps of a run will take."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cap.training.callbacks.timer import StepTimer

log = logging.getLogger(__name__)

N_TIMED_STEPS = 10


class EstimateCallback(Callback):
    """Estimate from its first steps how long the steps of a run will take.

    It stands behind the timer.

    Args:
        timer: Measures the steps.
        note: Told of the minutes, once for each attempt.
    """

    def __init__(self, timer: StepTimer, *, note: Callable[[float], None] = lambda minutes: None) -> None:
        self.timer = timer
        self.note = note
        self.minutes: float | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say again what was found before an interruption."""
        if self.minutes is not None:
            self.note(self.minutes)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say it once enough steps were timed."""
        if self.minutes is not None or len(self.timer.seconds) < N_TIMED_STEPS:
            return
        seconds, n_steps = statistics.median(self.timer.seconds), int(trainer.estimated_stepping_batches)
        self.minutes = seconds * n_steps / 60
        log.info(
            "step %d: %.2f s a step, so that the %s steps of this run take about %.1f minutes; validation, snapshots "
            "and passes for importance come on top",
            trainer.global_step,
            seconds,
            f"{n_steps:,}",
            self.minutes,
        )
        self.note(self.minutes)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102 - Lightning's hook
        return {"minutes": self.minutes}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:  # noqa: D102 - Lightning's hook
        self.minutes = state_dict["minutes"]


__all__ = ["N_TIMED_STEPS", "EstimateCallback"]
