"""``python -m cap.evaluate``: score a saved model on a task's validation rows, and keep its answer to every row."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import PretrainedConfig

from cap.base.errors import InputError
from cap.base.files import content_key, ensure_writable, file_sha256, read_json
from cap.base.kinds import Head
from cap.config.evaluate import (
    EvaluateConfig,
    check_evaluate,
    require_head,
    saved_model,
)
from cap.data.custom import task_of
from cap.data.metrics import majority_scores, split_suffixes
from cap.data.scoring import scoring_rows
from cap.data.sources import Rows, load_rows
from cap.data.tasks import Task
from cap.formats.load import load
from cap.formats.onnx import ONNX_FILE, LogitsModel, OnnxModel, is_onnx_folder
from cap.launch.cli import door, typed_line
from cap.models.encoders import load_model, weights_key
from cap.models.families import FAMILIES, longest_input
from cap.models.outputs import output_order
from cap.models.pooled import PooledModel
from cap.models.sources import ModelSource, load_config, load_tokenizer, tokenizer_key
from cap.runs.environment import environment
from cap.runs.folder import RunFolder, hold, length_of_run
from cap.runs.predictions import Columns, answer_columns, class_columns, number_columns, write_predictions
from cap.runs.record import write_record
from cap.training.predict import Answers, predict
from cap.training.trainer import idle_trainer

log = logging.getLogger("cap.evaluate")  # as a command, __name__ is __main__

PREDICTIONS = "predictions.csv"


def evaluate(cfg: DictConfig) -> float:
    """Score a model, and write ``predictions.csv`` and ``record.json``.

    Args:
        cfg: The composed configuration.

    Returns:
        The score on the task's first metric.

    Raises:
        InputError: If something given cannot work.
    """
    config, model_dir = check_evaluate(cfg)
    device = idle_trainer(config.accelerator).strategy.root_device
    ensure_writable(Path(config.cache_dir), "cache_dir")
    data_dir = None if config.data_dir is None else Path(config.data_dir)
    # Nothing is trained here: training rows may lack labels, whether the model has learned from such rows or not.
    task = task_of(config.task.name, data_dir, config.task.own(), keep_unlabelled=True)
    seconds = _Seconds()
    with seconds.of("load"):
        source = saved_model(model_dir)
        model_config = load_config(source)
        require_head(model_config, head=task.head, name=source.label)
        order, notes = output_order(
            model_config,
            head=task.head,
            name=source.label,
            key="model_dir",
            hint="give one fine-tuned on this task, or set its task",
        )
        max_length = _length(config, source)
        _check_length(model_config, max_length)
        scored = load_scored(source, task.head)
    for note in notes:
        log.warning(note)
    with seconds.of("data"):
        limit = config.data.max_eval_rows
        rows = load_rows(task, data_dir=data_dir, max_train_rows=None, max_eval_rows=limit, keep_unlabelled=True)
        tokenizer = load_tokenizer(source)
        module = scoring_rows(
            task,
            rows,
            tokenizer,
            tokenizer_key=tokenizer_key(tokenizer),
            max_length=max_length,
            stride=config.task.stride,
            eval_batch_size=config.data.eval_batch_size,
            cache_dir=Path(config.cache_dir),
        )
    key = content_key([scored.weights, module.key, rows.fingerprint, task.labels, task.metrics, order])
    record = {"config_hash": key, "model": source.label, "weights": scored.weights, **_about(cfg, task, rows, notes)}
    record["config"]["max_length"] = max_length
    folder = Path(config.output_dir or Path("outputs") / "evaluate" / task.name / key)
    RunFolder.read(folder, key).require_free()
    lock = hold(folder)
    try:
        # From here on the folder holds a record that does not look complete.
        write_record(folder, record)
        with seconds.of("predict"):
            record["scores"]["model"], answers = predict(
                scored.model,
                module.eval_dataloaders(),
                module.metrics(),
                device=device,
                description=f"scoring {source.label}",
                order=order,
            )
        columns = {split: _columns(task, rows, split, answers[split]) for split in answers}
        write_predictions(folder / PREDICTIONS, columns)
        write_record(folder, {**record, "seconds": seconds.rounded(), "status": "completed"})
    finally:
        lock.release()
    Console().print(_table(record["scores"], source.label))
    log.info("record and predictions: %s", folder)
    return float(record["scores"]["model"][task.monitored])


class _Seconds:
    """Time the phases."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def of(self, phase: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._phases[phase] = time.perf_counter() - started

    def rounded(self) -> dict[str, float]:
        phases = {**self._phases, "total": time.perf_counter() - self._started}
        return {phase: round(value, 3) for phase, value in phases.items()}


