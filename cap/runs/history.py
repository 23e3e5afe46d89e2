"""The curves of a run, read back from the ``metrics.csv`` that Lightning's ``CSVLogger`` writes."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Series:
    """Hold one logged quantity.

    Args:
        steps: Optimizer steps, rising.
        values: What was logged at each, finite.
    """

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True)
class History:
    """Hold everything that a run logged.

    Args:
        series: By the name it was logged under, e.g. ``pruning/sparsity``; never an empty one.
    """

    series: dict[str, Series] = field(default_factory=dict)

    def get(self, name: str) -> Series | None:
        """Return one series, or None if it was never logged."""
        return self.series.get(name)


def read_history(path: Path) -> History:
    """Read one ``metrics.csv``.

    Args:
        path: The file; one that does not exist gives an empty history.

    Returns:
        A series for each column but ``step``, without its empty cells. Where a step was logged twice, as after a
        resume, the later row counts. Cells that hold no finite number are left out.
    """
    points: dict[str, dict[int, float]] = {}
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    # A killed process may leave its last row cut within a number: only rows that were ended count.
    for row in csv.DictReader(text[: text.rfind("\n") + 1].splitlines()):
        step = _number(row.pop("step", None))
        if step is None:
            continue
        for name, cell in row.items():
            value = _number(cell)
            if value is not None:
                points.setdefault(name, {})[int(step)] = value
    return History({name: _series(cells) for name, cells in points.items()})


def _number(cell: object) -> float | None:
    # The reader gives None for a cell that a short row lacks and a list for those a long row has too many.
    try:
        value = float(cell) if isinstance(cell, str) else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _series(cells: dict[int, float]) -> Series:
    steps = sorted(cells)
    return Series(np.array(steps, dtype=np.int64), np.array([cells[step] for step in steps], dtype=np.float64))


__all__ = ["History", "Series", "read_history"]
