"""What several doors do first: resolve the model, load and tokenise the rows, get the teacher."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch import seed_everything
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cap.base.errors import InputError
from cap.base.files import content_key, ensure_writable
from cap.base.kinds import Kind, Metrics
from cap.base.memory import MemoryBudget
from cap.config.schema import Checked, TrainConfig
from cap.data.custom import task_of
from cap.data.datamodule import CapDataModule
from cap.data.sources import Rows, load_rows
from cap.data.tasks import Task
from cap.data.unlabelled import with_unlabelled
from cap.models.encoders import LoadedModel, load_model, model_key
from cap.models.families import PARTS, family_of, longest_input, parameters_of
from cap.models.pooled import PooledModel, Pooling
from cap.models.pooling import resolve_pooling
from cap.models.sources import ModelSource, load_config, load_tokenizer, resolve_source, tokenizer_key
from cap.training.evaluation import evaluate
from cap.training.module import Optimisation
from cap.training.parallel.ranks import ALONE, Ranks
from cap.training.teacher import (
    cached_scores,
    check_labels,
    check_size,
    check_tokenizer,
    fine_tune_once,
    is_at_chance,
)

log = logging.getLogger(__name__)

_KNOWING_NOTHING: dict[Kind, str] = {
    "classes": "always the majority class",
    "number": "always the mean",
    "span": "pointing to nothing",
}


@dataclass(frozen=True)
class Prepared:
    """Hold what a run starts from.

    Args:
        task: The row of the task table.
        rows: The rows, before tokenisation.
        source: Where the pre-trained model comes from.
        tokenizer: Of the pre-trained model.
        datamodule: The tokenised rows.
        pretrained: The pre-trained model with a fresh task head.
        majority: Scores of always predicting the majority class.
        budget: What tokens, banks and logits may hold in memory together.
        cache_dir: Root of what runs share.
        given_teacher: The teacher that was given; None for ``auto`` and ``none``.
    """

    task: Task
    rows: Rows
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    datamodule: CapDataModule
    pretrained: PooledModel
    majority: dict[str, float]
    budget: MemoryBudget
    cache_dir: Path
    given_teacher: PooledModel | None = None

    @property
    def pooling(self) -> Pooling:
        """How every model of this run is pooled."""
        return self.pretrained.pooling

    def metrics(self) -> dict[str, Metrics]:
        """Make fresh metrics for every validation split."""
        return self.datamodule.metrics()

    def n_rows(self) -> dict[str, int]:
        """Count the rows of every split, and those without a label if there are any."""
        counts = {split: len(rows) for split, rows in self.rows.splits.items()}
        unlabelled = self.rows.unlabelled
        return counts if unlabelled is None else counts | {"unlabelled": len(unlabelled.rows)}

    def new_student(self, seed: int) -> PooledModel:
        """Load the pre-trained model with a fresh task head, the same for the same seed."""
        seed_everything(seed, verbose=False)
        loaded = load_model(self.source, head=self.task.head)
        return PooledModel(loaded.model, self.pooling)


def prepare(checked: Checked) -> Prepared:
    """Resolve the model, then load and tokenise the rows; what can be checked without weights is checked first.

    Raises:
        InputError: If the model, a given teacher, the data or a folder is not what is required.
    """
    config = checked.config
    task = configured_task(config)
    cache_dir = Path(config.cache_dir)
    ensure_writable(cache_dir, "cache_dir")
    model = config.model
    source = resolve_source(model.name_or_path, package=model.package, sha256=model.sha256, revision=model.revision)
    model_config = load_config(source)
    family_of(model_config.model_type)
    longest = longest_input(model_config)
    if longest is not None and config.max_length > longest:
        raise InputError(
            f"max_length counts tokens and can be at most {longest} for this model, got {config.max_length}; lower it"
        )
    given = _given_source(config.teacher)
    given_model = None if given is None else _load_given(given, config, task, model_config)
    tokenizer = load_tokenizer(source)
    rows = rows_of(config, task)
    if given is not None:
        check_tokenizer(load_tokenizer(given), tokenizer, _first_texts(task, rows), name=given.label)
    budget = MemoryBudget(config.memory.budget_gb, n_processes=config.trainer.devices)
    datamodule = CapDataModule(
        rows=rows,
        task=task,
        tokenizer=tokenizer,
        tokenizer_key=tokenizer_key(tokenizer),
        max_length=config.max_length,
        budget=budget,
        stride=config.task.stride,
        batch_size=config.batch_size,
        eval_batch_size=config.data.eval_batch_size,
        seed=config.seed,
        cache_dir=cache_dir,
        num_workers=config.data.num_workers,
    )
    datamodule.setup()
    seed_everything(config.seed, verbose=False)
    loaded = load_model(source, head=task.head)
    _check_freeze(config, loaded)
    pooling = resolve_pooling(config.contrast.pool, source, has_trained_pooler=loaded.has_trained_pooler)
    log.info("encodings of %s are pooled by: %s (contrast.pool=%s)", source.label, pooling, config.contrast.pool)
    pretrained = PooledModel(loaded.model, pooling)
    teacher = None if given_model is None else PooledModel(given_model, pooling)
    majority = datamodule.majority()
    return Prepared(task, rows, source, tokenizer, datamodule, pretrained, majority, budget, cache_dir, teacher)


def configured_task(config: TrainConfig) -> Task:
    """Look up the task of a run.

    Raises:
        InputError: As ``task_of``.
    """
    data_dir = Path(config.data_dir) if config.data_dir is not None else None
    own = config.task.own()
    return task_of(config.task.name, data_dir, own, keep_unlabelled=config.data.keep_unlabelled)


def rows_of(config: TrainConfig, task: Task) -> Rows:
    """Load the rows of a run, those without a label among them.

    Raises:
        InputError: If they are not what the task requires.
    """
    keep_unlabelled = config.data.keep_unlabelled
    rows = load_rows(
        task,
        data_dir=Path(config.data_dir) if config.data_dir is not None else None,
        max_train_rows=config.data.max_train_rows,
        max_eval_rows=config.data.max_eval_rows,
        keep_unlabelled=keep_unlabelled,
    )
    return with_unlabelled(
        rows,
        task,
        file=Path(config.data.unlabelled) if config.data.unlabelled is not None else None,
        max_rows=config.data.max_unlabelled_rows,
        keep_unlabelled=keep_unlabelled,
    )


def _given_source(wanted: str) -> ModelSource | None:
    """Say where a teacher lies that was given; None if cap makes it, or there is none."""
    if wanted in ("auto", "none"):
        return None
    folder = Path(wanted)
    return ModelSource(wanted, f"folder {folder.name}" if folder.is_dir() else wanted, role="teacher")


def _load_given(source: ModelSource, settings: TrainConfig, task: Task, student: PretrainedConfig) -> PreTrainedModel:
    """Load a given teacher, once its configuration has shown that it fits."""
    config = load_config(source)
    check_size(
        config,
        student,
        is_encoded=settings.contrast.finetuned,
        is_start=settings.student_init == "teacher",
        is_compared=settings.distill.hidden_weight > 0,
        name=source.label,
    )
    check_labels(config, head=task.head, name=source.label)
    loaded = load_model(source, head=task.head)
    if loaded.drawn:
        raise InputError(
            f"teacher must be a model that was fine-tuned on the task, got {source.label} without "
            f"{', '.join(loaded.drawn[:3])}{', ...' if len(loaded.drawn) > 3 else ''}, so that its answers would be "
            f"random; give one with a trained head, or teacher=auto"
        )
    return loaded.model


def _first_texts(task: Task, rows: Rows) -> list[str]:
    """Return what a teacher's tokenizer is tried on: the first row as a whole, and some texts alone."""
    train = rows.splits["train"]
    texts = [" ".join(train[0][column] for column in task.text_columns)]
    return texts + [text for column in task.text_columns for text in train[:16][column]]


