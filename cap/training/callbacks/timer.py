"""How long an optimizer step takes."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


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


__all__ = ["StepTimer"]
