"""When the state of a run is written down."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class CheckpointCallback(Callback):
    """Write ``last.ckpt`` every so many minutes or steps.

    Args:
        folder: Where.
        every_n_minutes: Minutes between checkpoints; None for never.
        every_n_steps: Optimizer steps between checkpoints; None for never.
    """

    def __init__(self, folder: Path, *, every_n_minutes: float | None, every_n_steps: int | None) -> None:
        self.path = folder / "last.ckpt"
        self.every_n_minutes = every_n_minutes
        self.every_n_steps = every_n_steps
        self._last_step = 0
        self._last_time = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._last_time = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write a checkpoint if one is due; gradients and loss of this step were finite, or it had not got here."""
        step = trainer.global_step
        if step == self._last_step:
            return
        minutes = (time.monotonic() - self._last_time) / 60
        is_due = (self.every_n_minutes is not None and minutes >= self.every_n_minutes) or (
            self.every_n_steps is not None and step % self.every_n_steps == 0
        )
        if is_due:
            trainer.save_checkpoint(self.path)
            self._last_step, self._last_time = step, time.monotonic()


__all__ = ["CheckpointCallback"]
