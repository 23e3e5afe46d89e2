"""The typed schema of conf/, and the rules across its keys. Only doors read it: rooms take plain arguments."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

from cap.base.errors import InputError
from cap.base.files import content_key
from cap.base.parts import PARTS
from cap.config.regularizer import weight_for
from cap.config.rules import (
    infinite_values,
    problems_of_freezes,
    problems_of_kept_levels,
    problems_of_parts,
    problems_of_snapshots,
    problems_of_steps,
    problems_of_trainer,
    problems_of_values,
    type_problems,
)
from cap.pruning.pruner import Pruner
from cap.pruning.schedule import SchedulePlan
from cap.runs.identity import what_counts

log = logging.getLogger(__name__)


@dataclass
class TaskConfig:
    """Hold ``task=``; what a task does not use is null."""

    name: str = MISSING
    max_length: int = 128
    stride: int | None = None
    text_columns: list[str] | None = None
    label_column: str | None = None
    label_type: str | None = None
    metrics: list[str] | None = None

    def own(self) -> dict[str, Any]:
        """Return what describes a user's own files."""
        return {key: getattr(self, key) for key in ("text_columns", "label_column", "label_type", "metrics")}


@dataclass
class ModelConfig:
    """Hold ``model=``: a Hub name or folder, or a Python package that carries one."""

    name_or_path: str | None = None
    package: str | None = None
    sha256: str | None = None
    revision: str | None = None


@dataclass
class ContrastConfig:
    """Hold ``contrast=``: three switches, then how the terms are computed and weighed."""

    pretrained: bool = MISSING
    snapshots: bool = MISSING
    finetuned: bool = MISSING
    snapshot_count: int = MISSING
    unsupervised_weight: float | None = MISSING
    supervised_weight: float | None = MISSING
    default_weights: Any = MISSING  # by reduction; a typed mapping of mappings cannot be merged into
    temperature: float = MISSING
    extra_examples: Any = MISSING
    pool: str = MISSING
    reduction: str = MISSING
    anchor_dropout: bool = MISSING
    ignore_same_label: bool = MISSING


@dataclass
class DistillConfig:
    """Hold ``distill=``."""

    weight: float = MISSING
    ce_weight: float = MISSING
    temperature: float = MISSING
    hidden_weight: float = MISSING
    hidden: str = MISSING
    snapshot_weight: float = MISSING


@dataclass
class FinetuneConfig:
    """Hold ``finetune.*``: how the teacher is trained."""

    max_epochs: int = MISSING
    max_steps: int = MISSING
    learning_rate: float = MISSING
    weight_decay: float = MISSING
    warmup: float = MISSING


@dataclass
class TrainerConfig:
    """Hold ``trainer.*``: Lightning's own names and meanings, for the pruning run."""

    max_epochs: int = MISSING
    max_steps: int = MISSING
    accelerator: str = MISSING
    devices: int = MISSING
    num_nodes: int = MISSING
    strategy: str = MISSING
    precision: str = MISSING
    accumulate_grad_batches: int = MISSING
    gradient_clip_val: float | None = MISSING
    val_check_interval: Any = MISSING
    check_val_every_n_epoch: int | None = MISSING
    limit_train_batches: Any = MISSING
    limit_val_batches: Any = MISSING
    log_every_n_steps: int = MISSING
    enable_progress_bar: bool = MISSING
    deterministic: Any = MISSING
    profiler: str | None = MISSING


@dataclass
class DataConfig:
    """Hold ``data.*``."""

    max_train_rows: int | None = MISSING
    max_eval_rows: int | None = MISSING
    eval_batch_size: int = MISSING
    num_workers: int = MISSING


@dataclass
class TrainDataConfig(DataConfig):
    """Hold ``data.*`` of a run that may learn from rows without a label, too."""

    unlabelled: str | None = MISSING
    keep_unlabelled: bool = MISSING
    max_unlabelled_rows: int | None = MISSING


@dataclass
class MemoryConfig:
    """Hold ``memory.*``."""

    budget_gb: float = MISSING


@dataclass
class CheckpointConfig:
    """Hold ``checkpoint.*``."""

    every_n_steps: int | None = MISSING
    every_n_minutes: float | None = MISSING


