"""The fine-tuned teacher: made once and kept, or given and checked."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from cap.base.cache import CacheEntry
from cap.base.errors import InputError
from cap.base.files import content_key, file_sha256, read_json, write_json
from cap.base.kinds import KINDS, Kind, Metrics
from cap.config.check import Checked
from cap.config.schema import FinetuneConfig, TrainConfig
from cap.data.metrics import CORRELATIONS
from cap.models.encoders import load_model, load_saved_model, model_key, save_model
from cap.models.pooled import PooledModel
from cap.models.sources import ModelSource
from cap.runs.checkpoints import newest_checkpoint
from cap.runs.folder import TEACHER
from cap.training.evaluation import evaluate
from cap.training.given_teacher import GivenTeacher
from cap.training.module import CapModule, Distill, Optimisation
from cap.training.parallel.ranks import ALONE, Ranks, ranks_of
from cap.training.parallel.shares import together
from cap.training.preparation import Prepared
from cap.training.resume.checkpoint import CheckpointCallback
from cap.training.resume.curves import cut_curves
from cap.training.trainer import build_trainer, fit

log = logging.getLogger(__name__)

_LUCK = 0.05
"""What is right by luck of answers that no rule gets right, tags or spans say."""
_OTHER_SCORE = ", or a score in which the majority class counts as others do, 'task.metrics=[macro_f1,accuracy]'"
FORMAT = 1
"""Part of every cache key: raise it when the same settings come to train another teacher."""
_WEIGHTS = "model.safetensors"
_CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Teacher:
    """Hold a teacher that fits the task.

    Args:
        model: The fine-tuned classifier.
        scores: On the validation rows of this run.
        label: How a record names it.
        folder: Where it lies if cap made it.
        was_cached: True if cap made it in an earlier run.
        is_at_chance: True if its score could be that of a model that knows nothing.
    """

    model: PooledModel
    scores: dict[str, float]
    label: str
    folder: Path | None = None
    was_cached: bool = False
    is_at_chance: bool = False


@dataclass(frozen=True, kw_only=True)
class WantedTeacher:
    """Describe a teacher that cap makes by everything that changes its weights; equal ones are one entry of the cache.

    Args:
        start: Key of the pre-trained model with its head: a checkpoint may bring one, and one that is drawn follows
            from the seed.
        rows: Key of the tokenised training rows that have a label.
        labels: Of the task, in the order of the outputs.
        finetune: Length of the training, learning rate, decay, warm-up.
        batch_size: Rows of a batch.
        accumulate_grad_batches: Batches of a step, as in the pruning run.
        precision: Lightning's name of it.
        device: The type of device that trains.
        seed: Of the head and of the order of the rows.
    """

    start: str
    rows: str
    labels: list[str]
    finetune: FinetuneConfig
    batch_size: int
    precision: str
    device: str
    seed: int
    accumulate_grad_batches: int = 1

    @property
    def content(self) -> dict[str, Any]:
        """The same as JSON."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        if self.accumulate_grad_batches == 1:  # says what its absence says of teachers that are older than the key
            del content["accumulate_grad_batches"]
        return content

    @property
    def key(self) -> str:
        """Its name in the cache."""
        return content_key(self.content)


class _TeacherEntry(CacheEntry):
    """Keep a teacher in the cache, sealed by the hash of its weights and by what was wanted.

    Args:
        root: The folder of all teachers.
        wanted: Names the entry.
        kind: What an answer of the task is.
        reads: How it reads its rows, for ``cap.evaluate``; part of the rows' key in ``wanted``.
    """

    def __init__(self, root: Path, wanted: WantedTeacher, kind: Kind, reads: Mapping[str, int | None]) -> None:
        super().__init__(root / wanted.key, "teacher", seal=TEACHER)
        self._wanted = wanted
        self._kind = kind
        self._reads = dict(reads)

    def write_seal(self, folder: Path) -> None:
        """Write what was wanted, and the hash of the weights that it gave."""
        content = {"content": self._wanted.content, "weights_sha256": file_sha256(folder / _WEIGHTS)}
        write_json(folder / self.seal, content | {"reads": self._reads})

    def read_seal(self) -> dict[str, str]:
        """Read the hash of the weights."""
        return {_WEIGHTS: read_json(self.folder / self.seal)["weights_sha256"]}

    def try_out(self) -> None:
        """Load the model: its configuration has no hash."""
        load_saved_model(self.folder, self._kind)


