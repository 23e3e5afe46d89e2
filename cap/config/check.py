"""The verdict on a composed conf/train.yaml, from its values alone: every command begins with it, so no torch here.

What only the class of the pruning type and Lightning can tell follows it, see ``cap.training.ready``.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from cap.base.errors import InputError
from cap.base.files import content_key
from cap.base.parts import PARTS
from cap.base.settings import what_counts
from cap.config.own_classes import code_key
from cap.config.regularizer import weight_for
from cap.config.rules import (
    infinite_values,
    learns_from_labels,
    problems_of_freezes,
    problems_of_kept_levels,
    problems_of_steps,
    problems_of_trainer,
    problems_of_values,
    type_problems,
)
from cap.config.schema import ContrastConfig, TrainConfig
from cap.config.typed import typed
from cap.pruning.schedule import SchedulePlan, stride_problem

log = logging.getLogger(__name__)

_TARGET = {"_target_": "must name a class, MODULE.CLASS"}
# What a yaml file of a group must say, and why.
_NAMED = {"pruning": {**_TARGET, "name": "must be what folders and tables call the pruning type"}, "schedule": _TARGET}


@dataclass(frozen=True)
class Checked:
    """Hold a configuration whose values have passed every rule.

    Args:
        config: Typed values.
        resolved: The same as plain containers, for the record.
        pruning: What the class of the pruning type is made with, and its name as ``_target_``.
        pruning_name: The pruning type, as in ``pruning=``.
        every_n_steps: How often masks move; None for the jumps of the schedule alone.
        plan: The sparsity schedule in fractions of a run.
        notes: What a reader of the result must know of the configuration.
    """

    config: TrainConfig
    resolved: dict[str, Any]
    pruning: dict[str, Any]
    pruning_name: str
    every_n_steps: int | None
    plan: SchedulePlan
    notes: tuple[str, ...] = ()

    @property
    def n_processes(self) -> int:
        """Processes of the run, over all nodes."""
        return self.config.trainer.devices * self.config.trainer.num_nodes

    @property
    def learns_from_labels(self) -> bool:
        """Whether the task has labels to fine-tune a teacher on."""
        return learns_from_labels(self.config)

    @property
    def hash(self) -> str:
        """Name the configuration by what changes the result."""
        return content_key(what_counts(self.resolved))


def check(cfg: DictConfig) -> Checked:
    """Apply every rule on values to a composed configuration, before anything is loaded.

    Returns:
        Typed values, and the schedule.

    Raises:
        InputError: With one line for each rule that is broken.
    """
    config, resolved = _typed(cfg)
    problems, keys_of_code = _of_own_classes(resolved)
    if problems:
        raise InputError("\n".join(problems))
    problems = problems_of_values(config) + _problems_of_sparsity(resolved)
    pruning = dict(resolved["pruning"])
    # A type whose masks only move with the target has no every_n_steps.
    name, every_n_steps = str(pruning.pop("name")), pruning.pop("every_n_steps", 1)
    # These two say what another key is where that is null; the other one is what is written down.
    weights, freezes = pruning.pop("regularizer_weights", None), pruning.pop("freezes", None)
    plan, note = None, None
    # A bad sparsity is named once, not again by everything that is made from it.
    if not any(line.startswith("sparsity") for line in problems):
        if weights is not None and pruning.get("regularizer_weight") is None:
            try:
                weight, note = weight_for(weights, task=config.task.name, sparsity=config.sparsity)
                pruning["regularizer_weight"] = weight
                note = note if pruning.get("threshold") == "published" else None  # else the target is met exactly
            except ValueError as error:
                problems.append(str(error))
        plan = _plan(resolved["schedule"], problems)
    problems += problems_of_freezes(freezes)
    if plan is not None:
        if (problem := stride_problem(every_n_steps, plan)) is not None:
            problems.append(f"{_key_typed(cfg, 'pruning.every_n_steps')} {problem}")
        problems += problems_of_kept_levels(config.keep_levels, pruning, plan, config.sparsity)
        problems += problems_of_steps(plan, config.trainer)
    problems += problems_of_trainer(config.trainer)
    problems += [
        f"{key} must be a finite number, got {value}"
        for key, value in infinite_values(resolved).items()
        if not any(line.startswith(f"{key} ") for line in problems)
    ]
    if problems or plan is None:
        raise InputError("\n".join(problems))
    resolved["pruning"].pop("freezes", None)
    for group, key in keys_of_code.items():
        resolved[group]["code_sha256"] = key
    if weights is not None:
        resolved["pruning"] |= {"regularizer_weight": pruning["regularizer_weight"], "regularizer_weights": None}
    _settle(config, resolved, plan, freezes)
    return Checked(config, resolved, pruning, name, every_n_steps, plan, () if note is None else (note,))


def _problems_of_sparsity(resolved: dict[str, Any]) -> list[str]:
    """Check that schedule and pruner end where the run does: both keys follow ``sparsity`` unless they are typed."""
    ends = {
        "schedule.sparsity": resolved["schedule"].get("sparsity"),
        "pruning.final_sparsity": resolved["pruning"].get("final_sparsity"),
    }
    return [
        f"{key} must be sparsity, which is {resolved['sparsity']:g}, got {end}; set sparsity alone, which it follows"
        for key, end in ends.items()
        if end is not None and end != resolved["sparsity"]
    ]


def _typed(cfg: DictConfig) -> tuple[TrainConfig, dict[str, Any]]:
    """Return the configuration as typed values, and as plain containers."""
    config = typed(cfg, TrainConfig, "train")
    resolved = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    if not isinstance(resolved, dict):
        raise TypeError("the configuration must be a mapping")
    if config.student_init == "auto":
        config.student_init = resolved["student_init"] = "pretrained" if config.teacher == "none" else "teacher"
    return config, {str(key): value for key, value in resolved.items()}


def _of_own_classes(resolved: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Look at the classes that groups name: say what is wrong with them, and which code is the user's own."""
    problems, keys = [], {}
    for group in ("pruning", "schedule"):
        node = resolved[group]
        missing = [key for key in _NAMED[group] if not isinstance(node.get(key), str)]
        problems += [f"{group}.{key} {_NAMED[group][key]}, got {node.get(key)!r}; add it" for key in missing]
        if "_target_" in missing:
            continue
        try:
            key = code_key(node["_target_"])
        except ValueError as error:
            problems.append(f"{group}._target_ {error}")
            continue
        if key is not None:
            keys[group] = key
    return problems, keys


