"""The phases of ``python -m cap.evaluate``: load a model of any format, read the rows, answer them, write it down."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from transformers import PretrainedConfig

from cap.base.console import print_table
from cap.base.errors import InputError
from cap.base.files import content_key, ensure_lockable, real_folder
from cap.base.kinds import KINDS, Head
from cap.config.evaluate import EvaluateConfig
from cap.data.custom import task_of
from cap.data.datamodule import CapDataModule
from cap.data.majority import majority_of
from cap.data.own_files import Learned
from cap.data.sources import Rows, load_rows
from cap.data.tasks import Task, known_kind
from cap.formats.predicted import columns_of
from cap.formats.scored import Scored, load_scored, require_answers, saved_model
from cap.models.families import FAMILIES, longest_input
from cap.models.outputs import are_no_names, names_of_outputs, output_order
from cap.models.sources import ModelSource, load_config, load_tokenizer, tokenizer_key
from cap.runs.environment import environment
from cap.runs.folder import Reading, RunFolder, hold, reading_of_run
from cap.runs.predictions import write_predictions
from cap.runs.record import write_record
from cap.training.predict import predict
from cap.training.seconds import PhaseSeconds
from cap.training.trainer import idle_trainer

log = logging.getLogger("cap.evaluate")

PREDICTIONS = "predictions.csv"


@dataclass(frozen=True)
class Given:
    """Hold what the model that is scored says of itself."""

    source: ModelSource
    config: PretrainedConfig

    @property
    def learned(self) -> Learned:
        """What it answers."""
        labels, problem = names_of_outputs(self.config), getattr(self.config, "problem_type", None)
        return Learned(self.source.label, tuple(labels), problem, has_names=not are_no_names(labels))


@dataclass(frozen=True)
class Loaded:
    """Hold the model that is scored, and how rows are given to it.

    Args:
        source: Where it comes from.
        scored: The model itself.
        order: The model's output of every class of the task; None takes them as they are.
        max_length: Tokens of a row that it reads.
        stride: Tokens that neighbouring windows of one context share; None unless answers are spans.
        notes: What a reader of the scores must know.
    """

    source: ModelSource
    scored: Scored
    order: list[int] | None
    max_length: int
    stride: int | None
    notes: list[str]


@dataclass(frozen=True)
class Data:
    """Hold the rows, before and after they are tokenised."""

    rows: Rows
    module: CapDataModule


def device_of(config: EvaluateConfig) -> torch.device:
    """Say where the model runs.

    Raises:
        InputError: If there is no such accelerator.
    """
    return idle_trainer(config.accelerator).strategy.root_device


def given_model(model_dir: str) -> Given:
    """Look at the model.

    Raises:
        InputError: If there is none.
    """
    source = saved_model(model_dir)
    return Given(source, load_config(source))


def asked_task(config: EvaluateConfig, given: Given) -> Task:
    """Look up the task, once it is known that its rows can be kept.

    Raises:
        InputError: If there is no such task, the model cannot answer it, or ``cache_dir`` cannot be written.
    """
    ensure_lockable(Path(config.cache_dir), "cache_dir")
    kind = known_kind(config.task.name)
    if kind is not None:  # before any label is compared with those of a model that has none
        require_answers(given.config, head=Head(kind), name=given.source.label)
    return task_of(
        config.task.name,
        _data_dir(config),
        config.task.own(),
        # Nothing is trained here: training rows may lack labels, whether the model has learned from such rows or not.
        keep_unlabelled=True,
        scored=config.data.split,
        learned=given.learned,
    )


def load_asked(config: EvaluateConfig, given: Given, task: Task, *, typed: Sequence[str]) -> Loaded:
    """Load the model, once its configuration has shown that it fits the task.

    Args:
        config: Says how rows are read, where the model's run does not.
        given: The model.
        task: The task.
        typed: The arguments of the command, which say what of the configuration was asked for.

    Raises:
        InputError: If it cannot be loaded, or was not trained to answer this task.
    """
    source, model_config = given.source, given.config
    require_answers(model_config, head=task.head, name=source.label)
    order, notes = output_order(
        model_config,
        head=task.head,
        name=source.label,
        key="model_dir",
        hint="give one fine-tuned on this task, or set its task",
    )
    reading = reading_of_run(Path(source.name_or_path).resolve()) if source.is_folder else Reading()
    max_length = _length(config, reading)
    _check_length(model_config, max_length)
    scored = load_scored(source, task.head, base=config.base)
    for note in notes:
        log.warning(note)
    return Loaded(source, scored, order, max_length, _stride(config, task, reading, typed=typed), notes)


def read_rows(config: EvaluateConfig, task: Task, loaded: Loaded) -> Data:
    """Read the rows of the task, and tokenise those that are scored as the model reads them.

    Raises:
        InputError: If they are not what the task requires.
    """
    limit = config.data.max_eval_rows
    rows = load_rows(
        task,
        data_dir=_data_dir(config),
        max_train_rows=None,
        max_eval_rows=limit,
        keep_unlabelled=True,
        needs_training=False,
    )
    tokenizer = load_tokenizer(loaded.source)
    module = CapDataModule(
        rows=rows.without_training(),
        task=task,
        tokenizer=tokenizer,
        tokenizer_key=tokenizer_key(tokenizer),
        max_length=loaded.max_length,
        stride=loaded.stride,
        eval_batch_size=config.data.eval_batch_size,
        cache_dir=Path(config.cache_dir),
    )
    module.setup()
    module.require_embedded(load_config(loaded.source))
    return Data(rows, module)


def begin_record(task: Task, loaded: Loaded, data: Data, *, command: str, resolved: dict[str, Any]) -> dict[str, Any]:
    """Say what is known before the model answers.

    Args:
        task: The task.
        loaded: The model.
        data: The rows.
        command: What was typed.
        resolved: The configuration as plain containers.
    """
    scored, rows = loaded.scored, data.rows
    tokens = data.module.keys[task.validation_splits[0]]
    key = content_key([scored.weights, tokens, rows.fingerprint, task.labels, task.metrics, loaded.order])
    return {
        "config_hash": key,
        "model": loaded.source.label,
        "weights": scored.weights,
        "kind": "evaluation",
        "status": "interrupted",
        "error": None,
        "command": command,
        "config": {
            **resolved,
            "max_length": loaded.max_length,
            "task": resolved["task"] | ({} if loaded.stride is None else {"stride": loaded.stride}),
        },
        "environment": environment(),
        "data": {
            "source": rows.source,
            # Of the rows that are scored alone: others change nothing here.
            "fingerprint": content_key({split: rows.fingerprints[split] for split in task.validation_splits}),
            "n_rows": {split: len(rows.splits[split]) for split in task.validation_splits},
        },
        "metric": task.monitored,
        "scores": {"majority": majority_of(task, rows), "model": None},
        "warnings": [*loaded.notes, *_notes_of(task, rows)],
    }


def answer(
    config: EvaluateConfig,
    task: Task,
    loaded: Loaded,
    data: Data,
    record: dict[str, Any],
    *,
    device: torch.device,
    seconds: PhaseSeconds,
) -> Path:
    """Take the folder, let the model answer every row, and write down answers and scores.

    Args:
        config: Names the folder, if somebody wants a certain one.
        task: The task.
        loaded: The model.
        data: The rows.
        record: Made by ``begin_record``; gets the scores.
        device: Where the model runs.
        seconds: Of the phases so far.

    Returns:
        The folder.

    Raises:
        InputError: If it holds something else, or another process writes there.
    """
    key, rows = record["config_hash"], data.rows
    folder = real_folder(Path(config.output_dir or Path("outputs") / "evaluate" / task.name / key))
    RunFolder.read(folder, key).require_free()
    lock = hold(folder)
    try:
        # From here on the folder holds a record that does not look complete.
        write_record(folder, record)
        with seconds.phase("predict"):
            record["scores"]["model"], answers = predict(
                loaded.scored.model,
                data.module.eval_dataloaders(),
                data.module.metrics(),
                device=device,
                description=f"scoring {loaded.source.label}",
                order=loaded.order,
            )
        columns = {split: columns_of(task, rows.splits[split], found) for split, found in answers.items()}
        write_predictions(folder / PREDICTIONS, columns)
        seconds.end()
        write_record(folder, {**record, "seconds": seconds.by_phase(), "status": "completed"})
    finally:
        lock.release()
    return folder


def show(record: Mapping[str, Any], folder: Path) -> None:
    """Print the scores, and say where the rest is."""
    print_table(_table(record["scores"], record["model"]))
    log.info("record and predictions: %s", folder)


def _notes_of(task: Task, rows: Rows) -> list[str]:
    if "train" in rows.splits or not KINDS[task.kind].has_majority:
        return []
    note = "There are no training rows: labels are the model's, and scores.majority is counted from the scored rows."
    of_class = task.kind == "classes" and "f1" in task.metrics
    return [f"{note} f1 is that of {task.labels[1]}." if of_class else note]


def _data_dir(config: EvaluateConfig) -> Path | None:
    return None if config.data_dir is None else Path(config.data_dir)


def _length(config: EvaluateConfig, reading: Reading) -> int:
    """Say how many tokens of a row the model reads: what was asked for, else what its run used, else the task's."""
    if config.max_length is not None:
        return config.max_length
    if reading.max_length is None:
        return config.task.max_length
    if reading.max_length != config.task.max_length:
        log.info("max_length=%d, as the run of this model had; set max_length to read otherwise", reading.max_length)
    return reading.max_length


def _stride(config: EvaluateConfig, task: Task, reading: Reading, *, typed: Sequence[str]) -> int | None:
    """Say how many tokens windows of one context share: what was asked for, else what its run used, else the task's."""
    is_asked_for = any(argument.startswith("task.stride=") for argument in typed)
    if is_asked_for or task.kind != "span" or reading.stride is None:
        return config.task.stride
    return reading.stride


def _check_length(config: PretrainedConfig, max_length: int) -> None:
    longest = longest_input(config) if config.model_type in FAMILIES else None
    if longest is not None and max_length > longest:
        raise InputError(
            f"max_length counts tokens and can be at most {longest} for this model, got {max_length}; lower it"
        )


def _table(scores: Mapping[str, Mapping[str, float]], name: str) -> Table:
    table = Table("metric", "majority class", name)
    for metric, score in scores["model"].items():
        table.add_row(metric, f"{scores['majority'][metric]:.4f}", f"{score:.4f}")
    return table


__all__ = [
    "PREDICTIONS",
    "Data",
    "Given",
    "Loaded",
    "answer",
    "asked_task",
    "begin_record",
    "device_of",
    "given_model",
    "load_asked",
    "read_rows",
    "show",
]