@dataclass
class TrainConfig:
    """Hold everything that ``python -m cap.train`` takes; values live in conf/, types here."""

    task: TaskConfig = field(default_factory=TaskConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    pruning: Any = MISSING
    schedule: Any = MISSING
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    data: TrainDataConfig = field(default_factory=TrainDataConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: Any = None
    data_dir: str | None = MISSING
    sparsity: float = MISSING
    teacher: str = MISSING
    student_init: str = MISSING
    freeze: list[str] | None = MISSING
    seed: int = MISSING
    batch_size: int = MISSING
    learning_rate: float = MISSING
    learning_rate_floor: float = MISSING
    learning_rate_start: float = MISSING
    weight_decay: float = MISSING
    max_length: int = MISSING
    output_dir: str | None = MISSING
    cache_dir: str = MISSING
    resume: bool = MISSING
    overwrite: bool = MISSING
    skip_completed: bool | None = MISSING
    keep_levels: list[float] | None = MISSING
    dry_run: bool = MISSING
    traceback: bool = MISSING


def contrast_weights(contrast: ContrastConfig) -> tuple[float, float]:
    """Return the weights of the unsupervised and the supervised terms; null is the default of the reduction."""
    defaults = contrast.default_weights[contrast.reduction]
    unsupervised, supervised = contrast.unsupervised_weight, contrast.supervised_weight
    return (
        defaults["unsupervised"] if unsupervised is None else unsupervised,
        defaults["supervised"] if supervised is None else supervised,
    )


def register() -> None:
    """Put the schema where conf/train.yaml finds it."""
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)


@dataclass(frozen=True)
class Checked:
    """Hold a configuration that has passed every rule, with the parts that conf/ chooses by class.

    Args:
        config: Typed values.
        resolved: The same as plain containers, for the record.
        pruner: The pruning type, not yet attached.
        pruning_name: Its name in ``pruning=``.
        every_n_steps: How often masks move.
        plan: The sparsity schedule in fractions of a run.
        notes: What a reader of the result must know of the configuration.
    """

    config: TrainConfig
    resolved: dict[str, Any]
    pruner: Pruner
    pruning_name: str
    every_n_steps: int
    plan: SchedulePlan
    notes: tuple[str, ...] = ()

    @property
    def n_processes(self) -> int:
        """Processes of the run, over all nodes."""
        return self.config.trainer.devices * self.config.trainer.num_nodes

    @property
    def hash(self) -> str:
        """Name the configuration by what changes the result."""
        return content_key(what_counts(self.resolved))


def check(cfg: DictConfig) -> Checked:
    """Apply every rule to a composed configuration, before anything is loaded.

    Returns:
        Typed values and the chosen parts.

    Raises:
        InputError: With one line for each rule that is broken.
    """
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, TrainConfig):
        raise TypeError(f"conf/train.yaml must start from the schema, got {type(config).__name__}")
    resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if not isinstance(resolved, dict):
        raise TypeError("the configuration must be a mapping")
    if config.student_init == "auto":
        config.student_init = resolved["student_init"] = "pretrained" if config.teacher == "none" else "teacher"
    problems = problems_of_values(config)
    pruning = dict(resolved["pruning"])
    # A type whose masks only move with the target has no every_n_steps.
    name, every_n_steps = str(pruning.pop("name")), pruning.pop("every_n_steps", 1)
    weights = pruning.pop("regularizer_weights", None)
    # What it gives is written down as freeze.
    freezes = resolved["pruning"].pop("freezes", None)
    pruning.pop("freezes", None)
    notes: list[str] = []
    parts: dict[str, Any] = {}
    # A bad sparsity is named once, not again by every part that is built from it.
    if not any(line.startswith("sparsity") for line in problems):
        if weights is not None and pruning.get("regularizer_weight") is None:
            try:
                weight, note = weight_for(weights, task=config.task.name, sparsity=config.sparsity)
            except ValueError as error:
                raise InputError("\n".join([*problems, str(error)])) from error
            pruning["regularizer_weight"] = weight
            notes += [] if note is None else [note]
        for key, node in (("pruning", pruning), ("schedule", resolved["schedule"])):
            wrong_types = type_problems(key, node)
            problems += wrong_types
            if not wrong_types:
                try:
                    parts[key] = instantiate(node, _convert_="all")
                except InstantiationException as error:
                    problems.append(str(error.__cause__ or error))
    if not isinstance(every_n_steps, int) or every_n_steps < 1:
        problems.append(f"pruning.every_n_steps must be a whole number of at least 1, got {every_n_steps!r}")
    problems += problems_of_freezes(freezes)
    if len(parts) == 2:
        problems += problems_of_parts(parts["pruning"], parts["schedule"], config.sparsity)
        problems += problems_of_snapshots(config.distill, parts["schedule"], config.contrast.snapshot_count)
        problems += problems_of_kept_levels(config.keep_levels, parts["pruning"], parts["schedule"], config.sparsity)
        problems += problems_of_steps(parts["schedule"], config.trainer)
    problems += problems_of_trainer(config.trainer)
    problems += [
        f"{key} must be a finite number, got {value}"
        for key, value in infinite_values(resolved).items()
        if not any(line.startswith(f"{key} ") for line in problems)
    ]
    if problems:
        raise InputError("\n".join(problems))
    n_epochs = parts["schedule"].n_epochs
    # The record and the hash say how long the run and its rows really are, what is frozen and what weighs how much.
    if n_epochs is not None and n_epochs != config.trainer.max_epochs:
        log.info(
            "the schedule takes %d epochs (schedule.epochs_per_level), not trainer.max_epochs=%d; "
            "schedule.epochs_per_level=null spreads its levels over those",
            n_epochs,
            config.trainer.max_epochs,
        )
        config.trainer.max_epochs = resolved["trainer"]["max_epochs"] = n_epochs
    unsupervised, supervised = contrast_weights(config.contrast)
    config.contrast.unsupervised_weight = resolved["contrast"]["unsupervised_weight"] = unsupervised
    config.contrast.supervised_weight = resolved["contrast"]["supervised_weight"] = supervised
    given = freezes if config.freeze is None else config.freeze
    config.freeze = resolved["freeze"] = [part for part in PARTS if part in given]
    config.task.max_length = resolved["task"]["max_length"] = config.max_length
    if weights is not None:
        resolved["pruning"] |= {"regularizer_weight": pruning["regularizer_weight"], "regularizer_weights": None}
    return Checked(
        config,
        {str(k): v for k, v in resolved.items()},
        parts["pruning"],
        name,
        every_n_steps,
        parts["schedule"],
        tuple(notes),
    )


__all__ = ["Checked", "TrainConfig", "check", "contrast_weights", "register"]