def _check_freeze(config: TrainConfig, loaded: LoadedModel) -> None:
    """Refuse to freeze what the model lacks, or what nobody has trained: it could never become of use."""
    freeze = config.freeze or []
    names = {part: set(parameters_of(loaded.model, [part])) for part in PARTS if part in freeze}
    absent = [part for part, found in names.items() if not found]
    if absent:
        raise InputError(
            f"freeze names parts that the model has, got {freeze} for a {type(loaded.model).__name__}, which has no "
            f"{' and no '.join(absent)}; leave that out"
        )
    # A pooler may come with the checkpoint as it was drawn there, with a bias of zeros.
    biases = {name for name in names.get("pooler", set()) if name.endswith("bias")}
    untrained = {*loaded.drawn, *(name for name in biases if not bool(loaded.model.get_parameter(name).any()))}
    drawn = [part for part, found in names.items() if found & untrained]
    if drawn and config.student_init == "pretrained":
        raise InputError(
            f"freeze={freeze} keeps weights that nobody has trained: the {' and the '.join(drawn)} of the checkpoint "
            f"is absent or untrained, and starts at random; set student_init=teacher, or leave that out"
        )


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
    source, model = _given_source(wanted), prepared.given_teacher
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


def _at_chance(scores: dict[str, float], prepared: Prepared) -> bool:
    metric = prepared.task.monitored
    n_rows = len(prepared.rows.splits[prepared.task.validation_splits[0]])
    return is_at_chance(scores[metric], prepared.majority[metric], n_rows)


def chance_message(scores: dict[str, float], prepared: Prepared) -> str:
    """Put a score beside that of a model that learned nothing."""
    metric = prepared.task.monitored
    return f"{metric} {scores[metric]:.4f}, {_KNOWING_NOTHING[prepared.task.kind]} {prepared.majority[metric]:.4f}"


__all__ = [
    "Prepared",
    "Teacher",
    "chance_message",
    "configured_task",
    "get_teacher",
    "prepare",
    "rows_of",
]
