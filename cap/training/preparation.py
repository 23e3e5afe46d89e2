"""What several doors do first: resolve the model, load a given teacher, load and tokenise the rows."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cap.base.errors import InputError
from cap.base.files import ensure_lockable
from cap.base.kinds import KINDS, Metrics
from cap.base.memory_budget import MemoryBudget
from cap.base.parts import PARTS
from cap.config.check import Checked
from cap.config.schema import TrainConfig
from cap.data.custom import task_of
from cap.data.datamodule import CapDataModule
from cap.data.held_out import scored_on_held_out
from cap.data.notes import notes_on_rows
from cap.data.sources import Rows, load_rows
from cap.data.tasks import Task
from cap.data.unlabelled import with_unlabelled
from cap.data.words import space_between
from cap.models.encoders import LoadedModel, load_in_order, require_head, save_model
from cap.models.families import family_of, longest_input, parameters_of
from cap.models.pooled import PooledModel, Pooling
from cap.models.pooling import resolve_encoding, resolve_pooling
from cap.models.sentence_files import write_sentence_files
from cap.models.sources import (
    ModelSource,
    load_config,
    load_tokenizer,
    require_numbers_of_their_own,
    resolve_source,
    tokenizer_key,
)
from cap.runs.asking import described
from cap.training.given_teacher import GivenTeacher, load_given
from cap.training.trainer import takes_gpus

log = logging.getLogger(__name__)


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
        max_length: Tokens of an example that models read.
        majority: Scores of always predicting the majority class.
        budget: What tokens, banks and logits may hold in memory together.
        cache_dir: Root of what runs share.
        given_teacher: The teacher that was given; None for ``auto`` and ``none``.
        notes: What stands out in the rows, for the record.
    """

    task: Task
    rows: Rows
    source: ModelSource
    tokenizer: PreTrainedTokenizerBase
    datamodule: CapDataModule
    pretrained: PooledModel
    max_length: int
    majority: dict[str, float]
    budget: MemoryBudget
    cache_dir: Path
    given_teacher: GivenTeacher | None = None
    notes: tuple[str, ...] = ()

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

    @property
    def is_of_encodings(self) -> bool:
        """Whether the run learns to encode texts as the pre-trained model does, which then is the teacher itself."""
        return not KINDS[self.task.kind].learns_from_labels

    @property
    def asks(self) -> dict[str, Any]:
        """What lines that ask a model of this run want to know of its task."""
        return asks_of(self.task, self.tokenizer)

    def save(self, model: PreTrainedModel, folder: Path) -> None:
        """Write a model of this run as stock transformers loads it, one that encodes as sentence-transformers does."""
        save_model(model, self.tokenizer, folder)
        if self.is_of_encodings:
            dim = int(model.config.hidden_size)
            write_sentence_files(folder, pooling=self.pooling, dim=dim, max_length=self.max_length)

    def new_student(self, seed: int) -> PooledModel:
        """Load the pre-trained model with a fresh task head, the same for the same seed."""
        seed_everything(seed, verbose=False)
        loaded, _ = load_in_order(self.source, head=self.task.head)
        return PooledModel(loaded.model, self.pooling)


def prepare(checked: Checked) -> Prepared:
    """Resolve the model, then load and tokenise the rows; what can be checked without weights is checked first.

    Raises:
        InputError: If the model, a given teacher, the data or a folder is not what is required.
    """
    config = checked.config
    task = configured_task(config)
    cache_dir = Path(config.cache_dir)
    ensure_lockable(cache_dir, "cache_dir")
    model = config.model
    source = resolve_source(model.name_or_path, package=model.package, sha256=model.sha256, revision=model.revision)
    model_config = load_config(source)
    family_of(model_config.model_type)
    require_head(model_config.model_type, task.kind)
    longest = longest_input(model_config)
    if longest is not None and config.max_length > longest:
        raise InputError(
            f"max_length counts tokens and can be at most {longest} for this model, got {config.max_length}; lower it"
        )
    given = load_given(config, task, model_config)
    tokenizer = load_tokenizer(source)
    require_numbers_of_their_own(tokenizer, source.label)
    rows = rows_of(config, task)
    if given is not None:
        given.check_tokenizer(tokenizer, task, rows)
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
        pin_memory=takes_gpus(config.trainer.accelerator),
    )
    datamodule.setup()
    datamodule.require_embedded(model_config)
    notes = notes_on_rows(task, rows, datamodule.n_full(), max_length=config.max_length)
    if rows.has_held_out:
        notes += _notes_on_held_out(rows, task, is_given=given is not None)
    seed_everything(config.seed, verbose=False)
    loaded, of_head = load_in_order(source, head=task.head)
    notes += of_head
    _check_freeze(config, loaded)
    pooling = _pooling(config, task, source, loaded)
    log.info("encodings of %s are pooled by: %s (contrast.pool=%s)", source.label, pooling, config.contrast.pool)
    pretrained = PooledModel(loaded.model, pooling)
    majority = datamodule.majority()
    return Prepared(
        task=task,
        rows=rows,
        source=source,
        tokenizer=tokenizer,
        datamodule=datamodule,
        pretrained=pretrained,
        max_length=config.max_length,
        majority=majority,
        budget=budget,
        cache_dir=cache_dir,
        given_teacher=given,
        notes=tuple(notes),
    )


def _notes_on_held_out(rows: Rows, task: Task, *, is_given: bool) -> list[str]:
    n_rows = len(rows.splits[task.validation_splits[0]])
    said = [
        f"Scores are of {n_rows:,} training rows that were held out (data.held_out_rows), to choose settings by; none "
        f"is of the validation rows."
    ]
    if is_given:
        said.append("The teacher was given: if it has learned the rows that are held out here, scores are too high.")
    return said


def _pooling(config: TrainConfig, task: Task, source: ModelSource, loaded: LoadedModel) -> Pooling:
    pool = config.contrast.pool
    if not KINDS[task.kind].learns_from_labels:
        return resolve_encoding(pool, source)
    return resolve_pooling(pool, source, has_trained_pooler=loaded.has_trained_pooler)


def asks_of(task: Task, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Say what lines that ask a model want to know of its task."""
    between = space_between(tokenizer) if task.kind == "tags" else ""
    return described(task.kind, task.text_columns, between=between)


def configured_task(config: TrainConfig) -> Task:
    """Look up the task of a run.

    Raises:
        InputError: As ``task_of`` and ``scored_on_held_out``.
    """
    data_dir = Path(config.data_dir) if config.data_dir is not None else None
    own = config.task.own()
    task = task_of(config.task.name, data_dir, own, keep_unlabelled=config.data.keep_unlabelled)
    return task if config.data.held_out_rows is None else scored_on_held_out(task)


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
        held_out_rows=config.data.held_out_rows,
    )
    return with_unlabelled(
        rows,
        task,
        file=Path(config.data.unlabelled) if config.data.unlabelled is not None else None,
        max_rows=config.data.max_unlabelled_rows,
        keep_unlabelled=keep_unlabelled,
    )


def _check_freeze(config: TrainConfig, loaded: LoadedModel) -> None:
    """Refuse to freeze a part that the model lacks, or one that is untrained."""
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
            f"freeze={freeze} keeps untrained weights: the {' and the '.join(drawn)} of the checkpoint "
            f"is absent or untrained, and starts at random; set student_init=teacher, or leave that out"
        )


__all__ = ["Prepared", "asks_of", "configured_task", "prepare", "rows_of"]
