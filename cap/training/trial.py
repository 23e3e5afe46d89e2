"""Time some steps before a run is made: how long its steps, and those of its teacher, are going to take."""

from __future__ import annotations

import logging
import statistics
from time import perf_counter

import torch
from lightning.fabric import Fabric

from cap.base.errors import first_line
from cap.base.kinds import KINDS
from cap.training.dynamics import planned_steps
from cap.training.planning import module_to_look_at, n_batches_of_epoch
from cap.training.preparation import Prepared
from cap.training.ready import Ready
from cap.training.trainer import environment

log = logging.getLogger(__name__)

_MOST_BATCHES = 10
_MOST_SECONDS = 20.0


def say_how_long(ready: Ready, prepared: Prepared, n_steps: int) -> None:
    """Log what the steps of a run take on this machine, and those of a teacher that is made for it.

    Args:
        ready: The configuration.
        prepared: Rows and the pre-trained model.
        n_steps: Optimizer steps of the run.
    """
    try:
        seconds = seconds_per_batch(ready, prepared)
    except torch.OutOfMemoryError as error:
        log.warning(
            "no step could be timed, since the device is out of memory (%s); lower batch_size, or wait for what else "
            "runs there",
            first_line(error),
        )
        return
    accumulated = ready.config.trainer.accumulate_grad_batches
    log.info(
        "%.2g s a plain batch on this machine, so that the %s steps take about %.1f minutes%s; what is done with the "
        "teacher and the banks, validation, snapshots and passes for importance come on top",
        seconds,
        f"{n_steps:,}",
        _n_batches(n_steps, accumulated, n_batches_of_epoch(ready, prepared)) * seconds / 60,
        _of_the_teacher(ready, prepared, seconds),
    )


def seconds_per_batch(ready: Ready, prepared: Prepared) -> float:
    """Time batches of a student with its masks on, without what a run adds to plain fine-tuning.

    Args:
        ready: The configuration; says where and in which precision.
        prepared: Rows and the pre-trained model; keeps its weights.

    Returns:
        The mean of some batches, each with a step of the optimizer, after a first one. Batches differ in length.
    """
    options = ready.config.trainer
    fabric = Fabric(
        accelerator=options.accelerator,
        devices=1,
        precision=options.precision,  # type: ignore[arg-type]
        plugins=environment(),
    )
    module = module_to_look_at(ready, prepared)
    student, optimizer = fabric.setup(module.student, torch.optim.AdamW(module.parameter_groups()))
    student.train()
    seconds: list[float] = []
    for batch in fabric.setup_dataloaders(prepared.datamodule.train_dataloader(), use_distributed_sampler=False):
        started = perf_counter()
        # What is learned takes no time beside the passes: any loss will do.
        fabric.backward(student(batch).logits.float().square().mean())
        optimizer.step()
        optimizer.zero_grad()
        if fabric.device.type == "cuda":
            torch.cuda.synchronize(fabric.device)
        seconds.append(perf_counter() - started)
        if len(seconds) > _MOST_BATCHES or sum(seconds) > _MOST_SECONDS:
            break
    return statistics.fmean(seconds[1:] or seconds)


def _n_batches(n_steps: int, n_of_step: int, n_of_epoch: int) -> int:
    """Count the batches of some steps: of accumulated ones the last step of an epoch may have fewer."""
    n_epochs, n_rest = divmod(n_steps, -(-n_of_epoch // n_of_step))
    return n_epochs * n_of_epoch + min(n_rest * n_of_step, n_of_epoch)


def _of_the_teacher(ready: Ready, prepared: Prepared, seconds: float) -> str:
    config, kind = ready.config, KINDS[prepared.task.kind]
    if config.teacher != "auto" or not kind.learns_from_labels:
        return ""
    n_of_step = config.trainer.accumulate_grad_batches
    n_of_epoch = -(-prepared.datamodule.n_labelled // config.batch_size)
    finetune = config.finetune
    n_steps = planned_steps(
        n_of_epoch,
        limit=1.0,
        accumulate_grad_batches=n_of_step,
        max_epochs=finetune.max_epochs,
        max_steps=finetune.max_steps,
    )
    minutes = _n_batches(n_steps, n_of_step, n_of_epoch) * seconds / 60
    return f", and the {n_steps:,} of the teacher {minutes:.1f}, unless the cache has it"


__all__ = ["say_how_long", "seconds_per_batch"]
