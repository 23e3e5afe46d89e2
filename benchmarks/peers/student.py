"""The student that every tool prunes, its training, and what came out of it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cap.base.files import atomic_folder
from cap.config.check import check
from cap.formats.load import load
from cap.models.encoders import save_model
from cap.models.families import Prunable, prunable_linears
from cap.models.layout import LAYOUT_KEY
from cap.models.pooled import PooledModel
from cap.pruning.pruner import MaskCounts, Pruner
from cap.runs.folder import MODEL
from cap.training.assembly import filled_memory, new_module
from cap.training.callbacks.timer import StepTimer
from cap.training.evaluation import evaluate
from cap.training.module import CapModule
from cap.training.planning import require_possible
from cap.training.preparation import Prepared, prepare
from cap.training.ready import Ready, make_ready
from cap.training.resume.curves import cut_curves
from cap.training.teacher import get_teacher
from cap.training.trainer import build_trainer, fit, idle_trainer


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Hold what came out of a side.

    Args:
        metric: The task's first.
        n_rows: Training rows.
        majority: Score of always predicting the majority class.
        teacher: Score of the teacher; None without one.
        score: Of the saved model.
        steps: Optimizer steps.
        seconds_per_step: Median of an optimizer step.
        sparsity: Fraction of the prunable weights of the dense model that are zero or gone.
        n_bytes: Size of the saved weights.
        opens_with: What loads the saved folder.
    """

    metric: str
    n_rows: int
    majority: float
    teacher: float | None
    score: float
    steps: int
    seconds_per_step: float
    sparsity: float
    n_bytes: int
    opens_with: str


@dataclass(frozen=True, kw_only=True)
class Start:
    """Hold what every side starts from.

    Args:
        ready: The configuration.
        prepared: Rows and the pre-trained model.
        module: The student beside what it learns from, without masks.
        teacher: Scores of the teacher; empty without one.
        n_steps: Optimizer steps of the run.
        folder: Where what comes out is written.
    """

    ready: Ready
    prepared: Prepared
    module: CapModule
    teacher: dict[str, float]
    n_steps: int
    folder: Path

    @property
    def model(self) -> PreTrainedModel:
        """The stock model of the student."""
        return self.module.student.model


class NoMasks(Pruner):
    """Leave a student as it is: another tool prunes it."""

    def attach(self, prunable: Prunable, *, seed: int) -> None:
        """Put nothing on."""

    @property
    def masks(self) -> dict[str, Tensor]:
        """There are none."""
        return {}

    def update_masks(self, sparsity: float) -> MaskCounts:
        """Move nothing: there are no masks."""
        return MaskCounts(n_weights=0, n_pruned_before=0, n_pruned=0)

    def fold(self) -> None:
        """Take nothing off."""


def begin(cfg: DictConfig) -> Start:
    """Make the student that ``cap.train`` would train, with its teacher and its rows, and put no masks on it."""
    ready = make_ready(check(cfg))
    folder = Path(cfg.output_dir)
    cut_curves(folder, 0)  # of an attempt that was interrupted
    prepared = prepare(ready)
    n_steps = require_possible(ready, prepared)
    encoding = new_trainer(ready, folder)
    teacher = get_teacher(ready, prepared, encoding)
    memory, _ = filled_memory(ready, prepared, teacher, encoding)
    without_masks = dataclasses.replace(ready, pruner=NoMasks())
    module = new_module(without_masks, prepared, teacher, memory, warn=lambda message: None)
    return Start(
        ready=ready,
        prepared=prepared,
        module=module,
        teacher={} if teacher is None else teacher.scores,
        n_steps=n_steps,
        folder=folder,
    )


def new_trainer(ready: Ready, folder: Path, *callbacks: Callback) -> Trainer:
    """Make a trainer of one process as it is configured, with other callbacks than a run's."""
    options = {**dataclasses.asdict(ready.config.trainer), "devices": 1, "strategy": "auto"}
    return build_trainer(options, run_dir=folder, callbacks=callbacks)


def train_student(
    start: Start,
    *callbacks: Callback,
    save: Callable[[PreTrainedModel, PreTrainedTokenizerBase, Path], None] = save_model,
) -> Outcome:
    """Train the student as its schedule says, save it, and say what came out.

    Args:
        start: The student.
        callbacks: Prune it, before the clock of a step starts.
        save: Writes a folder that ``cap.load`` loads.
    """
    timer = StepTimer()
    trainer = new_trainer(start.ready, start.folder, *callbacks, timer)
    fit(trainer, start.module, start.prepared.datamodule, None)
    with atomic_folder(start.folder / MODEL) as folder:
        save(start.model.cpu(), start.prepared.tokenizer, folder)
    return outcome_of(
        start.folder / MODEL,
        start.ready,
        start.prepared,
        teacher=start.teacher,
        steps=trainer.global_step,
        seconds_per_step=timer.median(),
    )


def outcome_of(
    folder: Path,
    ready: Ready,
    prepared: Prepared,
    *,
    teacher: dict[str, Any],
    steps: int,
    seconds_per_step: float | None,
) -> Outcome:
    """Load what was saved, and score it.

    Args:
        folder: What ``cap.load`` loads.
        ready: The configuration.
        prepared: Rows and the pre-trained model.
        teacher: Its scores; empty without one.
        steps: Optimizer steps that were taken.
        seconds_per_step: Their median; None if there was none.
    """
    saved, metric = load(folder), prepared.task.monitored
    scores, _ = evaluate(
        PooledModel(saved, prepared.pooling),
        prepared.datamodule.eval_dataloaders(),
        prepared.metrics(),
        device=idle_trainer(ready.config.trainer.accelerator).strategy.root_device,
        description="score of what came out",
    )
    return Outcome(
        metric=metric,
        n_rows=prepared.n_rows()["train"],
        majority=prepared.majority[metric],
        teacher=teacher.get(metric),
        score=scores[metric],
        steps=steps,
        seconds_per_step=seconds_per_step or math.nan,
        sparsity=share_gone(saved.cpu(), prepared.pretrained.model),
        n_bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        opens_with="cap.load" if hasattr(saved.config, LAYOUT_KEY) else "transformers",
    )


def share_gone(model: PreTrainedModel, dense: PreTrainedModel) -> float:
    """Return the fraction of the dense model's prunable weights that another one has zero, or not at all."""
    n_left = sum(int(linear.weight.count_nonzero()) for linear in prunable_linears(model).values())
    return 1 - n_left / sum(linear.weight.numel() for linear in prunable_linears(dense).values())
