"""Rules on the values of ``conf/train.yaml``: each gives one line for each thing that cannot work."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hydra.utils import get_class

from cap.base.kinds import KINDS
from cap.base.parts import PARTS
from cap.base.strategies import problem_of_strategy
from cap.config.schema import TrainConfig, TrainerConfig
from cap.data.tasks import known_kind
from cap.pruning.schedule import SchedulePlan, held_level
from cap.pruning.targets import sparsity_problem

# Published weights of the reduction pairs are 3 and 10; an anchor's loss is of the size of distillation's.
_MOST_PER_ANCHOR = 2.0

_REQUIRED: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


HIGHEST_SEED = 2**32 - 1
"""What numpy's generator takes."""


def type_problems(key: str, node: dict[str, Any]) -> list[str]:
    """Compare the values of a node that conf/ chooses by class with that class's own annotations.

    A whole number where a number is wanted is one: it is made a float in place.
    """
    target: Any = get_class(node["_target_"])  # what can be imported was looked at first, see own_classes
    try:
        hints = get_type_hints(target.__init__)
    except Exception:  # of a class that is not ours, and whose annotations need not be there at run time
        hints = {}
    taken = {name: one for name, one in inspect.signature(target).parameters.items() if one.kind is not one.VAR_KEYWORD}
    takes_any = len(taken) < len(inspect.signature(target).parameters)
    problems = []
    for name, value in node.items():
        if name == "_target_" or (name not in hints and (takes_any or name in taken)):
            continue
        if name not in taken and not takes_any:
            problems.append(
                f"{key}.{name} does not belong to {key}={target.__name__.lower()}, which takes "
                f"{', '.join(taken) or 'nothing'}; leave it out, "
                f"or choose another recipe if experiment= has set it"
            )
            continue
        kinds = get_args(hints[name]) if isinstance(hints[name], UnionType) else (hints[name],)
        required = _required(value, kinds)
        if required is not None:
            problems.append(f"{key}.{name} must be {required}, got {value!r}")
        elif float in kinds and value is not None:
            node[name] = float(value)
    return problems


def _required(value: Any, kinds: tuple[Any, ...]) -> str | None:
    """Say what a value must be; None if it is of one of the kinds, or nothing is known about them."""
    if value is None and NoneType in kinds:
        return None
    lists = [kind for kind in kinds if get_origin(kind) in (list, tuple)]
    if lists:
        if not all({*get_args(kind)} <= {int, float, Ellipsis} for kind in lists):
            return None if isinstance(value, list) else "a list"
        is_list = isinstance(value, list) and all(type(entry) in (int, float) for entry in value)
        return None if is_list else "a list of numbers, like [0.5,0.9]"
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices:
        return None if value in choices else f"one of {', '.join(choices)}"
    # By type and not isinstance: true is an int to Python.
    is_one = type(value) in kinds or (float in kinds and type(value) is int)
    required = [_REQUIRED[kind] for kind in kinds if kind in _REQUIRED]
    return None if is_one or not required else " or ".join(required)


