"""The typed schema of conf/evaluate.yaml, and its rules."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from omegaconf import MISSING, DictConfig

from cap.base.errors import InputError
from cap.config.schema import TaskConfig
from cap.config.typed import typed

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass
class EvaluateDataConfig:
    """Hold ``data.*``: of the rows that are scored."""

    split: str | None = MISSING
    max_eval_rows: int | None = MISSING
    eval_batch_size: int = MISSING


@dataclass
class EvaluateConfig:
    """Hold everything that ``python -m cap.evaluate`` takes; values live in conf/evaluate.yaml, types here."""

    task: TaskConfig = field(default_factory=TaskConfig)
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    model_dir: str | None = MISSING
    base: str | None = MISSING
    data_dir: str | None = MISSING
    max_length: int | None = MISSING
    accelerator: str = MISSING
    output_dir: str | None = MISSING
    cache_dir: str = MISSING
    traceback: bool = MISSING


def check_evaluate(cfg: DictConfig) -> tuple[EvaluateConfig, str]:
    """Apply every rule to a composed configuration, before anything is read.

    Returns:
        The typed values, and the model that is asked for.

    Raises:
        InputError: With one line for each rule that is broken.
    """
    config = typed(cfg, EvaluateConfig, "evaluate")
    problems = []
    if not config.model_dir:
        problems.append("model_dir must be a folder with a saved model, or a Hub name, got none; set it")
    at_least_one: dict[str, int | None] = {
        "max_length": config.max_length,
        "data.eval_batch_size": config.data.eval_batch_size,
        "data.max_eval_rows": config.data.max_eval_rows,
    }
    problems += [f"{k} must be at least 1, got {v}" for k, v in at_least_one.items() if v is not None and v < 1]
    problems += _problems_of_split(config.data.split)
    if problems or not config.model_dir:
        raise InputError("\n".join(problems))
    return config, config.model_dir


def _problems_of_split(split: str | None) -> list[str]:
    if split is None:
        return []
    if split == "train":
        return ["data.split names rows that were held out, got train; give those another name, test.csv say"]
    if not _NAME.fullmatch(split):
        return [
            f"data.split is a file's name in data_dir without its suffix, or a split, got {split!r}; test, say, for "
            f"test.csv"
        ]
    return []


__all__ = [
    "EvaluateConfig",
    "EvaluateDataConfig",
    "check_evaluate",
]
