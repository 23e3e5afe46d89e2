"""One run, many sparsities: the model as the schedule passes chosen levels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from cap.base.files import atomic_folder
from cap.base.kinds import Kind, Metrics
from cap.models.encoders import load_saved_model
from cap.models.pooled import PooledModel
from cap.pruning.masks import sparsity_fractions
from cap.pruning.pruner import Pruner
from cap.training.callbacks.pruning import PruningCallback
from cap.training.evaluation import evaluate
from cap.training.module import cap_module
from cap.training.parallel.ranks import ranks_of

log = logging.getLogger(__name__)


class KeepCallback(Callback):
    """Save and score the student at chosen sparsities, without changing what becomes of the run.

    It must run before the callback that moves the masks. A schedule that holds levels has its model kept at the end of
    a level, after the retraining; a gradual one where its target passes the level: the masks are moved to exactly that
    level, and then on to the target of the step. Such a model is not trained at its sparsity, which is written down.

    Args:
        levels: Rising sparsities as they were asked for, and the exact ones that they mean; without the final one,
            whose model is the run's own.
        pruning: Knows the schedule, and when masks move.
        folder: Gets a Hugging Face folder per level.
        save: Writes a model into a folder.
        kind: What an answer of the task is.
        loaders: Makes the validation loaders by split, of this process's share of the rows.
        metrics: Makes metrics by the same splits.
        note: Called with all models kept so far, after each.
        warn: Called with each warning for the record.
    """

    def __init__(
        self,
        levels: Mapping[float, float],
        *,
        pruning: PruningCallback,
        folder: Path,
        save: Callable[[PreTrainedModel, Path], None],
        kind: Kind,
        loaders: Callable[[int, int], Mapping[str, DataLoader]],
        metrics: Callable[[], Mapping[str, Metrics]],
        note: Callable[[list[dict[str, Any]]], None] = lambda kept: None,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self.levels = tuple(levels.items())
        self.pruning = pruning
        self.folder = folder
        self.save = save
        self.kind = kind
        self.loaders = loaders
        self.metrics = metrics
        self.note = note
        self.warn = warn
        self.kept: list[dict[str, Any]] = []
        self._n_passed = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep every level that the masks are about to pass."""
        module = cap_module(pl_module)
        pruner, step = module.pruner, trainer.global_step
        if pruner is None or self._n_passed == len(self.levels) or not self.pruning.moves.is_due(step):
            return
        target, holds_levels = self.pruning.moves.target_at(step), self.pruning.moves.holds_levels
        for asked, level in self.levels[self._n_passed :]:
            # A level that the schedule holds is at its end only when the next one begins.
            is_passed = target > level if holds_levels else target >= level
            if not is_passed:
                return
            if holds_levels and self.pruning.target != level:
                self.warn(f"No model is kept at {asked:g}: the run has too few steps, and the schedule passed it over.")
            else:
                if not holds_levels:
                    pruner.update_masks(level)
                self._keep(module.student, pruner, asked, trainer)
            self._n_passed += 1

    def state_dict(self) -> dict[str, Any]:  # noqa: D102 - Lightning's hook
        return {"kept": self.kept, "n_passed": self._n_passed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102 - Lightning's hook
        self.kept, self._n_passed = list(state_dict["kept"]), state_dict["n_passed"]
        self.note(self.kept)

    def _keep(self, student: PooledModel, pruner: Pruner, asked: float, trainer: Trainer) -> None:
        folder, ranks = self.folder / repr(asked), ranks_of(trainer)
        if ranks.is_first:
            with atomic_folder(folder) as temporary:
                self.save(_folded(student.model, pruner), temporary)
        ranks.barrier()
        saved = load_saved_model(folder, self.kind)
        fractions = sparsity_fractions(saved)
        scores, _ = evaluate(
            PooledModel(saved, student.pooling),
            self.loaders(ranks.rank, ranks.size),
            self.metrics(),
            device=trainer.strategy.root_device,
            description=f"model at sparsity {asked:g}",
            trainer=trainer,
            ranks=ranks,
            can_stop=False,  # masks have moved in this step, and it has its snapshot
        )
        # On disk and scored: only then is it said to be there.
        self.kept.append(
            {
                "step": trainer.global_step,
                "sparsity": {"asked": asked, **fractions},
                "scores": scores,
                "folder": f"{self.folder.name}/{folder.name}",
                "is_retrained": self.pruning.moves.holds_levels,
            }
        )
        self.note(self.kept)
        log.info(
            "step %d: the model at sparsity %.4f is kept in %s", trainer.global_step, fractions["prunable"], folder
        )


def _folded(model: PreTrainedModel, pruner: Pruner) -> PreTrainedModel:
    """Copy a student as folding would leave it; a copied parametrization would share its class with the original."""
    with torch.random.fork_rng(devices=[]):  # the weights that a new model draws are replaced
        folded = type(model)(pruner.folded_config(model.config))
    folded.load_state_dict(pruner.folded_state(model))
    return folded


__all__ = ["KeepCallback"]
