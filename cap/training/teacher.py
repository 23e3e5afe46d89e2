"""The fine-tuned teacher: made once and kept, or given and checked."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from cap.base.errors import InputError
from cap.base.files import content_key, file_sha256, making, read_json, settle, write_json
from cap.base.kinds import Kind, Metrics
from cap.config.schema import Checked, TrainConfig
from cap.models.encoders import load_model, load_saved_model, model_key, save_model
from cap.models.pooled import PooledModel
from cap.models.sources import ModelSource
from cap.training.evaluation import evaluate
from cap.training.given_teacher import given_source
from cap.training.module import CapModule, Distill, Optimisation
from cap.training.parallel.ranks import ALONE, Ranks
from cap.training.parallel.shares import together
from cap.training.preparation import Prepared
from cap.training.resume.checkpoint import CheckpointCallback, newest_checkpoint
from cap.training.resume.curves import cut_curves
from cap.training.trainer import build_trainer, fit

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every cache key: raise it when the same settings come to train another teacher."""
_META = "teacher.json"
_WEIGHTS = "model.safetensors"
_CHECKPOINTS = "checkpoints"
_KNOWING_NOTHING: dict[Kind, str] = {
    "classes": "always the majority class",
    "number": "always the mean",
    "span": "pointing to nothing",
}


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
    folder: Path | None
    was_cached: bool
    is_at_chance: bool


def get_teacher(checked: Checked, prepared: Prepared, *, device: torch.device, ranks: Ranks = ALONE) -> Teacher | None:
    """Fine-tune, find or load the teacher that the configuration asks for.

    Args:
        checked: The configuration.
        prepared: Rows and the pre-trained model.
        device: Where to train and score it.
        ranks: The processes of the run: the first one trains, all of them score.

    Returns:
        The teacher; None for ``teacher=none``.

    Raises:
        InputError: If a given teacher has a score at chance level.
    """
    wanted = checked.config.teacher
    if wanted == "none":
        log.info("teacher=none: no distillation and no contrast with a fine-tuned model (loss/kd, loss/fic)")
        return None
    if wanted == "auto":
        return _own_teacher(checked.config, prepared, device, ranks)
    return _given_teacher(wanted, prepared, device, ranks)


def _own_teacher(config: TrainConfig, prepared: Prepared, device: torch.device, ranks: Ranks) -> Teacher:
    settings = dataclasses.asdict(config.finetune)
    options = {
        "max_epochs": config.finetune.max_epochs,
        "max_steps": config.finetune.max_steps,
        "accelerator": config.trainer.accelerator,
        # One process, whatever the run has: a teacher is the same for all runs that would train it.
        "devices": [device.index] if device.type == "cuda" else 1,
        "precision": config.trainer.precision,
        "gradient_clip_val": 1.0,
        "enable_progress_bar": config.trainer.enable_progress_bar,
        "log_every_n_steps": config.trainer.log_every_n_steps,
    }
    made = fine_tune_once(
        lambda: prepared.new_student(config.seed),
        content={
            # With its head: a checkpoint may bring one, and one that is drawn follows from the seed.
            "start": model_key(prepared.pretrained.model),
            "rows": prepared.datamodule.labelled_key,
            "labels": list(prepared.task.labels),
            "finetune": settings,
            "batch_size": config.batch_size,
            "precision": config.trainer.precision,
            "device": device.type,
            "seed": config.seed,
        },
        kind=prepared.task.kind,
        datamodule=prepared.datamodule.labelled(),
        metrics=prepared.metrics(),
        optimisation=Optimisation(
            learning_rate=config.finetune.learning_rate,
            weight_decay=config.finetune.weight_decay,
            warmup=config.finetune.warmup,
        ),
        trainer_options=options,
        tokenizer=prepared.tokenizer,
        cache_dir=prepared.cache_dir,
        every_n_minutes=config.checkpoint.every_n_minutes,
        every_n_steps=config.checkpoint.every_n_steps,
        ranks=ranks,
    )
    model = _load_teacher(ModelSource(str(made.folder), f"teacher {made.folder.name}"), prepared)
    scores = cached_scores(
        model,
        made.folder,
        data_key=content_key({"rows": prepared.rows.fingerprint, "metrics": prepared.task.metrics}),
        loaders=prepared.datamodule.eval_dataloaders(ranks.rank, ranks.size),
        metrics=prepared.metrics(),
        device=device,
        ranks=ranks,
    )
    at_chance = _at_chance(scores, prepared)
    if at_chance:
        log.warning("the teacher stayed at chance level: %s", chance_message(scores, prepared))
    return Teacher(model, scores, f"auto {made.folder.name}", made.folder, made.was_cached, at_chance)


def _given_teacher(wanted: str, prepared: Prepared, device: torch.device, ranks: Ranks) -> Teacher:
    source, model = given_source(wanted), prepared.given_teacher
    assert source is not None
    assert model is not None
    scores, _ = evaluate(
        model,
        prepared.datamodule.eval_dataloaders(ranks.rank, ranks.size),
        prepared.metrics(),
        device=device,
        description="teacher's score",
        ranks=ranks,
    )
    if _at_chance(scores, prepared):
        raise InputError(
            f"teacher must know the task, but {source.label} is at chance level: {chance_message(scores, prepared)}; "
            f"give one fine-tuned on this task, or teacher=auto"
        )
    return Teacher(model, scores, source.label, None, False, False)


def _load_teacher(source: ModelSource, prepared: Prepared) -> PooledModel:
    loaded = load_model(source, head=prepared.task.head)
    return PooledModel(loaded.model, prepared.pooling)


