"""The typed schema of conf/probe.yaml, its rules, and the check of the runs and tasks that it names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, DictConfig, OmegaConf

from cap.config import DataConfig
from cap.data.tasks import Task, get_task
from cap.errors import InputError
from cap.results.folder import MODEL, RECORD
from cap.storage import read_json


@dataclass
class ProbeConfig:
    """Hold everything that ``python -m cap.probe`` takes; values live in conf/probe.yaml, types here."""

    runs: list[str] = MISSING
    tasks: list[str] = MISSING
    data_root: str | None = MISSING
    data: DataConfig = field(default_factory=DataConfig)
    seeds: list[int] = MISSING
    epochs: int = MISSING
    batch_size: int = MISSING
    learning_rate: float = MISSING
    weight_decay: float = MISSING
    max_length: int = MISSING
    accelerator: str = MISSING
    output_dir: str | None = MISSING
    cache_dir: str = MISSING
    traceback: bool = MISSING


def check_probe(cfg: DictConfig) -> ProbeConfig:
    """Apply every rule to a composed configuration, before anything is read.

    Raises:
        InputError: With one line for each rule that is broken.
    """
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, ProbeConfig):
        raise TypeError(f"conf/probe.yaml must start from the schema, got {type(config).__name__}")
    problems = []
    for key, example in (
        ("runs", "runs=[outputs/A,outputs/B]"),
        ("tasks", "tasks=[mrpc,sst2]"),
        ("seeds", "seeds=[1]"),
    ):
        values = getattr(config, key)
        if not values:
            problems.append(f"{key} must name one at least, got none; give {example}, say")
        if len(set(values)) < len(values):
            problems.append(f"{key} must all be different, got {values}")
    if config.seeds and min(config.seeds) < 0:
        problems.append(f"seeds must be >= 0, got {config.seeds}")
    at_least_one: dict[str, int | None] = {
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "max_length": config.max_length,
        "data.eval_batch_size": config.data.eval_batch_size,
        "data.max_train_rows": config.data.max_train_rows,
        "data.max_eval_rows": config.data.max_eval_rows,
    }
    problems += [f"{k} must be at least 1, got {v}" for k, v in at_least_one.items() if v is not None and v < 1]
    if not 0 < config.learning_rate < math.inf:
        problems.append(f"learning_rate must be > 0, got {config.learning_rate}")
    not_negative = {"weight_decay": config.weight_decay, "data.num_workers": config.data.num_workers}
    problems += [f"{key} must be >= 0, got {value}" for key, value in not_negative.items() if not value >= 0]
    if problems:
        raise InputError("\n".join(problems))
    return config


@dataclass(frozen=True)
class FinishedRun:
    """Hold a run that is complete: its folder, a short name that no other run here has, its record."""

    folder: Path
    name: str
    record: Mapping[str, Any]


def read_runs(folders: list[Path]) -> list[FinishedRun]:
    """Read the records of finished runs.

    Raises:
        InputError: With one line for each folder that is not a finished run, or is given twice.
    """
    records, problems = [], []
    for folder in folders:
        try:
            records.append(_finished_record(folder))
        except InputError as error:
            problems.append(str(error))
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        problems.append(f"runs must all be different folders, got {', '.join(map(str, folders))}")
    if problems:
        raise InputError("\n".join(problems))
    # The default folder is called by a hash, which says nothing without what is above it.
    is_hash = [path.name == record["config_hash"] for path, record in zip(paths, records, strict=True)]
    n_parts = 2 if any(is_hash) else 1
    while len(set(names := ["/".join(path.parts[-n_parts:]) for path in paths])) < len(paths):
        n_parts += 1
    return [FinishedRun(*found) for found in zip(folders, names, records, strict=True)]


def _finished_record(folder: Path) -> Mapping[str, Any]:
    required = f"runs must be folders of finished runs, with {RECORD} and {MODEL}/, got {folder}"
    if not folder.is_dir():
        raise InputError(f"{required}, which is {'a file' if folder.exists() else 'not there'}; correct the path")
    try:
        record = read_json(folder / RECORD)
        status, command, _ = record["status"], record["command"], record["config_hash"]
    except FileNotFoundError as error:
        raise InputError(f"{required} without {RECORD}; give the folder that a run was written to") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{required}, whose {RECORD} cannot be read; run it again") from error
    if status != "completed":
        raise InputError(f"{required}, whose status is {status}; finish it first: {command}")
    if not (folder / MODEL).is_dir():
        raise InputError(f"{required} without {MODEL}/; run it again: {command}")
    return dict(record)


def probed_task(name: str) -> Task:
    """Look up a task whose answers one linear head can give.

    Raises:
        InputError: If there is no such task, or its answers are spans, or it is a user's own.
    """
    if name == "custom":
        raise InputError(
            "tasks must be names of the task table, got custom, which would need keys of its own; "
            "bring its files into the form of a task of the table, and give them with data_root"
        )
    task = get_task(name)
    if task.kind == "span":
        raise InputError(
            f"tasks must have classes or numbers as answers, got {name}, whose answers are spans: "
            f"one encoding of the whole text cannot point into it; leave it out"
        )
    return task


def data_dir_of(task: Task, data_root: str | None) -> Path | None:
    """Name the folder of a task's rows; None takes the Hub, or what is built offline.

    Raises:
        InputError: If ``data_root`` has no folder for it.
    """
    if data_root is None:
        return None
    folder = Path(data_root) / task.name
    if folder.is_dir():
        return folder
    if task.name == "docstrings":
        return None  # made of the running Python's own files
    raise InputError(
        f"data_root must hold one folder per task, but for task {task.name} there is no {folder}; "
        f"put train.* and {task.validation_splits[0]}.* there, leave the task out, or set data_root=null to use the Hub"
    )


__all__ = ["FinishedRun", "ProbeConfig", "check_probe", "data_dir_of", "probed_task", "read_runs"]
