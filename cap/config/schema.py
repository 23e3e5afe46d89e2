"""The typed schema of conf/train.yaml: which keys there are, and of what type. Values live in conf/."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


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

    held_out_rows: int | None = MISSING
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


def register() -> None:
    """Put the schema where conf/train.yaml finds it."""
    ConfigStore.instance().store(name="train_schema", node=TrainConfig)


__all__ = [
    "CheckpointConfig",
    "ContrastConfig",
    "DataConfig",
    "DistillConfig",
    "FinetuneConfig",
    "MemoryConfig",
    "ModelConfig",
    "TaskConfig",
    "TrainConfig",
    "TrainDataConfig",
    "TrainerConfig",
    "register",
]
