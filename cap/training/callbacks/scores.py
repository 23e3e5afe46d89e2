"""The student's validation scores over the run, beside the sparsity they were reached at.

All of them are like each other: of the same rows, which ``trainer.limit_val_batches`` may limit, and in the precision
that the run trains in. A run's final score is of all rows and in float32; each says which it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from cap.pruning.schedule import SchedulePlan
from cap.training.callbacks.pruning import PruningCallback
from cap.training.evaluation import evaluate
from cap.training.module import cap_module
from cap.training.parallel.ranks import ranks_of

log = logging.getLogger(__name__)


class ScoreCallback(Callback):
    """Keep the student's validation scores over the run.

    Args:
        pruning: Knows target and reached sparsity.
        plan: A schedule with levels is scored at the end of each, wherever in an epoch that is.
        loaders: Makes the loaders by split that validations during training use, of this process's share of the rows.
        share: Returns the fraction of the validation rows that these give over all processes.
        metric: The score that the log shows.
    """

    def __init__(
        self,
        pruning: PruningCallback,
        *,
        plan: SchedulePlan,
        loaders: Callable[[], Mapping[str, DataLoader]],
        share: Callable[[], float],
        metric: str,
    ) -> None:
        self.pruning = pruning
        self.plan = plan
        self.loaders = loaders
        self.share = share
        self.metric = metric
        self.levels: list[dict[str, Any]] = []
        self._level_ends: set[int] = set()
        # Epoch and step of a validation that was given up when the run was asked to stop; it is logged with them later.
        self._owed: tuple[int, int] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the steps at which a level gives way to the next."""
        starts = self.plan.level_starts(int(trainer.estimated_stepping_batches)) or []
        self._level_ends = set(starts) - {0}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Score a level before the next one begins, unless a validation has just done so."""
        if trainer.limit_val_batches == 0:  # nothing is validated
            return
        step = trainer.global_step
        is_noted = bool(self.levels) and self.levels[-1]["step"] == step
        if (step in self._level_ends and not is_noted) or self._owed is not None:
            module = cap_module(pl_module)
            # In the precision of a validation.
            with trainer.precision_plugin.forward_context():
                scores, _ = evaluate(
                    module.student,
                    self.loaders(),
                    module.metrics,
                    device=trainer.strategy.root_device,
                    description="level",
                    trainer=trainer,
                    ranks=ranks_of(trainer),
                    can_stop=self._owed is None,  # an owed one may be due within a step that gathers gradients
                )
            epoch, logged_at = self._owed or (trainer.current_epoch, step - 1)  # where a validation is logged
            row = {**{f"val/{name}": value for name, value in scores.items()}, "epoch": epoch}
            for logger in trainer.loggers:
                logger.log_metrics(row, logged_at)
            self._note(step, scores, trainer)
            self._owed = None
        self._level_ends.discard(step)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the scores of a validation during training."""
        if trainer.sanity_checking:
            return
        if cap_module(pl_module).is_asked_to_stop:
            self._owed = (trainer.current_epoch, trainer.fit_loop.epoch_loop._batches_that_stepped)
            return
        scores = {
            name.removeprefix("val/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        self._note(trainer.global_step, scores, trainer)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102 - Lightning's hook
        return {"levels": self.levels, "owed": None if self._owed is None else list(self._owed)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102 - Lightning's hook
        owed = state_dict["owed"]
        # An older version kept the epoch alone: that validation is left out.
        self.levels, self._owed = list(state_dict["levels"]), (owed[0], owed[1]) if isinstance(owed, list) else None

    def _note(self, step: int, scores: dict[str, float], trainer: Trainer) -> None:
        share = self.share()
        self.levels.append(
            {
                "step": step,
                "target": self.pruning.target,
                "sparsity": self.pruning.reached,
                "scores": scores,
                "share": share,
                "precision": str(trainer.precision),
            }
        )
        log.info(
            "step %d: validation %s %.4f at sparsity %.4f%s",
            step,
            self.metric,
            scores[self.metric],
            self.pruning.reached,
            "" if share == 1 else f", of {share:.1%} of the rows (trainer.limit_val_batches)",
        )


__all__ = ["ScoreCallback"]
