"""Build the Lightning trainer of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cap.base.errors import InputError, RunError, StoppedError
from cap.base.files import atomic_file
from cap.base.strategies import ON_GPUS
from cap.runs.checkpoints import Checkpoint
from cap.training.parallel.ranks import ranks_of
from cap.training.resume.curves import CurvesLogger
from cap.training.resume.stop import stop


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its target and rename it, so that a reader never meets half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the checkpoint.

        Raises:
            RunError: If it cannot be written; nothing of it is left.
        """
        path = Path(path)
        try:
            # Through Python's own file: torch's writer would not say why it failed.
            with atomic_file(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            # PyTorch stumbles over what is missing from the file before the reason gets through.
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise RunError(
                f"a checkpoint must be written to {path.parent}, but: {cause.strerror}. The one before it is as it "
                f"was: make room, then repeat the command with resume=true"
            ) from error


def build_trainer(
    options: Mapping[str, Any],
    *,
    run_dir: Path,
    callbacks: Sequence[Callback] = (),
) -> Trainer:
    """Make a trainer that writes into a run's folder only.

    Args:
        options: Lightning's own trainer arguments by name.
        run_dir: The run's folder; curves go to ``logs/metrics.csv`` in it.
        callbacks: In the order in which they act.
    """
    bar = [RichProgressBar(leave=False)] if options.get("enable_progress_bar", True) else []
    environments = environment(options.get("devices", 1), options.get("num_nodes", 1))
    for one in environments:
        if isinstance(one, LightningEnvironment):
            # Such a task is the first of its run. Lightning took SLURM's number for its rank when it was imported, and
            # loggers would write nothing.
            one.set_global_rank(0)
    return Trainer(
        **options,
        callbacks=[*callbacks, *bar],
        logger=[CurvesLogger(run_dir)],
        default_root_dir=run_dir,
        plugins=[AtomicCheckpointIO(), *environments],
        enable_checkpointing=False,  # CheckpointCallback writes what a run needs, and nothing else
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module has its own
    )


def environment(devices: int | str | Sequence[int] = 1, n_nodes: int = 1) -> list[Any]:
    """Name the environment where Lightning's choice would do more than is wanted.

    Args:
        devices: As Lightning's trainer takes them.
        n_nodes: The machines of a run.

    Returns:
        The ``ClusterEnvironment`` to put among the plugins of a trainer, or of Fabric; empty where Lightning shall
        choose.
    """
    if not SLURMEnvironment.detect() or TorchElasticEnvironment.detect():
        return []
    n_devices = devices if isinstance(devices, int | str) else len(devices)
    if n_devices in (1, "auto") and n_nodes == 1:
        return [LightningEnvironment()]  # tasks that each run for themselves are no processes of one run
    # Lightning would answer SLURM's signal with a checkpoint of its own in the middle of a step, and take that up in
    # silence the next time.
    return [SLURMEnvironment(auto_requeue=False)]


def fit(
    trainer: Trainer,
    module: LightningModule,
    datamodule: LightningDataModule,
    checkpoint: Checkpoint | None,
) -> None:
    """Train from the start, or from a checkpoint on.

    Args:
        trainer: Made by ``build_trainer``, with a ``CheckpointCallback`` first among its callbacks.
        module: What is trained.
        datamodule: The rows.
        checkpoint: Where to go on; None starts.

    Raises:
        StoppedError: If a process of the run was asked to stop; a checkpoint has been written, if there was a place to.
    """
    if checkpoint is None:
        trainer.fit(module, datamodule=datamodule)
    else:
        # Tensors, numbers and strings only: nothing in a checkpoint is ever executed.
        trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint.path, weights_only=True)
    (signal,) = ranks_of(trainer).highest([stop.signal or 0])
    if signal:
        raise StoppedError(signal, is_clean=True)


def takes_gpus(accelerator: str) -> bool:
    """Say whether a trainer with this accelerator runs on CUDA's devices, which are there then."""
    return accelerator in ON_GPUS and torch.cuda.is_available()


def idle_trainer(accelerator: str) -> Trainer:
    """Make a trainer that only says where and how models run.

    Raises:
        InputError: If Lightning has no such accelerator, or this machine has none.
    """
    try:
        return Trainer(
            accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False, plugins=environment()
        )
    except (ValueError, MisconfigurationException) as error:
        raise InputError(f"accelerator must be what Lightning's Trainer takes: {error}") from error


__all__ = ["AtomicCheckpointIO", "build_trainer", "environment", "fit", "idle_trainer", "takes_gpus"]
