"""The typed schema of conf/, and the rules across its keys. Only doors read it: rooms take plain arguments."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from omegaconf import MISSING, DictConfig, OmegaConf

from cap.errors import InputError
from cap.pruning.pruner import Pruner
from cap.pruning.schedule import OneShot, SchedulePlan
from cap.pruning.weights import WeightPruner
from cap.results.runs import what_counts
from cap.storage import content_key

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
    unsupervised_weight: float = MISSING
    supervised_weight: float = MISSING
    temperature: float = MISSING
    extra_examples: int = MISSING
    pool: str = MISSING
    reduction: str = MISSING
    anchor_dropout: bool = MISSING


@dataclass
class DistillConfig:
    """Hold ``distill=``."""

    weight: float = MISSING
    ce_weight: float = MISSING
    temperature: float = MISSING


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
    data: DataConfig = field(default_factory=DataConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: Any = None
    data_dir: str | None = MISSING
    sparsity: float = MISSING
    teacher: str = MISSING
    student_init: str = MISSING
    seed: int = MISSING
    batch_size: int = MISSING
    learning_rate: float = MISSING
    weight_decay: float = MISSING
    max_length: int = MISSING
    output_dir: str | None = MISSING
    cache_dir: str = MISSING
    traceback: bool = MISSING


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
    """

    config: TrainConfig
    resolved: dict[str, Any]
    pruner: Pruner
    pruning_name: str
    every_n_steps: int
    plan: SchedulePlan

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
    problems = _problems(config)
    pruning = dict(resolved["pruning"])
    # A type whose masks only move with the target has no every_n_steps.
    name, every_n_steps = str(pruning.pop("name")), pruning.pop("every_n_steps", 1)
    parts: dict[str, Any] = {}
    # A bad sparsity is named once, not again by every part that is built from it.
    if not any(line.startswith("sparsity") for line in problems):
        for key, node in (("pruning", pruning), ("schedule", resolved["schedule"])):
            wrong_types = _type_problems(key, node)
            problems += wrong_types
            if not wrong_types:
                try:
                    parts[key] = instantiate(node, _convert_="all")
                except InstantiationException as error:
                    problems.append(str(error.__cause__ or error))
    if not isinstance(every_n_steps, int) or every_n_steps < 1:
        problems.append(f"pruning.every_n_steps must be a whole number of at least 1, got {every_n_steps!r}")
    if len(parts) == 2:
        problems += _problems_of_parts(parts["pruning"], parts["schedule"], config.sparsity)
    problems += _problems_of_trainer(config.trainer)
    if problems:
        raise InputError("\n".join(problems))
    n_epochs = parts["schedule"].n_epochs
    # The record and the hash say how long the run and its rows really are.
    if n_epochs is not None and n_epochs != config.trainer.max_epochs:
        log.info(
            "the schedule takes %d epochs (schedule.epochs_per_level), not trainer.max_epochs=%d; "
            "schedule.epochs_per_level=null spreads its levels over those",
            n_epochs,
            config.trainer.max_epochs,
        )
        config.trainer.max_epochs = resolved["trainer"]["max_epochs"] = n_epochs
    config.task.max_length = resolved["task"]["max_length"] = config.max_length
    return Checked(
        config, {str(k): v for k, v in resolved.items()}, parts["pruning"], name, every_n_steps, parts["schedule"]
    )


def _type_problems(key: str, node: dict[str, Any]) -> list[str]:
    """Compare the values of a node that conf/ chooses by class with that class's own annotations.

    A whole number where a number is wanted is one: it is made a float in place.
    """
    target: Any = get_class(node["_target_"])
    hints = get_type_hints(target.__init__)
    problems = []
    for name, value in node.items():
        if name != "_target_" and name not in hints:
            problems.append(
                f"{key}.{name} does not belong to {key}={target.__name__.lower()}, which takes "
                f"{', '.join(known for known in hints if known != 'return') or 'nothing'}; leave it out, "
                f"or choose another recipe if experiment= has set it"
            )
        wanted = hints.get(name)
        if isinstance(wanted, UnionType):
            options = [option for option in get_args(wanted) if option is not NoneType]
            if value is None:
                continue
            if any(get_origin(option) is list for option in options):
                if not isinstance(value, list) or not all(type(entry) in (int, float) for entry in value):
                    problems.append(f"{key}.{name} must be a list of numbers, like [0.5,0.9], got {value!r}")
                continue
            wanted = options[0]
        if wanted in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, wanted))):
            problems.append(f"{key}.{name} must be {'a whole number' if wanted is int else 'a number'}, got {value!r}")
        elif wanted is float:
            node[name] = float(value)
        elif get_origin(wanted) is Literal and value not in get_args(wanted):
            problems.append(f"{key}.{name} must be one of {', '.join(get_args(wanted))}, got {value!r}")
    return problems


