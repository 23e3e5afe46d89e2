"""The typed schema of conf/probe.yaml, its rules, and the check of the runs and tasks that it names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, DictConfig

from cap.base.errors import InputError
from cap.base.kinds import KINDS
from cap.config.schema import DataConfig
from cap.config.typed import typed
from cap.data.tasks import Task, get_task, known_kind


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
    config = typed(cfg, ProbeConfig, "probe")
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
    known = known_kind(name)
    kind = None if known is None else KINDS[known]
    if kind is not None and not kind.is_of_text:
        raise InputError(
            f"tasks must have classes or numbers as answers, got {name}, whose answers are {kind.answers}: "
            f"one encoding of the whole text cannot point into it; leave it out"
        )
    return get_task(name)


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


__all__ = ["ProbeConfig", "check_probe", "data_dir_of", "probed_task"]