def wanted_teacher(config: TrainConfig, prepared: Prepared, device: torch.device) -> WantedTeacher:
    """Describe the teacher of ``teacher=auto``.

    Args:
        config: The configuration.
        prepared: Rows and the pre-trained model.
        device: Where it is trained.
    """
    return WantedTeacher(
        start=model_key(prepared.pretrained.model),
        rows=prepared.datamodule.labelled_key,
        labels=list(prepared.task.labels),
        finetune=config.finetune,
        batch_size=config.batch_size,
        accumulate_grad_batches=config.trainer.accumulate_grad_batches,
        precision=config.trainer.precision,
        device=device.type,
        seed=config.seed,
    )


def get_teacher(checked: Checked, prepared: Prepared, trainer: Trainer) -> Teacher | None:
    """Fine-tune, find or load the teacher that the configuration asks for; of encodings it is the pre-trained model.

    Args:
        checked: The configuration.
        prepared: Rows, the pre-trained model and a given teacher.
        trainer: Of the run: says where to train and score. The first of its processes trains, so that a teacher is the
            same whatever their number; all of them score.

    Returns:
        The teacher; None for ``teacher=none``.

    Raises:
        InputError: If a given teacher has a score at chance level.
        RunError: If the training failed on the first process.
    """
    if prepared.given_teacher is not None:
        return _given_teacher(prepared.given_teacher, prepared, trainer)
    if prepared.is_of_encodings:
        return _dense_teacher(prepared, trainer)
    if checked.config.teacher == "none":
        log.info("teacher=none: no distillation and no contrast with a fine-tuned model (loss/kd, loss/fic)")
        return None
    return _own_teacher(checked.config, prepared, trainer)


def _own_teacher(config: TrainConfig, prepared: Prepared, trainer: Trainer) -> Teacher:
    device, ranks = trainer.strategy.root_device, ranks_of(trainer)
    wanted = wanted_teacher(config, prepared, device)
    reads = {"max_length": config.max_length, "stride": config.task.stride}
    entry = _TeacherEntry(prepared.cache_dir / "teachers", wanted, prepared.task.kind, reads)

    def find_or_make() -> bool:
        return entry.ensure(lambda work: _fine_tune(wanted, work, config, prepared, device), resumes=True)

    was_cached = together(ranks, lambda: ranks.is_first and find_or_make(), what="fine-tuning the teacher")[0]
    folder = entry.folder
    if was_cached:
        log.info("teacher: found in the cache, %s", folder)
    if ranks.is_first:
        shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
    loaded = load_model(ModelSource(str(folder), f"teacher {folder.name}"), head=prepared.task.head)
    model = PooledModel(loaded.model, prepared.pooling)
    scores = cached_scores(
        model,
        folder,
        data_key=content_key({"rows": prepared.rows.fingerprint, "metrics": prepared.task.metrics}),
        loaders=prepared.datamodule.eval_dataloaders(ranks.rank, ranks.size),
        metrics=prepared.metrics(),
        device=device,
        ranks=ranks,
    )
    at_chance = _at_chance(scores, prepared)
    if at_chance:
        log.warning("the teacher stayed at chance level: %s", chance_message(scores, prepared))
    return Teacher(model, scores, f"auto {folder.name}", folder=folder, was_cached=was_cached, is_at_chance=at_chance)


def _given_teacher(given: GivenTeacher, prepared: Prepared, trainer: Trainer) -> Teacher:
    model = PooledModel(given.model, prepared.pooling)
    scores = _scores(model, prepared, trainer)
    if _at_chance(scores, prepared):
        raise InputError(
            f"teacher must know the task, but {given.label} is at chance level: {chance_message(scores, prepared)}; "
            f"give one fine-tuned on this task, or teacher=auto{_OTHER_SCORE if prepared.task.name == 'custom' else ''}"
        )
    return Teacher(model, scores, given.label)


def _dense_teacher(prepared: Prepared, trainer: Trainer) -> Teacher:
    scores = _scores(prepared.pretrained, prepared, trainer)
    at_chance = _at_chance(scores, prepared)
    if at_chance:
        log.warning("the dense encoder is at chance level: %s", chance_message(scores, prepared))
    return Teacher(prepared.pretrained, scores, prepared.source.label, is_at_chance=at_chance)


def _scores(model: PooledModel, prepared: Prepared, trainer: Trainer) -> dict[str, float]:
    ranks = ranks_of(trainer)
    scores, _ = evaluate(
        model,
        prepared.datamodule.eval_dataloaders(ranks.rank, ranks.size),
        prepared.metrics(),
        device=trainer.strategy.root_device,
        description="teacher's score",
        ranks=ranks,
    )
    return scores


