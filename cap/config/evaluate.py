"""The typed schema of conf/evaluate.yaml, its rules, and the check of the model that it names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, DictConfig, OmegaConf
from transformers import PretrainedConfig

from cap.base.errors import InputError
from cap.base.kinds import Head, Kind
from cap.config.schema import TaskConfig
from cap.models.sources import ModelSource, resolve_source

_WANTED: dict[Kind, str] = {
    "classes": "ForSequenceClassification",
    "number": "ForSequenceClassification",
    "span": "ForQuestionAnswering",
}


@dataclass
class EvaluateDataConfig:
    """Hold ``data.*``: of the rows that are scored."""

    max_eval_rows: int | None = MISSING
    eval_batch_size: int = MISSING


@dataclass
class EvaluateConfig:
    """Hold everything that ``python -m cap.evaluate`` takes; values live in conf/evaluate.yaml, types here."""

    task: TaskConfig = field(default_factory=TaskConfig)
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    model_dir: str | None = MISSING
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
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, EvaluateConfig):
        raise TypeError(f"conf/evaluate.yaml must start from the schema, got {type(config).__name__}")
    problems = []
    if not config.model_dir:
        problems.append("model_dir must be a folder with a saved model, or a Hub name, got none; set it")
    at_least_one: dict[str, int | None] = {
        "max_length": config.max_length,
        "data.eval_batch_size": config.data.eval_batch_size,
        "data.max_eval_rows": config.data.max_eval_rows,
    }
    problems += [f"{k} must be at least 1, got {v}" for k, v in at_least_one.items() if v is not None and v < 1]
    if problems or not config.model_dir:
        raise InputError("\n".join(problems))
    return config, config.model_dir


def saved_model(model_dir: str) -> ModelSource:
    """Turn ``model_dir`` into a source.

    Raises:
        InputError: If it is a file, or a run's folder and not the model in it.
    """
    folder = Path(model_dir)
    required = "model_dir must be a folder with a saved model (config.json and weights), or a Hub name"
    if folder.is_file():
        raise InputError(f"{required}, got the file {folder}; give the folder it lies in")
    inside = folder / "model"
    if folder.is_dir() and not (folder / "config.json").is_file() and (inside / "config.json").is_file():
        raise InputError(f"{required}, got {folder}, which is the folder of a run; give model_dir={inside}")
    return resolve_source(model_dir, package=None, sha256=None, revision=None)


def require_head(config: PretrainedConfig, *, head: Head, name: str) -> None:
    """Refuse a model that was never trained to answer, or whose answers are of another kind.

    Args:
        config: The model's own.
        head: What the task asks of it.
        name: How to call the model.

    Raises:
        InputError: If its architecture is not that of such a model; where it names none, its weights must decide.
    """
    architectures, wanted = config.architectures or [], _WANTED[head.kind]
    if architectures and not any(architecture.endswith(wanted) for architecture in architectures):
        raise InputError(
            f"model_dir must hold a model that was fine-tuned on the task, with a head for it (...{wanted}), got "
            f"{name} with {', '.join(architectures)}; fine-tune it first (python -m cap.finetune), or give another"
        )


__all__ = [
    "EvaluateConfig",
    "EvaluateDataConfig",
    "check_evaluate",
    "require_head",
    "saved_model",
]
