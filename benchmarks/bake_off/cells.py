"""The list of the bake-off: blocks whose axes multiply out to cells, read from a yaml and checked.

A file has three keys: ``defaults`` (what every block has that does not say otherwise), ``tasks`` (overrides by folder
of data) and ``blocks``. A block has a ``name``, a ``priority`` (1 first), and the keys of ``_BLOCK``; each of ``task``,
``pruning``, ``sparsity``, ``contrast`` and ``seeds`` may be a list, and ``variants`` names sets of further overrides.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cap.base.errors import InputError, nearest_first
from cap.base.files import content_key

CONTRASTS = ("cap", "none")
SHOWN = ("table", "control", "seconds", "ablation")
DIR = "DIR"
"""Stands for the folder of all data, in the list and in records."""
_TOP = ("defaults", "tasks", "blocks")
_AXES = ("task", "pruning", "sparsity", "contrast", "seeds")
_DEFAULTS = (*_AXES, "experiment", "overrides", "shown")
_BLOCK = ("name", "priority", *_DEFAULTS, "variants")
_REQUIRED = ("name", "priority", *_AXES)
# What a cell or the command itself sets.
_TAKEN = ("experiment", "pruning", "sparsity", "contrast", "seed", "data_dir", "output_dir", "cache_dir", "resume")
# What decides which teacher a run needs, beside its rows and its seed.
_TEACHERS = ("task", "model", "teacher", "finetune", "data", "max_length", "batch_size", "experiment")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Describe one run.

    Args:
        block: The block that it comes from.
        shown: ``table``; ``control`` for what the others are to be read beside, so that one seed will do; ``seconds``
            for a run without contrast that is given the time of one with contrast; ``ablation`` for one change from
            the cell that is called the same without its variant.
        priority: 1 first.
        task: Folder of data below the data root.
        pruning: As ``pruning=``.
        sparsity: As ``sparsity=``.
        contrast: As ``contrast=``.
        variant: What tells it from the recipe, in words; empty for the recipe itself.
        seed: As ``seed=``.
        overrides: All others, each key once.
    """

    block: str
    shown: str
    priority: int
    task: str
    pruning: str
    sparsity: float
    contrast: str
    variant: str
    seed: int
    overrides: tuple[str, ...]

    @property
    def is_row(self) -> bool:
        """Whether the cell has its place in the table."""
        return self.shown != "ablation"

    @property
    def arm(self) -> str:
        """The name without the seed."""
        variant = re.sub(r"[^a-z0-9]+", "-", self.variant.lower()).strip("-")
        return "_".join(part for part in (self.base, variant) if part)

    @property
    def base(self) -> str:
        """The name without variant and seed: the recipe that a variant is compared with."""
        return f"{self.task}_{self.pruning}_{self.sparsity:g}_{self.contrast}"

    @property
    def name(self) -> str:
        """The name of its record."""
        return f"{self.arm}_seed{self.seed}"

    @property
    def all_overrides(self) -> tuple[str, ...]:
        """What makes the run what it is, without any place."""
        own = (f"pruning={self.pruning}", f"sparsity={self.sparsity:.10g}", f"contrast={self.contrast}")
        return (*self.overrides, *own, f"seed={self.seed}")

    @property
    def key(self) -> str:
        """Tell this run from one that had the same name when the list was another."""
        return content_key(sorted([*self.all_overrides, self.task]))

    @property
    def teacher_key(self) -> str:
        """Tell which cells need the same teacher."""
        named = [text for text in self.overrides if re.split(r"[.=]", text)[0] in _TEACHERS]
        return content_key([self.task, self.seed, sorted(named)])

    @property
    def needs_data(self) -> bool:
        """Whether there is a folder to read; one task brings its data with it."""
        return "task=docstrings" not in self.overrides