def problems_of_values(config: TrainConfig) -> list[str]:
    """Check numbers and choices that need nothing else to be judged."""
    c = config
    of_sparsity = sparsity_problem(c.sparsity)
    problems = [] if of_sparsity is None else [of_sparsity]
    positive = {
        "batch_size": c.batch_size,
        "max_length": c.max_length,
        "finetune.learning_rate": c.finetune.learning_rate,
        "contrast.temperature": c.contrast.temperature,
        "distill.temperature": c.distill.temperature,
        "data.eval_batch_size": c.data.eval_batch_size,
        "trainer.accumulate_grad_batches": c.trainer.accumulate_grad_batches,
    }
    problems += [f"{key} must be > 0, got {value}" for key, value in positive.items() if not value > 0]
    not_negative = {
        "learning_rate": c.learning_rate,  # 0 prunes and trains nothing
        "weight_decay": c.weight_decay,
        "finetune.weight_decay": c.finetune.weight_decay,
        "contrast.unsupervised_weight": c.contrast.unsupervised_weight or 0,  # null is that of the reduction
        "contrast.supervised_weight": c.contrast.supervised_weight or 0,
        "contrast.snapshot_count": c.contrast.snapshot_count,
        "distill.weight": c.distill.weight,
        "distill.ce_weight": c.distill.ce_weight,
        "distill.hidden_weight": c.distill.hidden_weight,
        "distill.snapshot_weight": c.distill.snapshot_weight,
        "memory.budget_gb": c.memory.budget_gb,
        "data.num_workers": c.data.num_workers,
    }
    problems += [f"{key} must be >= 0, got {value}" for key, value in not_negative.items() if not value >= 0]
    if not 0 <= c.seed <= HIGHEST_SEED:
        problems.append(f"seed must lie between 0 and {HIGHEST_SEED} (2**32 - 1), got {c.seed}; choose another one")
    optional = {
        "data.max_train_rows": c.data.max_train_rows,
        "data.max_eval_rows": c.data.max_eval_rows,
        "data.max_unlabelled_rows": c.data.max_unlabelled_rows,
        "data.held_out_rows": c.data.held_out_rows,
        "checkpoint.every_n_steps": c.checkpoint.every_n_steps,
        "checkpoint.every_n_minutes": c.checkpoint.every_n_minutes,
    }
    problems += [f"{k} must be > 0 or null, got {v}" for k, v in optional.items() if v is not None and not v > 0]
    fractions = {"learning_rate_floor": c.learning_rate_floor, "learning_rate_start": c.learning_rate_start}
    problems += [
        f"{key} is a fraction of learning_rate and lies in [0, 1], got {value}"
        for key, value in fractions.items()
        if not 0 <= value <= 1
    ]
    choices = {
        "contrast.pool": (c.contrast.pool, ("auto", "cls", "mean")),
        "contrast.reduction": (c.contrast.reduction, ("pairs", "anchors")),
        "distill.hidden": (c.distill.hidden, ("pooled", "tokens")),
        "student_init": (c.student_init, ("auto", "pretrained", "teacher")),
    }
    problems += [
        f"{key} must be one of {', '.join(known)}, got {value!r}"
        for key, (value, known) in choices.items()
        if value not in known
    ]
    return (
        problems
        + _problems_of_length(c)
        + _problems_of_objective(c)
        + _problems_of_freeze(c)
        + _problems_of_contrast(c)
        + _problems_of_snapshots(c)
        + _problems_of_unlabelled(c)
    )


