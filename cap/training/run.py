"""Build the Lightning trainer of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cap.errors import InputError
from cap.storage import atomic_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its target and rename it, so that a reader never meets half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint."""
        with atomic_file(Path(path)) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)


def build_trainer(
    options: Mapping[str, Any],
    *,
    run_dir: Path,
    callbacks: Sequence[Callback],
    loggers: Sequence[Logger] = (),
) -> Trainer:
    """Make a trainer that writes into a run's folder only.

    Args:
        options: Lightning's own trainer arguments by name.
        run_dir: The run's folder; curves go to ``logs/metrics.csv`` in it.
        callbacks: In the order in which they act.
        loggers: Beside the csv logger, which is always there.
    """
    bar = [RichProgressBar(leave=False)] if options.get("enable_progress_bar", True) else []
    csv = CSVLogger(save_dir=run_dir, name="logs", version="", flush_logs_every_n_steps=50)
    return Trainer(
        **options,
        callbacks=[*callbacks, *bar],
        logger=[csv, *loggers],
        default_root_dir=run_dir,
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,  # CheckpointCallback writes what a run needs, and nothing else
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module has its own
    )


def idle_trainer(accelerator: str) -> Trainer:
    """Make a trainer that only says where and how models run.

    Raises:
        InputError: If Lightning has no such accelerator, or this machine has none.
    """
    try:
        return Trainer(accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False)
    except (ValueError, MisconfigurationException) as error:
        raise InputError(f"accelerator must be what Lightning's Trainer takes: {error}") from error


__all__ = ["AtomicCheckpointIO", "build_trainer", "idle_trainer"]
