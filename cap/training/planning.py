"""What is known of a run before it trains: whether it can work, and what it is going to do."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial

import torch

from cap.base.errors import InputError
from cap.base.memory_budget import BYTES_PER_GIB
from cap.models.families import encoder_layers, prunable
from cap.objectives.memory import Memory
from cap.pruning.pruner import Room
from cap.pruning.schedule import snapshot_steps
from cap.training.assembly import new_module, optimisation_of
from cap.training.dynamics import Dynamics, count_parameters, path_length, planned_steps
from cap.training.module import CapModule
from cap.training.preparation import Prepared
from cap.training.ready import Ready
from cap.training.trainer import takes_gpus

_BYTES_PER_VALUE = 2  # encodings are float16
_BYTES_FOR_OTHERS = 2 * BYTES_PER_GIB  # activations of the largest batches, CUDA's own: an allowance, measured nowhere


def require_possible(checked: Ready, prepared: Prepared, *, devices: int | list[int] | None = None) -> int:
    """Check what the configuration alone could not say: the target against the model, the schedule against the rows.

    Args:
        checked: The configuration.
        prepared: Rows and the pre-trained model.
        devices: How many the run takes, the first ones, or which; None is as many as the configuration says.

    Returns:
        The optimizer steps of the run.

    Raises:
        InputError: If the model cannot meet the target, or the run is too short for its schedule.
    """
    trainer = checked.config.trainer
    _require_batches(checked, prepared)
    n_steps = planned_steps(
        _n_batches(checked, prepared),
        limit=trainer.limit_train_batches,
        accumulate_grad_batches=trainer.accumulate_grad_batches,
        max_epochs=trainer.max_epochs,
        max_steps=trainer.max_steps,
    )
    problems = [*checked.plan.problems(n_steps), *_problems_of_learning(checked, n_steps)]
    found = prunable(prepared.pretrained.model)
    check_memory = partial(checked.pruner.check_memory, room=_room_of_a_pass(checked, prepared, devices))
    for check in (checked.pruner.check, check_memory):
        try:
            check(found)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    return n_steps


def _require_batches(checked: Ready, prepared: Prepared) -> None:
    """Check that limits and intervals leave something of these rows to train on and to validate.

    Raises:
        InputError: If one does not.
    """
    trainer, n_all = checked.config.trainer, _n_batches(checked, prepared)
    n_batches = n_batches_of_epoch(checked, prepared)
    if n_batches == 0:
        raise InputError(
            f"trainer.limit_train_batches must leave at least one of the {n_all} batches of an epoch, got "
            f"{trainer.limit_train_batches}; set a whole number of batches"
        )
    if trainer.limit_val_batches == 0:
        return
    interval = trainer.val_check_interval
    if trainer.check_val_every_n_epoch is not None and isinstance(interval, int) and interval > n_batches:
        raise InputError(
            f"trainer.val_check_interval counts batches within an epoch and can be at most {n_batches} here, got "
            f"{interval}; set trainer.check_val_every_n_epoch=null to count over the epochs, or lower it"
        )
    for split in prepared.task.validation_splits:
        prepared.datamodule.n_validated(split, trainer.limit_val_batches)


def n_batches_of_epoch(checked: Ready, prepared: Prepared) -> int:
    """Count the batches of an epoch that each process trains on."""
    limit = checked.config.trainer.limit_train_batches
    return planned_steps(
        _n_batches(checked, prepared), limit=limit, accumulate_grad_batches=1, max_epochs=1, max_steps=-1
    )


def _n_batches(checked: Ready, prepared: Prepared) -> int:
    return -(-prepared.datamodule.n_train // (checked.config.batch_size * checked.n_processes))


def _room_of_a_pass(checked: Ready, prepared: Prepared, devices: int | list[int] | None) -> Room:
    """Say what a pass over the training rows may hold: it lies where the student is, and beside it."""
    trainer = checked.config.trainer
    width = 8 if trainer.precision == "64-true" else 4  # Lightning converts the weights only when training begins
    if takes_gpus(trainer.accelerator):
        taken = trainer.devices if devices is None else devices
        places = range(min(taken, torch.cuda.device_count())) if isinstance(taken, int) else taken
        sizes = [torch.cuda.get_device_properties(place).total_memory for place in places]
        # Weights, their gradients and Adam's two averages stay; the rest is for activations and PyTorch itself.
        n_parameters = sum(parameter.numel() for parameter in prepared.pretrained.parameters())
        left = min(sizes) - 4 * width * n_parameters - _BYTES_FOR_OTHERS
        return Room(max(left, 0), is_budget=False, bytes_per_value=width)
    share = checked.config.memory.budget_gb * BYTES_PER_GIB / trainer.devices
    return Room(share, n_processes=trainer.devices, bytes_per_value=width)


def _problems_of_learning(checked: Ready, n_steps: int) -> list[str]:
    """Check that masks which are all that is learned are learned: they move last when the last step begins."""
    if checked.pruner.trains_weights or checked.config.sparsity == 0:
        return []
    multiplier = optimisation_of(checked).over(n_steps)
    if any(multiplier(step) > 0 for step in range(n_steps - 1)):
        return []
    return [
        f"pruning={checked.pruning_name} learns nothing but scores, which must learn before the masks move in the last "
        f"step, but of the {n_steps} steps of this run none before that has a learning rate above 0; give it more "
        f"(trainer.max_epochs, trainer.max_steps), or lower schedule.warmup"
    ]


def module_to_look_at(checked: Ready, prepared: Prepared) -> CapModule:
    """Make a module with its masks on that is thrown away: it has no teacher, and no row was encoded."""
    return new_module(
        dataclasses.replace(checked, pruner=copy.deepcopy(checked.pruner)),
        prepared,
        None,
        Memory(n_examples=prepared.datamodule.n_train, budget=prepared.budget),
        warn=lambda message: None,
    )


def planned_dynamics(checked: Ready, prepared: Prepared, n_steps: int) -> Dynamics:
    """Say what a run is going to do.

    Args:
        checked: The configuration.
        prepared: Rows and the pre-trained model.
        n_steps: Optimizer steps of the run.
    """
    config = checked.config
    module = module_to_look_at(checked, prepared)  # what is trained and what is frozen does not depend on the teacher
    target_step = checked.plan.jumps(n_steps)[-1] if config.sparsity > 0 else 0
    moves = checked.pruner.trains_weights
    has_teacher, distill = config.teacher != "none", config.distill
    reads_hidden = has_teacher and distill.hidden_weight > 0 and distill.hidden == "pooled"
    n_frozen = int(config.contrast.pretrained) + (has_teacher and config.contrast.finetuned)
    n_snapshots = 0
    if config.contrast.snapshots:
        n_snapshots = len(snapshot_steps(checked.plan, n_steps, config.contrast.snapshot_count))
    # What the teacher encodes is kept for other runs, also where only its logits or hidden states are read.
    is_kept = has_teacher and (distill.weight > 0 or reads_hidden) and not config.contrast.finetuned
    student = module.student.model
    n_bytes = prepared.datamodule.n_train * int(student.config.hidden_size) * _BYTES_PER_VALUE
    hidden = n_bytes * len(encoder_layers(student)) * reads_hidden
    n_bytes_read = prepared.budget.bytes_to_read([*[n_bytes] * n_frozen, hidden, *[n_bytes] * n_snapshots])
    return Dynamics(
        steps=n_steps,
        steps_after_target=n_steps - target_step,
        path=path_length(module.optimisation, n_steps) if moves else 0.0,
        path_after_target=path_length(module.optimisation, n_steps, start=target_step) if moves else 0.0,
        encodings=n_frozen + n_snapshots,
        bank_disk_gb=(n_bytes * (n_frozen + n_snapshots + is_kept) + hidden) / BYTES_PER_GIB,
        bank_memory_gb=n_bytes_read * config.trainer.devices / BYTES_PER_GIB,
        **count_parameters(module, config.sparsity),
    )


__all__ = ["module_to_look_at", "n_batches_of_epoch", "planned_dynamics", "require_possible"]
