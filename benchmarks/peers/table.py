"""What the comparisons with other tools have found, as a table and a sentence each."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cap.base.files import read_json
from cap.reports.differences import Difference
from cap.reports.tables import markdown

NOTHING = "Not measured yet."
HEADER = ("task", "prunes", "side", "score", "s/step", "sparsity", "MB", "ms", "opens with", "seeds")


def page_part(folder: Path) -> str:
    """Make what a page shows: all comparisons in one table, who is first in each, and the commands.

    Args:
        folder: Holds a ``peers_*.json`` for each, the ``results.json`` of a comparison.
    """
    found = [read_json(path) for path in sorted(folder.glob("peers_*.json"))]
    if not found:
        return NOTHING
    rows = [row for one in found for row in rows_of(one)]
    commands = ["```", *(one["command"] for one in found), "```"]
    return "\n\n".join([markdown(HEADER, rows), *map(sentence, found), "\n".join(commands)])


def rows_of(results: dict[str, Any]) -> list[list[str]]:
    """Make the rows of one comparison, the highest score first: means over the seeds."""
    rows = []
    for name in in_order(results):
        seeds = list(results["sides"][name]["seeds"].values())
        rows.append(
            [
                label(results),
                results["kind"],
                name,
                with_deviation([seed["score"] for seed in seeds]),
                f"{statistics.fmean(seed['seconds_per_step'] for seed in seeds):.2f}",
                f"{statistics.fmean(seed['sparsity'] for seed in seeds):.4f}",
                f"{seeds[0]['n_bytes'] / 1e6:.1f}",
                f"{results['latency']['milliseconds'][name]['median']:.0f}",
                seeds[0]["opens_with"],
                str(len(seeds)),
            ]
        )
    return rows


def sentence(results: dict[str, Any]) -> str:
    """Say which side is first, and by how much the best of cap's and the best of the others differ."""
    ours, peer = best(results)
    difference = between(results, ours, peer)
    teacher = "no teacher" if results["teacher"] is None else f"teacher {results['teacher']:.3f}"
    return (
        f"{label(results)}, {results['kind']} at {results['sparsity']:g} ({results['metric']}; {teacher}, majority "
        f"class {results['majority']:.3f}; {results['steps']:,} steps each): {in_order(results)[0]} is first; "
        f"{ours} minus {peer}, paired by seed: {difference.judged}."
    )


def best(results: dict[str, Any]) -> tuple[str, str]:
    """Name the side with the highest score among cap's, and among the others."""
    ours = {name: bool(side["is_ours"]) for name, side in results["sides"].items()}
    order = in_order(results)
    return next(name for name in order if ours[name]), next(name for name in order if not ours[name])


def between(results: dict[str, Any], first: str, second: str) -> Difference:
    """Compare the scores of two sides, seed by seed."""
    one, other = (results["sides"][name]["seeds"] for name in (first, second))
    return Difference({int(seed): one[seed]["score"] - other[seed]["score"] for seed in one})


def in_order(results: dict[str, Any]) -> list[str]:
    """Name the sides by their mean scores, the highest first."""
    return sorted(results["sides"], key=lambda name: -mean_score(results, name))


def mean_score(results: dict[str, Any], name: str) -> float:
    """Return the mean of a side's scores over the seeds."""
    return statistics.fmean(seed["score"] for seed in results["sides"][name]["seeds"].values())


def label(results: dict[str, Any]) -> str:
    """Name the task, and how many rows it has."""
    return f"{results['task']}, {results['n_rows']:,} rows"


def with_deviation(scores: Sequence[float]) -> str:
    """Write a mean, and the standard deviation where there is one."""
    mean = f"{statistics.fmean(scores):.3f}"
    return f"{mean} \N{PLUS-MINUS SIGN} {statistics.stdev(scores):.3f}" if len(scores) > 1 else mean


__all__ = ["HEADER", "NOTHING", "best", "between", "in_order", "page_part", "rows_of", "sentence"]