def infinite_values(node: Mapping[Any, Any], prefix: str = "") -> dict[str, float]:
    """Find the numbers of a configuration that are infinite or nan, by key.

    Rules that compare with 0 let infinity pass, and neither can be written into a record.
    """
    found: dict[str, float] = {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found |= infinite_values(value, f"{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            found[key] = value
    return found


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
    for key, n in (("trainer.devices", c.trainer.devices), ("trainer.num_nodes", c.trainer.num_nodes)):
        if n < 1:
            problems.append(f"{key} is a number of processes and must be at least 1, got {n}")
    return problems


def problems_of_trainer(trainer: TrainerConfig) -> list[str]:
    """Check what of ``trainer.*`` has rules of our own; Lightning is asked about the rest once it is needed."""
    problems = _problems_of_batches(trainer)
    clip = trainer.gradient_clip_val
    if clip is not None and not clip > 0:
        problems.append(f"trainer.gradient_clip_val must be > 0 or null, got {clip}")
    if trainer.precision in ("bf16-true", "16-true"):
        problems.append(
            f"trainer.precision must keep weights and scores in 32 bits, since steps of a usual learning rate are lost "
            f"in half precision, got {trainer.precision}; use {trainer.precision.replace('true', 'mixed')}"
        )
    strategy = problem_of_strategy(trainer.strategy)
    return problems if strategy is None else [*problems, strategy]


def _problems_of_batches(trainer: TrainerConfig) -> list[str]:
    """Check what counts batches of an epoch: Lightning meets some of these values in its first step only."""
    counts = {key: getattr(trainer, key) for key in ("limit_train_batches", "limit_val_batches", "val_check_interval")}
    if type(trainer.limit_val_batches) in (int, float) and trainer.limit_val_batches == 0:
        del counts["limit_val_batches"]  # nothing is validated
    problems = [
        f"trainer.{key} must be a fraction of an epoch's batches in (0, 1], or a whole number of them, at least 1, got "
        f"{value}; 1.0 stands for all"
        for key, value in counts.items()
        if not (type(value) is int and value >= 1) and not (type(value) is float and 0 < value <= 1)
    ]
    every = trainer.check_val_every_n_epoch
    if every is not None and every < 1:
        problems.append(
            f"trainer.check_val_every_n_epoch must be at least 1, or null for validations that count batches over the "
            f"epochs, got {every}; trainer.limit_val_batches=0 leaves them out"
        )
    return problems


def _problems_of_objective(c: TrainConfig) -> list[str]:
    if not learns_from_labels(c):
        return _problems_of_alignment(c)
    if c.distill.weight + c.distill.ce_weight == 0:
        return ["distill.weight and distill.ce_weight must not both be 0: the task head would learn from nothing"]
    if c.teacher == "none" and c.distill.ce_weight == 0:
        return ["teacher=none leaves only the labels to learn from, so distill.ce_weight must be > 0, got 0"]
    if c.teacher == "none" and c.student_init == "teacher":
        return ["student_init=teacher needs a teacher, got teacher=none"]
    if c.teacher == "none" and c.distill.hidden_weight > 0:
        return [
            f"distill.hidden_weight={c.distill.hidden_weight:g} compares hidden states with a teacher's, got "
            f"teacher=none; set distill.hidden_weight=0, or teacher=auto"
        ]
    return []


def learns_from_labels(config: TrainConfig) -> bool:
    """Say whether a task has labels to fine-tune a teacher on; else the pre-trained model is the teacher."""
    kind = known_kind(config.task.name)
    return kind is None or KINDS[kind].learns_from_labels


def _problems_of_alignment(c: TrainConfig) -> list[str]:
    """Check that a task without labels has something to learn from: the pre-trained model."""
    problems = []
    if c.teacher != "auto":
        problems.append(
            f"task={c.task.name} learns from the pre-trained model itself, which is its teacher, got "
            f"teacher={c.teacher}; leave teacher out, and name the model with model.name_or_path"
        )
    if c.distill.weight == 0:
        problems.append(
            f"task={c.task.name} learns from the encodings of the pre-trained model, so that distill.weight must be "
            f"> 0, got 0; set distill.weight=1"
        )
    return problems


def _problems_of_contrast(c: TrainConfig) -> list[str]:
    contrast, problems = c.contrast, []
    n = contrast.extra_examples
    is_count = type(n) is int and n >= 0
    if not is_count and not (type(n) is float and 0 < n < 1):
        problems.append(
            f"contrast.extra_examples must be a whole number of training rows, or a fraction of them in (0, 1), got {n}"
        )
    weight = contrast.supervised_weight
    if contrast.reduction == "anchors" and weight is not None and weight > _MOST_PER_ANCHOR:
        problems.append(
            f"contrast.supervised_weight must be at most {_MOST_PER_ANCHOR:g} with contrast.reduction=anchors, got "
            f"{weight:g}, which suits reduction=pairs; set contrast.supervised_weight=null for the default"
        )
    return problems


def _problems_of_freeze(c: TrainConfig) -> list[str]:
    freeze = c.freeze or []
    if not set(freeze) <= set(PARTS):
        return [
            f"freeze names parts of the model that keep their weights, out of {', '.join(PARTS)}, got {freeze}; "
            f"the encoder layers, which are pruned, train, but with pruning=static_scores"
        ]
    if "head" in freeze and c.student_init == "pretrained":
        return [
            f"freeze={freeze} keeps an untrained task head: with student_init=pretrained it starts from "
            f"random weights; set student_init=teacher, or leave head out"
        ]
    return []


def problems_of_freezes(freezes: Any) -> list[str]:
    """Check that a pruning type says what ``freeze=null`` means."""
    if isinstance(freezes, list) and all(part in PARTS for part in freezes):
        return []
    return [
        f"pruning.freezes lists what keeps its weights where freeze=null, out of {', '.join(PARTS)}, got {freezes}; "
        f"write freezes: [embeddings], or freezes: [], into the file of the pruning type"
    ]


def _problems_of_unlabelled(c: TrainConfig) -> list[str]:
    """Check that something is learned from rows without a label."""
    if c.data.unlabelled is None and not c.data.keep_unlabelled:
        return []
    asked = f"data.unlabelled={c.data.unlabelled}" if c.data.unlabelled is not None else "data.keep_unlabelled=true"
    name = known_kind(c.task.name)
    kind = None if name is None else KINDS[name]
    if kind is not None and not kind.is_of_text:
        return [
            f"rows without a label are learned from where answers are classes or numbers, got {asked} with "
            f"task={c.task.name}, whose answers are {kind.answers}; leave it out"
        ]
    has_teacher = c.teacher != "none"
    is_contrasted = c.contrast.pretrained or c.contrast.snapshots or (c.contrast.finetuned and has_teacher)
    has_answers = has_teacher and (c.distill.weight > 0 or c.distill.hidden_weight > 0)
    if has_answers or c.distill.snapshot_weight > 0 or (is_contrasted and c.contrast.unsupervised_weight != 0):
        return []
    return [
        f"rows without a label are learned from by a teacher's answers or by unsupervised contrast, got {asked} with "
        f"teacher={c.teacher}, distill.weight={c.distill.weight:g} and no unsupervised contrast; set distill=logits "
        f"with a teacher, or contrast=cap, or leave it out"
    ]


def problems_of_steps(plan: SchedulePlan, trainer: TrainerConfig) -> list[str]:
    """Check the schedule against the length of the run, if ``trainer.max_steps`` sets it.

    The epochs may end the run sooner; that is seen once the rows are there.
    """
    return plan.problems(trainer.max_steps) if trainer.max_steps > 0 else []


def _problems_of_snapshots(c: TrainConfig) -> list[str]:
    """Check that a run that distils from its snapshots' logits takes any."""
    if not c.distill.snapshot_weight > 0 or c.contrast.snapshot_count > 0:
        return []
    return [
        f"distill.snapshot_weight={c.distill.snapshot_weight:g} distils from snapshots, which need "
        f"contrast.snapshot_count > 0, got {c.contrast.snapshot_count}; change that, or set distill.snapshot_weight=0"
    ]


def problems_of_kept_levels(
    levels: list[float] | None, pruning: Mapping[str, Any], plan: SchedulePlan, sparsity: float
) -> list[str]:
    """Check that the schedule passes every level at which a model is kept."""
    if levels is None:
        return []
    if pruning.get("threshold") == "published":
        return [
            "keep_levels names sparsities, and with pruning.threshold=published nobody knows the sparsity beforehand; "
            "set pruning.threshold=target, or leave keep_levels out"
        ]
    if not levels or sorted(set(levels)) != levels or levels[0] <= 0 or levels[-1] > sparsity:
        return [f"keep_levels must rise, above 0 and up to sparsity={sparsity}, like [0.5,0.7,0.9], got {levels}"]
    unknown = [level for level in levels if held_level(level, plan) is None]
    if unknown:
        held = ", ".join(f"{level:.3g}" for level in plan.levels_reached or ())
        return [
            f"keep_levels must be levels of the schedule, which jumps from one to the next ({held}), got "
            f"{', '.join(f'{level:g}' for level in unknown)}; choose among them, or set others: schedule=stepwise and "
            "schedule.levels"
        ]
    return []


__all__ = [
    "HIGHEST_SEED",
    "infinite_values",
    "learns_from_labels",
    "problems_of_freezes",
    "problems_of_kept_levels",
    "problems_of_steps",
    "problems_of_trainer",
    "problems_of_values",
    "type_problems",
]
