"""Numbers that others published, each with its source: the rows of ``published.csv``.

A score is a fraction on the official validation rows; sparsity is the fraction of encoder weights that are zero or
gone, as the source counts. ``distilled`` is empty where the source does not say, or nothing was pruned. ``drawn``
marks the few methods that a picture has room for: those that cap has, too, and the strongest.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

COLUMNS = ("task", "metric", "method", "sparsity", "score", "model", "distilled", "source", "note", "drawn")


@dataclass(frozen=True)
class Published:
    """Hold one published score.

    Args:
        task: The word that follows ``task=``.
        metric: The score's name, as records have it.
        method: What was pruned how, in the source's words.
        sparsity: A fraction.
        score: A fraction.
        model: The model that was pruned.
        distilled: Whether a teacher's outputs were learned from; None if the source does not say.
        source: Where the number was read.
        note: What is doubtful or different about it; empty for most.
        drawn: Whether pictures show it.
    """

    task: str
    metric: str
    method: str
    sparsity: float
    score: float
    model: str
    distilled: bool | None
    source: str
    note: str
    drawn: bool


@cache
def published() -> tuple[Published, ...]:
    """Read every row of the data file."""
    text = files("cap.reports").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(_row(row) for row in csv.DictReader(text.splitlines()))


def published_for(panels: Iterable[tuple[str, str]]) -> list[Published]:
    """Select the rows of some tasks.

    Args:
        panels: Pairs of task and metric.

    Returns:
        The rows with one of these very pairs, in the file's order.
    """
    wanted = set(panels)
    return [row for row in published() if (row.task, row.metric) in wanted]


def _row(row: dict[str, str]) -> Published:
    return Published(
        task=row["task"],
        metric=row["metric"],
        method=row["method"],
        sparsity=float(row["sparsity"]),
        score=float(row["score"]),
        model=row["model"],
        distilled={"yes": True, "no": False}.get(row["distilled"]),
        source=row["source"],
        note=row["note"],
        drawn=row["drawn"] == "yes",
    )


__all__ = ["COLUMNS", "Published", "published", "published_for"]