@dataclass(frozen=True)
class FineTuned:
    """Name a teacher that cap made.

    Args:
        folder: A Hugging Face folder.
        was_cached: True if it was found and not trained.
    """

    folder: Path
    was_cached: bool


def fine_tune_once(
    make_student: Callable[[], PooledModel],
    *,
    content: Mapping[str, Any],
    kind: Kind,
    datamodule: LightningDataModule,
    metrics: Mapping[str, Metrics],
    optimisation: Optimisation,
    trainer_options: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    cache_dir: Path,
    every_n_minutes: float | None = None,
    every_n_steps: int | None = None,
    ranks: Ranks = ALONE,
) -> FineTuned:
    """Fine-tune a teacher, or find the one that this very training would give.

    Args:
        make_student: Makes the pre-trained model with a fresh task head; called only if there is something to train.
        content: Everything that changes the result, as JSON; names the teacher in the cache.
        kind: What an answer of the task is.
        datamodule: Training and validation rows.
        metrics: Validation metrics by split.
        optimisation: Learning rate, decay, warm-up.
        trainer_options: Lightning's own trainer arguments.
        tokenizer: Saved beside the weights.
        cache_dir: Root of what runs share.
        every_n_minutes: Minutes between checkpoints of this training; None for never.
        every_n_steps: Optimizer steps between them; None for never.
        ranks: The processes of the run that needs it; the first one trains, so that a teacher is the same whatever
            their number.

    Raises:
        RunError: If it failed on the first process.
    """
    content = {"format": FORMAT, **content}
    key = content_key(content)
    folder = cache_dir / "teachers" / key

    def make() -> bool:
        with making(folder, "teacher"):
            if _is_whole(folder, kind):
                log.info("teacher: found in the cache, %s", folder)
                return True
            _fine_tune(
                make_student,
                folder,
                key=key,
                datamodule=datamodule,
                metrics=metrics,
                optimisation=optimisation,
                trainer_options=trainer_options,
                tokenizer=tokenizer,
                checkpoints={"every_n_minutes": every_n_minutes, "every_n_steps": every_n_steps},
                meta=dict(content),
            )
        return False

    was_cached = together(ranks, lambda: ranks.is_first and make(), what="fine-tuning the teacher")[0]
    return FineTuned(folder, was_cached=was_cached)


def _fine_tune(
    make_student: Callable[[], PooledModel],
    folder: Path,
    *,
    key: str,
    datamodule: LightningDataModule,
    metrics: Mapping[str, Metrics],
    optimisation: Optimisation,
    trainer_options: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    checkpoints: Mapping[str, Any],
    meta: Mapping[str, Any],
) -> None:
    # Its name says what is made there: whoever makes the same teacher next goes on where a killed process stopped.
    work = folder.parent / f".{key}.unfinished"
    found = newest_checkpoint(work / _CHECKPOINTS, config_hash=key)
    if found is None:
        shutil.rmtree(work, ignore_errors=True)
        log.info("teacher: fine-tuning, kept in %s for every run that would train the same", folder)
    else:
        cut_curves(work, found.n_rows)
        log.info("teacher: fine-tuning goes on after step %d", found.step)
    module = CapModule(
        make_student(),
        distill=Distill(weight=0.0, ce_weight=1.0, temperature=1.0),
        optimisation=optimisation,
        metrics=metrics,
    )
    callback = CheckpointCallback(work / _CHECKPOINTS, config_hash=key, **checkpoints)
    trainer = build_trainer(trainer_options, run_dir=work, callbacks=[callback])
    fit(trainer, module, datamodule, found)
    save_model(module.student.model, tokenizer, work)
    write_json(work / _META, {"content": dict(meta), "weights_sha256": file_sha256(work / _WEIGHTS)})
    if folder.exists():  # damaged, or it would have been used
        shutil.rmtree(folder)
    settle(work)
    work.rename(folder)
    shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)


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


def is_at_chance(score: float, majority: float, n_rows: int) -> bool:
    """Tell whether a score could be that of a model that knows nothing.

    Args:
        score: The model's, as a fraction or correlation.
        majority: That of always predicting the majority class.
        n_rows: Validation rows.

    Returns:
        True if the score is not two standard errors above the majority's.
    """
    spread = math.sqrt(max(majority * (1 - majority), 0.0) / n_rows) if 0 < majority < 1 else 1 / math.sqrt(n_rows)
    return score <= majority + 2 * spread


def _at_chance(scores: dict[str, float], prepared: Prepared) -> bool:
    metric = prepared.task.monitored
    n_rows = len(prepared.rows.splits[prepared.task.validation_splits[0]])
    return is_at_chance(scores[metric], prepared.majority[metric], n_rows)


def chance_message(scores: dict[str, float], prepared: Prepared) -> str:
    """Put a score beside that of a model that learned nothing."""
    metric = prepared.task.monitored
    return f"{metric} {scores[metric]:.4f}, {_KNOWING_NOTHING[prepared.task.kind]} {prepared.majority[metric]:.4f}"


def _is_whole(folder: Path, kind: Kind) -> bool:
    if not folder.exists():
        return False
    try:
        if file_sha256(folder / _WEIGHTS) == read_json(folder / _META)["weights_sha256"]:
            load_saved_model(folder, kind)
            return True
    except (OSError, ValueError, KeyError):
        pass
    log.warning("the cached teacher %s is damaged; it is trained again", folder.name)
    return False


__all__ = ["FineTuned", "Teacher", "cached_scores", "chance_message", "fine_tune_once", "get_teacher", "is_at_chance"]
