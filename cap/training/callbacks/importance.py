"""When importance is measured, for a pruner that needs a pass over the training rows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from cap.training.callbacks.pruning import PruningCallback
from cap.training.importance import measure_importance
from cap.training.module import cap_module

log = logging.getLogger(__name__)


class ImportanceCallback(Callback):
    """Measure importance before the masks move, for a pruner that needs a pass over the training rows.

    It must run before the snapshots: a level's importance is measured against the banks as they were before its
    snapshot, and that of the first level against none, as in the released code, which makes its banks after it.

    Args:
        pruning: Knows when the masks move.
        loader: Makes a loader of training batches, told the optimizer step.
        batch_size: Training examples of a batch.
        n_examples: Training examples there are: rows, or windows where answers are spans.
        warn: Called with each warning for the record.
    """

    def __init__(
        self,
        pruning: PruningCallback,
        *,
        loader: Callable[[int], DataLoader],
        batch_size: int,
        n_examples: int,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self.pruning = pruning
        pruning.is_measured = True
        self.loader = loader
        self.batch_size = batch_size
        self.n_examples = n_examples
        self.warn = warn
        self.seconds = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if more rows are asked for than there are, and offer further passes within a step."""
        wanted = self.pruning.pruner.importance_pass
        if wanted is None:
            return
        if wanted.rows is not None and wanted.rows > self.n_examples:
            self.warn(f"{wanted.key}={wanted.rows}, but there are {self.n_examples}: all are used.")
        self.pruning.moves.measure = partial(self._measure, trainer, pl_module, can_stop=False)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Run the pass if the masks are about to move."""
        if self.pruning.moves.needs_pass(trainer.global_step):
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Trainer, pl_module: LightningModule, *, can_stop: bool = True) -> None:
        wanted = self.pruning.pruner.importance_pass
        if wanted is None:
            return
        started = time.perf_counter()
        measure_importance(
            cap_module(pl_module),
            self.loader(trainer.global_step),
            wanted,
            batch_size=self.batch_size,
            trainer=trainer,
            with_contrast=self.pruning.target > 0,  # the masks have moved before
            can_stop=can_stop,
        )
        self.seconds += time.perf_counter() - started

    def state_dict(self) -> dict[str, Any]:  # noqa: D102 - Lightning's hook
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102 - Lightning's hook
        self.seconds = state_dict["seconds"]


__all__ = ["ImportanceCallback"]