def _problems(config: TrainConfig) -> list[str]:
    c = config
    problems = []
    if not 0 <= c.sparsity < 1:
        hint = f"; did you mean {c.sparsity / 100:g}?" if 1 < c.sparsity < 100 else ""
        problems.append(f"sparsity is the fraction of weights pruned and lies in [0, 1), got {c.sparsity}{hint}")
    positive = {
        "batch_size": c.batch_size,
        "learning_rate": c.learning_rate,
        "max_length": c.max_length,
        "finetune.learning_rate": c.finetune.learning_rate,
        "contrast.temperature": c.contrast.temperature,
        "distill.temperature": c.distill.temperature,
        "data.eval_batch_size": c.data.eval_batch_size,
        "trainer.accumulate_grad_batches": c.trainer.accumulate_grad_batches,
    }
    problems += [f"{key} must be > 0, got {value}" for key, value in positive.items() if not value > 0]
    not_negative = {
        "seed": c.seed,
        "weight_decay": c.weight_decay,
        "finetune.weight_decay": c.finetune.weight_decay,
        "contrast.unsupervised_weight": c.contrast.unsupervised_weight,
        "contrast.supervised_weight": c.contrast.supervised_weight,
        "contrast.extra_examples": c.contrast.extra_examples,
        "contrast.snapshot_count": c.contrast.snapshot_count,
        "distill.weight": c.distill.weight,
        "distill.ce_weight": c.distill.ce_weight,
        "memory.budget_gb": c.memory.budget_gb,
        "data.num_workers": c.data.num_workers,
    }
    problems += [f"{key} must be >= 0, got {value}" for key, value in not_negative.items() if not value >= 0]
    optional = {
        "data.max_train_rows": c.data.max_train_rows,
        "data.max_eval_rows": c.data.max_eval_rows,
        "checkpoint.every_n_steps": c.checkpoint.every_n_steps,
        "checkpoint.every_n_minutes": c.checkpoint.every_n_minutes,
    }
    problems += [f"{k} must be > 0 or null, got {v}" for k, v in optional.items() if v is not None and not v > 0]
    choices = {
        "contrast.pool": (c.contrast.pool, ("cls", "mean")),
        "contrast.reduction": (c.contrast.reduction, ("pairs", "anchors")),
        "student_init": (c.student_init, ("pretrained", "teacher")),
    }
    problems += [
        f"{key} must be one of {', '.join(known)}, got {value!r}"
        for key, (value, known) in choices.items()
        if value not in known
    ]
    return problems + _problems_of_length(c) + _problems_of_objective(c)


def _problems_of_length(c: TrainConfig) -> list[str]:
    problems = []
    for name, node in (("trainer", c.trainer), ("finetune", c.finetune)):
        for key in ("max_epochs", "max_steps"):
            value = getattr(node, key)
            if value == 0 or value < -1:
                problems.append(f"{name}.{key} must be > 0, or -1 to leave the length to the other one, got {value}")
        if node.max_epochs == -1 and node.max_steps == -1:
            problems.append(f"{name}.max_epochs or {name}.max_steps must end the run, but both are -1")
    if not 0 <= c.finetune.warmup < 1:
        problems.append(f"finetune.warmup is a fraction of the run and lies in [0, 1), got {c.finetune.warmup}")
    if c.trainer.devices != 1:
        problems.append(
            f"trainer.devices must be 1, got {c.trainer.devices}: one run uses one device; "
            f"start several runs for several devices"
        )
    return problems


def _problems_of_trainer(trainer: TrainerConfig) -> list[str]:
    options = asdict(trainer)
    if trainer.devices != 1 or "max_epochs" not in options or {trainer.max_epochs, trainer.max_steps} & {0}:
        return []  # said already
    problems = []
    for key in ("limit_train_batches", "gradient_clip_val"):
        value = options[key]
        if value is not None and not value > 0:
            problems.append(f"trainer.{key} must be > 0, got {value}")
    try:
        # Lightning knows its own names best: precision, accelerator, strategy, intervals.
        Trainer(**options, logger=False, enable_checkpointing=False, enable_model_summary=False)
    except (ValueError, TypeError, MisconfigurationException) as error:
        problems.append(f"trainer.* must be what Lightning's Trainer takes: {error}")
    return problems


def _problems_of_objective(c: TrainConfig) -> list[str]:
    if c.distill.weight + c.distill.ce_weight == 0:
        return ["distill.weight and distill.ce_weight must not both be 0: the task head would learn from nothing"]
    if c.teacher == "none" and c.distill.ce_weight == 0:
        return ["teacher=none leaves only the labels to learn from, so distill.ce_weight must be > 0, got 0"]
    if c.teacher == "none" and c.student_init == "teacher":
        return ["student_init=teacher needs a teacher, got teacher=none"]
    return []


def _problems_of_parts(pruner: Pruner, plan: SchedulePlan, sparsity: float) -> list[str]:
    if not pruner.moves_within_levels and plan.level_starts(1) is None:
        return [
            f"this pruning type prunes at levels with retraining in between: schedule must be stepwise or oneshot, "
            f"got {type(plan).__name__.lower()}; set schedule=stepwise, or choose another pruning type"
        ]
    if pruner.learns_scores and isinstance(plan, OneShot) and plan.flat_before == 0:
        return [
            "schedule=oneshot with scores that are learned needs schedule.flat_before > 0, got 0: "
            "before the first step all scores are equal; set 0.2, say, or use pruning=magnitude"
        ]
    pattern = pruner.pattern if isinstance(pruner, WeightPruner) else None
    if pattern is not None and sparsity != pattern.sparsity:
        return [
            f"pruning.pattern={pattern} prunes {pattern.size - pattern.n_kept} of every {pattern.size} weights, so "
            f"sparsity must be {pattern.sparsity:g}, got {sparsity}; set sparsity={pattern.sparsity:g}, or "
            f"pruning.pattern=null"
        ]
    return []


__all__ = ["Checked", "TrainConfig", "check", "register"]