def _key_typed(cfg: DictConfig, key: str) -> str:
    """Name the key that a user typed for another that follows it, as ``${pruning.window}`` says; else the key."""
    group, _, name = key.rpartition(".")
    written = OmegaConf.to_container(OmegaConf.select(cfg, group), resolve=False)
    followed = re.fullmatch(r"\$\{([\w.]+)\}", str(written[name])) if isinstance(written, dict) else None
    return followed[1] if followed else key


def _plan(node: dict[str, Any], problems: list[str]) -> SchedulePlan | None:
    """Make the schedule; None if it cannot be made, for reasons that are added to the problems."""
    wrong_types = type_problems("schedule", node)
    problems += wrong_types
    if wrong_types:
        return None
    try:
        plan: SchedulePlan = instantiate(node, _convert_="all")
    except InstantiationException as error:
        problems.append(str(error.__cause__ or error))
        return None
    return plan


def _settle(config: TrainConfig, resolved: dict[str, Any], plan: SchedulePlan, freezes: list[str]) -> None:
    """Write down how long the run and its rows really are, what is frozen and what weighs how much."""
    n_epochs = plan.n_epochs
    if n_epochs is not None and n_epochs != config.trainer.max_epochs:
        log.info(
            "the schedule takes %d epochs (schedule.epochs_per_level), not trainer.max_epochs=%d; "
            "schedule.epochs_per_level=null spreads its levels over those",
            n_epochs,
            config.trainer.max_epochs,
        )
        config.trainer.max_epochs = resolved["trainer"]["max_epochs"] = n_epochs
    if not learns_from_labels(config):
        # The teacher is the pre-trained model, so that contrast with it would be the same term once more.
        config.distill.ce_weight = resolved["distill"]["ce_weight"] = 0.0
        config.contrast.finetuned = resolved["contrast"]["finetuned"] = False
    unsupervised, supervised = contrast_weights(config.contrast)
    config.contrast.unsupervised_weight = resolved["contrast"]["unsupervised_weight"] = unsupervised
    config.contrast.supervised_weight = resolved["contrast"]["supervised_weight"] = supervised
    given = freezes if config.freeze is None else config.freeze
    config.freeze = resolved["freeze"] = [part for part in PARTS if part in given]
    config.task.max_length = resolved["task"]["max_length"] = config.max_length


def contrast_weights(contrast: ContrastConfig) -> tuple[float, float]:
    """Return the weights of the unsupervised and the supervised terms; null is the default of the reduction."""
    defaults = contrast.default_weights[contrast.reduction]
    unsupervised, supervised = contrast.unsupervised_weight, contrast.supervised_weight
    return (
        defaults["unsupervised"] if unsupervised is None else unsupervised,
        defaults["supervised"] if supervised is None else supervised,
    )


__all__ = ["Checked", "check", "contrast_weights"]