@dataclass(frozen=True)
class Scored:
    """Hold a model that gives an output with logits for a batch, and the name of its weights."""

    model: nn.Module
    weights: str


def load_scored(source: ModelSource, head: Head) -> Scored:
    """Load a model that was trained to answer, whether saved by transformers or as an export of any format.

    Raises:
        InputError: If it cannot be loaded, or some of its weights, the head's say, are not in the checkpoint.
    """
    folder = Path(source.name_or_path)
    if source.is_folder and is_onnx_folder(folder):
        graph = folder / ONNX_FILE
        return Scored(LogitsModel(OnnxModel(graph)), file_sha256(graph)[:16])
    if _is_export(source):
        model = load(folder)
        return Scored(PooledModel(model, "first_token"), weights_key(model))
    loaded = load_model(source, head=head)
    drawn = loaded.drawn
    if drawn:
        raise InputError(
            f"model_dir must hold a model that was fine-tuned on the task, got {source.label} without "
            f"{', '.join(drawn[:3])}{', ...' if len(drawn) > 3 else ''}, so that its answers would be random; "
            f"fine-tune it first (python -m cap.finetune), or give another"
        )
    return Scored(PooledModel(loaded.model, "first_token"), weights_key(loaded.model))


def _is_export(source: ModelSource) -> bool:
    if not source.is_folder:
        return False
    folder = Path(source.name_or_path)
    return (folder / "encoder.safetensors").is_file() or "cap_layout" in read_json(folder / "config.json")


def _length(config: EvaluateConfig, source: ModelSource) -> int:
    """Say how many tokens of a row the model reads: what was asked for, else what its run used, else the task's."""
    if config.max_length is not None:
        return config.max_length
    of_run = length_of_run(Path(source.name_or_path).resolve()) if source.is_folder else None
    if of_run is not None and of_run != config.task.max_length:
        log.info("max_length=%d, as the run of this model had; set max_length to read rows otherwise", of_run)
    return config.task.max_length if of_run is None else of_run


def _check_length(config: PretrainedConfig, max_length: int) -> None:
    longest = longest_input(config) if config.model_type in FAMILIES else None
    if longest is not None and max_length > longest:
        raise InputError(
            f"max_length counts tokens and can be at most {longest} for this model, got {max_length}; lower it"
        )


def _majority(task: Task, rows: Rows) -> dict[str, float]:
    """Score the model that learned nothing; one that points to nothing scores 0."""
    scores: dict[str, float] = {}
    for split, suffix in split_suffixes(task).items():
        if task.kind == "span":
            scores |= {f"{metric}{suffix}": 0.0 for metric in task.metrics}
        else:
            scores |= majority_scores(task, _labels(task, rows, "train"), _labels(task, rows, split), suffix=suffix)
    return scores


def _labels(task: Task, rows: Rows, split: str) -> Tensor:
    dtype = torch.float32 if task.kind == "number" else torch.int64
    return torch.tensor(rows.splits[split]["label"][:], dtype=dtype)


def _columns(task: Task, rows: Rows, split: str, answers: Answers) -> Columns:
    if answers.logits is None:
        return answer_columns(answers.texts or {}, rows.splits[split]["answers"][:])
    labels = _labels(task, rows, split)
    if task.kind == "number":
        return number_columns(answers.logits[:, 0], labels)
    return class_columns(answers.logits, labels, task.labels)


def _about(cfg: DictConfig, task: Task, rows: Rows, notes: list[str]) -> dict[str, Any]:
    """Say for the record what is known before the model answers."""
    return {
        "kind": "evaluation",
        "status": "interrupted",
        "error": None,
        "command": typed_line("evaluate"),
        "config": OmegaConf.to_container(cfg, resolve=True),
        "environment": environment(),
        "data": {
            "source": rows.source,
            # Of the rows that are scored alone: others change nothing here.
            "fingerprint": content_key({split: rows.fingerprints[split] for split in task.validation_splits}),
            "n_rows": {split: len(rows.splits[split]) for split in task.validation_splits},
        },
        "metric": task.monitored,
        "scores": {"majority": _majority(task, rows), "model": None},
        "warnings": notes,
    }


def _table(scores: Mapping[str, Mapping[str, float]], name: str) -> Table:
    table = Table("metric", "majority class", name)
    for metric, score in scores["model"].items():
        table.add_row(metric, f"{scores['majority'][metric]:.4f}", f"{score:.4f}")
    return table


main = door(evaluate, config_name="evaluate", schema=EvaluateConfig)

if __name__ == "__main__":
    main()
