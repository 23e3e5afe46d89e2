"""The fine-tuned teacher: made once and kept, or given and checked."""

from __future__ import annotations

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
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from cap.base.errors import InputError
from cap.base.files import content_key, file_sha256, making, read_json, settle, write_json
from cap.base.kinds import Head, Kind, Metrics
from cap.models.encoders import load_saved_model, save_model
from cap.models.pooled import PooledModel
from cap.training.evaluation import evaluate
from cap.training.module import CapModule, Distill, Optimisation
from cap.training.parallel.ranks import ALONE, Ranks
from cap.training.parallel.shares import together
from cap.training.resume.checkpoint import CheckpointCallback, newest_checkpoint
from cap.training.resume.curves import cut_curves
from cap.training.trainer import build_trainer, fit

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every cache key: raise it when the same settings come to train another teacher."""
_META = "teacher.json"
_WEIGHTS = "model.safetensors"
_CHECKPOINTS = "checkpoints"
# Rows whose tokens a given teacher's tokenizer must reproduce.
_PROBE_TEXTS = 16


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


def check_labels(config: PretrainedConfig, *, head: Head, name: str) -> None:
    """Refuse a given teacher whose outputs mean something else than the task's labels.

    Raises:
        InputError: If it has another number of outputs, other labels, or the same ones in another order; where answers
            are spans, if it is no question-answering model.
    """
    names = {int(index): str(label) for index, label in (config.id2label or {}).items()}
    n_found, labels = len(names), head.labels
    architectures = config.architectures or []
    # Every classifier of two classes has as many outputs as a span.
    if head.kind == "span" and not any(architecture.endswith("ForQuestionAnswering") for architecture in architectures):
        raise InputError(
            f"teacher must be a question-answering model for this task, got {name} with {list(architectures)} as its "
            f"architectures; give one fine-tuned on the task, or teacher=auto"
        )
    if n_found != head.n_outputs:
        raise InputError(
            f"teacher must have {head.n_outputs} output{'s' if head.n_outputs > 1 else ''} for this task, "
            f"got {name} with {n_found}; give one fine-tuned on the task, or teacher=auto"
        )
    found = [names[i] for i in range(n_found)]
    if not labels or found == [f"LABEL_{i}" for i in range(n_found)]:
        if labels:
            log.warning(
                "teacher %s does not name its labels; they are taken to be %s in this order", name, list(labels)
            )
        return
    if [label.lower() for label in found] == [label.lower() for label in labels]:
        return
    kind = "in this order" if sorted(map(str.lower, found)) == sorted(map(str.lower, labels)) else "these"
    raise InputError(
        f"teacher must have the labels {list(labels)}{' in this order' if kind == 'in this order' else ''}, "
        f"got {name} with {found}; give one fine-tuned on this task, or teacher=auto"
    )


def check_size(
    teacher: PretrainedConfig,
    student: PretrainedConfig,
    *,
    is_encoded: bool,
    is_start: bool,
    is_compared: bool,
    name: str,
) -> None:
    """Refuse a given teacher whose encodings, hidden states or weights cannot be set beside the student's.

    Args:
        teacher: Configuration of the teacher.
        student: Configuration of the pre-trained model.
        is_encoded: True if the student is contrasted with the teacher's encodings.
        is_start: True if the student starts from the teacher's weights, so that every dimension must agree.
        is_compared: True if the student's hidden states are compared with the teacher's, layer by layer.
        name: How to call the teacher.

    Raises:
        InputError: If the family differs, or the width or depth where they matter.
    """
    keys = ["model_type"]
    keys += ["hidden_size"] if is_encoded or is_compared else []
    keys += ["num_hidden_layers"] if is_start or is_compared else []
    keys += ["intermediate_size", "vocab_size"] if is_start else []
    found, wanted = ({key: getattr(config, key, None) for key in keys} for config in (teacher, student))
    if found != wanted:
        raise InputError(
            f"teacher must be like the model in {wanted}, got {name} with {found}; give one fine-tuned from the same "
            f"model, or teacher=auto; the width matters to contrast.finetuned, distill.hidden_weight and "
            f"student_init=teacher, the depth to the last two"
        )


def check_tokenizer(
    teacher: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase, texts: list[str], *, name: str
) -> None:
    """Refuse a given teacher that would read other tokens from the same text.

    Raises:
        InputError: If the first rows are tokenised differently.
    """
    for text in texts[:_PROBE_TEXTS]:
        if teacher(text)["input_ids"] != student(text)["input_ids"]:
            raise InputError(
                f"teacher and student must share a tokenizer, but {name} reads {text[:60]!r} differently; "
                f"give a teacher fine-tuned from the same pre-trained model, or teacher=auto"
            )


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


__all__ = [
    "FineTuned",
    "cached_scores",
    "check_labels",
    "check_size",
    "check_tokenizer",
    "fine_tune_once",
    "is_at_chance",
]
