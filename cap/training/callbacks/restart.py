"""When the optimizer starts again."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cap.pruning.schedule import SchedulePlan


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
        """Start again if this optimizer step is due."""
        if trainer.global_step in self._steps:
            self._steps.discard(trainer.global_step)
            for optimizer in trainer.optimizers:
                optimizer.state.clear()


__all__ = ["RestartCallback"]