def read_cells(path: Path) -> list[Cell]:
    """Read the cells of a list in the order in which they are to be run.

    Within a priority the seeds go round: every arm has its first seed before one has its second.

    Raises:
        InputError: With one line for each thing that is wrong.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except FileNotFoundError as error:
        raise InputError(f"--cells must be a yaml file, but there is no {path}; correct the path") from error
    except (OSError, YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"{path} must be a yaml file: {' '.join(str(error).split())}") from error
    problems: list[str] = []
    cells = list(_cells(content, problems))
    named: dict[str, Cell] = {}
    for cell in cells:
        if named.setdefault(cell.name, cell) is not cell:
            problems.append(
                f"every cell must have a name of its own, but {cell.name} is in the blocks {named[cell.name].block!r} "
                f"and {cell.block!r}; leave one out, or give it a variant"
            )
    if problems:
        raise InputError("\n".join(f"{path.name}: {problem}" for problem in problems))
    return sorted(cells, key=lambda cell: (cell.priority, cell.seed))  # stable: else in the list's order


def _cells(content: Any, problems: list[str]) -> Iterator[Cell]:
    if not isinstance(content, dict) or not isinstance(content.get("blocks"), list):
        problems.append(f"a list has the keys {', '.join(_TOP)}, and blocks is a list")
        return
    _refuse_unknown("the file", content, _TOP, problems)
    defaults, tasks = (_mapping(content, key, problems) for key in ("defaults", "tasks"))
    _refuse_unknown("defaults", defaults, _DEFAULTS, problems)
    of_tasks = {str(task): _overrides(f"tasks.{task}", given, problems) for task, given in tasks.items()}
    common = _overrides("defaults", defaults.get("overrides"), problems)
    for number, block in enumerate(content["blocks"], start=1):
        if not isinstance(block, dict):
            problems.append(f"block {number} must be keys with values, got {block!r}")
            continue
        where = f"block {block.get('name', number)!r}"
        before = len(problems)
        _refuse_unknown(where, block, _BLOCK, problems)
        own = _overrides(where, block.get("overrides"), problems)
        merged = {**defaults, **block}
        _check_values(where, merged, problems)
        variants = block.get("variants", {"": None})
        if not isinstance(variants, dict) or not variants:
            problems.append(f"{where}: variants must be names with lists of overrides, got {variants!r}")
        if len(problems) == before:
            yield from _multiplied(where, merged, of_tasks, [*common, *own], variants, problems)


def _multiplied(
    where: str,
    block: Mapping[str, Any],
    of_tasks: Mapping[str, list[str]],
    common: list[str],
    variants: Mapping[str, Any],
    problems: list[str],
) -> Iterator[Cell]:
    experiment = [f"experiment={block['experiment']}"] if block.get("experiment") else []
    of_variants = {
        str(name): _overrides(f"{where}, variant {name!r}", given, problems) for name, given in variants.items()
    }
    axes = (of_variants, *(_listed(block[axis]) for axis in _AXES))
    for variant, task, pruning, sparsity, contrast, seed in product(*axes):
        given = [*experiment, *of_tasks.get(task, [f"task={task}"]), *common, *of_variants[variant]]
        # The last word counts, and Hydra wants each key once.
        last = {text.partition("=")[0]: text for text in given}
        yield Cell(
            block=str(block["name"]),
            shown=block.get("shown", SHOWN[0]),
            priority=block["priority"],
            task=task,
            pruning=pruning,
            sparsity=float(sparsity),
            contrast=contrast,
            variant=variant,
            seed=seed,
            overrides=tuple(last.values()),
        )


def _check_values(where: str, block: Mapping[str, Any], problems: list[str]) -> None:
    missing = [key for key in _REQUIRED if block.get(key) is None]
    if missing:
        problems.append(f"{where} has no {', '.join(missing)}; give each, or set it in defaults")
    if "priority" in block and (type(block["priority"]) is not int or block["priority"] < 1):
        problems.append(f"{where}: priority must be a whole number of at least 1, got {block['priority']!r}")
    rules = {
        "task": (lambda v: isinstance(v, str) and re.fullmatch(r"[\w.-]+", v), "the name of a folder of data"),
        "pruning": (lambda v: isinstance(v, str) and re.fullmatch(r"\w+", v), "a pruning type"),
        "sparsity": (lambda v: type(v) in (int, float) and 0 <= v < 1, "a fraction in [0, 1)"),
        "contrast": (lambda v: v in CONTRASTS, f"one of {', '.join(CONTRASTS)}"),
        "seeds": (lambda v: type(v) is int and v >= 0, "whole numbers of at least 0"),
        "shown": (lambda v: v in SHOWN, f"one of {', '.join(SHOWN)}"),
    }
    for key, (is_fine, wanted) in rules.items():
        for value in _listed(block.get(key, [])):
            if value is not None and not is_fine(value):
                problems.append(f"{where}: {key} must be {wanted}, got {value!r}")


def _overrides(where: str, given: Any, problems: list[str]) -> list[str]:
    found = [] if given is None else _listed(given)
    for text in found:
        key = text.partition("=")[0] if isinstance(text, str) else ""
        if not isinstance(text, str) or not re.fullmatch(r"[+~]*[\w./@]+=.*", text):
            problems.append(f"{where}: overrides must be a list of key=value, got {text!r}")
        elif key in _TAKEN:
            problems.append(f"{where}: {key} must be left to the block's own keys and to the command, got {text}")
    return [text for text in found if isinstance(text, str)]


def _refuse_unknown(where: str, given: Mapping[str, Any], known: tuple[str, ...], problems: list[str]) -> None:
    for key in given:
        if key not in known:
            problems.append(f"{where} has the key {key!r}, must be one of {', '.join(nearest_first(str(key), known))}")


def _mapping(content: Mapping[str, Any], key: str, problems: list[str]) -> dict[str, Any]:
    found = content.get(key) or {}
    if isinstance(found, dict):
        return found
    problems.append(f"{key} must be keys with values, got {found!r}")
    return {}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


__all__ = ["CONTRASTS", "DIR", "Cell", "read_cells"]
