"""Read what may be missing in a record: older versions of cap wrote fewer keys."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

TERMS = {"pretrained": "PrC", "snapshots": "SnC", "finetuned": "FiC"}
"""The contrastive terms: the switch below ``contrast``, and the paper's name."""


def at(node: object, *keys: str) -> Any:
    """Follow keys down; None as soon as one is missing or null."""
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def mapping(value: object) -> Mapping[str, Any]:
    """Return a mapping as it is, and an empty one in place of anything else."""
    return value if isinstance(value, Mapping) else {}


def named(value: object) -> str:
    """Return the name that a node of the configuration bears, or is; empty where there is none."""
    name = value.get("name") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) else ""


def number(value: object) -> float | None:
    """Return a finite number as a float, and None in place of anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None  # type: ignore[arg-type]


def first_number(*values: object) -> float | None:
    """Return the first finite number."""
    return next((found for value in values if (found := number(value)) is not None), None)


def is_held_out(record: Mapping[str, Any]) -> bool:
    """Say whether a run was scored on training rows that it did not learn from, in place of the validation rows."""
    return at(record, "config", "data", "held_out_rows") is not None


__all__ = ["TERMS", "at", "first_number", "is_held_out", "mapping", "named", "number"]