def _fine_tune(
    wanted: WantedTeacher, work: Path, config: TrainConfig, prepared: Prepared, device: torch.device
) -> None:
    """Train a teacher in a folder, on from a checkpoint there, and save it."""
    found = newest_checkpoint(work / _CHECKPOINTS, config_hash=wanted.key)
    if found is None:
        shutil.rmtree(work, ignore_errors=True)
        log.info("teacher: fine-tuning, kept in %s for every run that would train the same", work.parent / wanted.key)
    else:
        cut_curves(work, found.n_rows)
        log.info("teacher: fine-tuning goes on after step %d", found.step)
    module = CapModule(
        prepared.new_student(wanted.seed),
        distill=Distill(weight=0.0, ce_weight=1.0, temperature=1.0),
        optimisation=Optimisation(
            learning_rate=wanted.finetune.learning_rate,
            weight_decay=wanted.finetune.weight_decay,
            warmup=wanted.finetune.warmup,
        ),
        metrics=prepared.metrics(),
    )
    callback = CheckpointCallback(work / _CHECKPOINTS, config_hash=wanted.key, **dataclasses.asdict(config.checkpoint))
    trainer = build_trainer(_trainer_options(wanted, config, device), run_dir=work, callbacks=[callback])
    fit(trainer, module, prepared.datamodule.labelled(), found)
    save_model(module.student.model.float(), prepared.tokenizer, work)  # also after a run in 64 bits


def _trainer_options(wanted: WantedTeacher, config: TrainConfig, device: torch.device) -> dict[str, Any]:
    return {
        "max_epochs": wanted.finetune.max_epochs,
        "max_steps": wanted.finetune.max_steps,
        "accelerator": config.trainer.accelerator,
        # One process, whatever the run has: a teacher is the same for all runs that would train it.
        "devices": [device.index] if device.type == "cuda" else 1,
        "precision": wanted.precision,
        "accumulate_grad_batches": wanted.accumulate_grad_batches,
        "gradient_clip_val": 1.0,
        "enable_progress_bar": config.trainer.enable_progress_bar,
        "log_every_n_steps": config.trainer.log_every_n_steps,
    }


def cached_scores(
    model: PooledModel,
    folder: Path,
    *,
    data_key: str,
    loaders: Mapping[str, DataLoader],
    metrics: Mapping[str, Metrics],
    device: torch.device,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Score a teacher that cap made on these validation rows, once per content of the rows.

    Args:
        model: The teacher.
        folder: Where it lies; its scores are kept there.
        data_key: Names the rows and metrics.
        loaders: Validation data by split; every row once, over all processes together.
        metrics: By the same splits.
        device: Where to run.
        ranks: The processes that share the rows.
    """
    path = folder / f"scores-{data_key}.json"
    # One process looks: another run may leave the file there between two looks.
    cached: dict[str, float] | None = read_json(path) if ranks.is_first and path.exists() else None
    cached = ranks.broadcast(cached)
    if cached is not None:
        return cached
    scores, _ = evaluate(model, loaders, metrics, device=device, description="teacher's score", ranks=ranks)
    if ranks.is_first:
        write_json(path, scores)
    return scores


def is_at_chance(score: float, majority: float, n_rows: int, *, is_correlation: bool = False) -> bool:
    """Tell whether a score could be that of a model that knows nothing.

    Args:
        score: The model's, as a fraction or correlation.
        majority: That of always predicting the majority class.
        n_rows: Validation rows.
        is_correlation: Whether the score is a correlation, which of two things that have nothing to do with each other
            has a standard deviation of 1 / sqrt(n_rows). A fraction has that of as many draws with the majority's
            probability: 0.05 at least, where nothing is right by rule and some by luck.

    Returns:
        True if the score is not two standard errors above the majority's; all right is no chance, however many that is.
    """
    if score <= majority or score >= 1:
        return score <= majority
    chance = max(majority, _LUCK)
    deviation = 1.0 if is_correlation else math.sqrt(chance * (1 - chance))
    return score <= majority + 2 * deviation / math.sqrt(n_rows)


def _at_chance(scores: dict[str, float], prepared: Prepared) -> bool:
    metric = prepared.task.monitored
    n_rows = len(prepared.rows.splits[prepared.task.validation_splits[0]])
    is_correlation = metric == "matthews" or metric in CORRELATIONS
    return is_at_chance(scores[metric], prepared.majority[metric], n_rows, is_correlation=is_correlation)


def chance_message(scores: dict[str, float], prepared: Prepared) -> str:
    """Put a score beside that of a model that learned nothing."""
    metric = prepared.task.monitored
    knowing_nothing = KINDS[prepared.task.kind].knowing_nothing
    return f"{metric} {scores[metric]:.4f}, {knowing_nothing} {prepared.majority[metric]:.4f}"


__all__ = [
    "Teacher",
    "WantedTeacher",
    "cached_scores",
    "chance_message",
    "get_teacher",
    "is_at_chance",
    "wanted_teacher",
]
