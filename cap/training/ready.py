"""What only classes can tell of a configuration: the pruning type that it chooses, and Lightning's Trainer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from cap.base.errors import InputError
from cap.config.check import Checked
from cap.config.rules import type_problems
from cap.config.schema import TrainerConfig
from cap.pruning.pruner import Pruner
from cap.pruning.schedule import OneShot
from cap.pruning.weights import WeightPruner
from cap.training.trainer import environment

_ANY_STEPS = 1000  # a schedule begins alike however long the run is


@dataclass(frozen=True)
class Ready(Checked):
    """Hold a configuration that has passed every rule, also those of the classes that it names.

    Args:
        pruner: The pruning type, not yet attached.
    """

    pruner: Pruner = field(kw_only=True)


def make_ready(checked: Checked) -> Ready:
    """Make the pruning type, and ask it and Lightning whether the configuration can work.

    Lightning switches at once what ``trainer.deterministic`` asks for, see ``keeping_determinism``.

    Raises:
        InputError: With one line for each rule that is broken.
    """
    pruner, problems = _pruner(checked)
    if pruner is not None:
        problems += _problems_of_pruner(pruner, checked)
    problems += _problems_of_lightning(checked.config.trainer)
    if problems or pruner is None:
        raise InputError("\n".join(problems))
    values = {one.name: getattr(checked, one.name) for one in dataclasses.fields(Checked)}
    return Ready(**values, pruner=pruner)


def _pruner(checked: Checked) -> tuple[Pruner | None, list[str]]:
    """Make the pruning type; None if that cannot be done, and why."""
    node = dict(checked.pruning)
    problems = type_problems("pruning", node)
    if problems:
        return None, problems
    try:
        pruner: object = instantiate(node, _convert_="all")
    except InstantiationException as error:
        return None, [str(error.__cause__ or error)]
    if not isinstance(pruner, Pruner):
        return None, [f"pruning._target_ must be a subclass of cap.Pruner, got {node['_target_']}"]
    return pruner, []


def _problems_of_pruner(pruner: Pruner, checked: Checked) -> list[str]:
    """Check that pruning type, schedule and target go together."""
    plan, sparsity = checked.plan, checked.config.sparsity
    if pruner.needs_levels and plan.level_starts(1) is None:
        return [
            f"this pruning type prunes at levels with retraining in between: schedule must be stepwise or oneshot, or "
            f"have schedule.n_prunings, got {type(plan).__name__.lower()}; set schedule=stepwise, or choose another "
            f"pruning type"
        ]
    steps = checked.config.trainer.max_steps
    if pruner.learns_scores and isinstance(plan, OneShot) and plan.jumps(_ANY_STEPS if steps == -1 else steps)[0] == 0:
        got = f"{plan.flat_before:g}" + ("" if steps == -1 else f" of {steps} steps")
        return [
            f"schedule=oneshot with scores that are learned needs schedule.flat_before > 0, got {got}: "
            f"before the first step all scores are equal; set 0.2, say, of more steps, or use pruning=magnitude"
        ]
    if pruner.keeps_zeros:
        return _problems_of_zeros(checked)
    kept = checked.config.keep_levels
    if pruner.prunes_at_once and kept and kept[0] < sparsity:
        return [
            f"keep_levels needs a pruning type that prunes little by little, and this one prunes at once, at "
            f"sparsity={sparsity}, got {kept}; leave keep_levels out, or choose another pruning type"
        ]
    if pruner.is_monotone and plan.levels_reached is None and kept and kept[0] < sparsity:
        return [
            f"keep_levels with a pruning type whose moves cannot be taken back needs a schedule that stops at them, "
            f"got {type(plan).__name__.lower()} without levels; set schedule.n_prunings, or schedule=stepwise"
        ]
    pattern = pruner.pattern if isinstance(pruner, WeightPruner) else None
    problem = None if pattern is None else pattern.problem(sparsity)
    return [] if problem is None else [problem]


def _problems_of_zeros(checked: Checked) -> list[str]:
    """Check that a run which keeps zeros begins with them, and learns from another model."""
    config = checked.config
    if not checked.learns_from_labels:
        return [
            f"task={config.task.name} learns from the model that it starts from, which with pruning=keep_zeros is as "
            f"sparse as the student; prune the dense model on this task, with another pruning type"
        ]
    is_at_target = checked.plan.over(_ANY_STEPS)(0) == config.sparsity
    if config.student_init == "pretrained" and is_at_target:
        return []
    return [
        f"pruning=keep_zeros prunes nothing and keeps the zeros of the model that is given: the student must start "
        f"from that model and the schedule at its sparsity, got student_init={config.student_init} and "
        f"schedule={type(checked.plan).__name__.lower()}; leave experiment= out, or set student_init=pretrained "
        f"schedule=oneshot schedule.flat_before=0"
    ]


def _problems_of_lightning(trainer: TrainerConfig) -> list[str]:
    """Ask Lightning, which knows its own names best: precision, accelerator, intervals."""
    options = dataclasses.asdict(trainer)
    # The processes are not there yet, and other machines never are: one of them stands for all.
    options.update(devices=1, num_nodes=1, strategy="auto")
    try:
        Trainer(**options, logger=False, enable_checkpointing=False, enable_model_summary=False, plugins=environment())
    except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
        return [f"trainer.* must be what Lightning's Trainer takes: {error}"]
    return []


__all__ = ["Ready", "make_ready"]
