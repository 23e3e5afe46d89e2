"""A W&B sweep file as Optuna sees it: what is fixed, and what is searched between which ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from cap.base.errors import InputError

# What a sweep chooses for W&B's sake, or that a study does in its own way.
_NOT_FOR_STUDIES = {"logger", "resume", "sparsity", "seed"}


@dataclass(frozen=True)
class Space:
    """Hold what a study of trials chooses from.

    Args:
        fixed: Arguments of every trial, by key.
        searched: What is chosen anew in each trial, by key.
    """

    fixed: Mapping[str, str]
    searched: Mapping[str, BaseDistribution]

    def arguments(self, chosen: Mapping[str, Any]) -> list[str]:
        """Write one trial's part of the command line."""
        return [f"{key}={value}" for key, value in {**self.fixed, **chosen}.items()]

    def ends(self) -> list[dict[str, Any]]:
        """Return two corners: every range at its lower end and every choice at its first, then the opposite."""
        return [{key: _end(spec, last=last) for key, spec in self.searched.items()} for last in (False, True)]


def read_space(file: Path, given: Mapping[str, str], *, lowest_sparsity: float, highest_sparsity: float) -> Space:
    """Read the parameters of a sweep file and add the sparsity, which is an objective here.

    Args:
        file: A W&B sweep file.
        given: Arguments by key that win over the file's; what they name is not searched.
        lowest_sparsity: Lower end of the search.
        highest_sparsity: Upper end of the search.

    Returns:
        What is fixed, and what is searched.

    Raises:
        InputError: If there is no such file, or a distribution in it has no counterpart.
    """
    if "sparsity" in given:
        raise InputError(
            f"sparsity is one of the two objectives, so a study searches it, got sparsity={given['sparsity']}; "
            f"set lowest_sparsity and highest_sparsity"
        )
    if not 0 <= lowest_sparsity < highest_sparsity < 1:
        raise InputError(
            f"need 0 <= lowest_sparsity < highest_sparsity < 1, got {lowest_sparsity} and {highest_sparsity}"
        )
    try:
        parameters = yaml.safe_load(file.read_text(encoding="utf-8"))["parameters"]
    except (OSError, yaml.YAMLError, TypeError, KeyError) as error:
        raise InputError(
            f"a study takes what it searches from the parameters of a W&B sweep file, got {file}; set task to one that "
            f"sweeps/ has a file for, or space to any file"
        ) from error
    fixed = {key: str(spec["value"]) for key, spec in parameters.items() if "value" in spec and _is_ours(key)}
    searched: dict[str, BaseDistribution] = {"sparsity": FloatDistribution(lowest_sparsity, highest_sparsity)}
    for key, spec in parameters.items():
        if "value" not in spec and key not in given and _is_ours(key):
            searched[key] = _distribution(key, spec)
    return Space({**fixed, **given}, searched)


def _is_ours(key: str) -> bool:
    return key not in _NOT_FOR_STUDIES


def _distribution(key: str, spec: Mapping[str, Any]) -> BaseDistribution:
    if "values" in spec:
        return CategoricalDistribution(spec["values"])
    kind = spec.get("distribution", "uniform")
    if kind not in {"uniform", "int_uniform", "log_uniform_values"} or not {"min", "max"} <= set(spec):
        raise InputError(
            f"a study knows value, values, and min and max with the distributions uniform, int_uniform or "
            f"log_uniform_values, got {dict(spec)} for {key}"
        )
    # As W&B reads it: two whole numbers without a distribution mean whole numbers.
    if kind == "int_uniform" or (
        "distribution" not in spec and isinstance(spec["min"], int) and isinstance(spec["max"], int)
    ):
        return IntDistribution(spec["min"], spec["max"])
    return FloatDistribution(spec["min"], spec["max"], log=kind == "log_uniform_values")


def _end(spec: BaseDistribution, *, last: bool) -> Any:
    if isinstance(spec, CategoricalDistribution):
        return spec.choices[-1 if last else 0]
    if isinstance(spec, FloatDistribution | IntDistribution):
        return spec.high if last else spec.low
    raise TypeError(f"no ends are known of {type(spec).__name__}")


__all__ = ["Space", "read_space"]
