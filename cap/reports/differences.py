"""How far two configurations lie apart: differences between runs of the same seed, with their standard error."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from cap.reports.tables import Group
from cap.runs.reading import at

_CLEAR = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""Standard errors from which a difference is called one: Student's t of one degree of freedom and more, 5 %, two-sided.

Few seeds estimate their own spread badly: with two of them, two standard errors are seen in 30 of 100 cases where there
is no difference at all. Of more seeds than are listed the last number counts, which asks a little too much.
"""
_ROUNDING = 1e-12
"""What equal differences of scores can lie apart."""


@dataclass(frozen=True)
class Difference:
    """Hold the differences between runs of the same seed.

    Args:
        by_seed: Each as a fraction, by seed; at least one.
    """

    by_seed: dict[int, float]

    @property
    def mean(self) -> float:
        """Their mean."""
        return statistics.fmean(self.by_seed.values())

    @property
    def standard_error(self) -> float | None:
        """Of the mean: sample standard deviation over the root of their number; None for a single seed."""
        values = list(self.by_seed.values())
        if len(values) < 2:
            return None
        error = statistics.stdev(values) / math.sqrt(len(values))
        return error if error > _ROUNDING else 0.0

    @property
    def is_clear(self) -> bool:
        """Whether chance alone would give as much in fewer than 5 of 100 cases.

        Scores are whole numbers of rows: few seeds may differ by exactly as much, which says nothing of their error.
        """
        error = self.standard_error
        return error is not None and error > 0 and abs(self.mean) >= self._needed * error

    @property
    def _needed(self) -> float:
        """Standard errors that make a difference of so many seeds clear."""
        return _CLEAR[min(len(self.by_seed) - 1, len(_CLEAR)) - 1]

    def __str__(self) -> str:
        return self._said()

    @property
    def judged(self) -> str:
        """It, and how many standard errors it is."""
        error = self.standard_error
        if error is None:
            return self._said("from which nothing can be concluded")
        if not error:
            return self._said("no error known" if self.mean else "no difference")
        found = abs(self.mean) / error
        digits = next((n for n in (1, 2) if round(found, n) != round(self._needed, n)), 3)
        unclear = [] if self.is_clear else [f"not clear below {self._needed:.{digits}f}"]
        return self._said(f"{found:.{digits}f} standard errors", *unclear)

    def _said(self, *remarks: str) -> str:
        error, n = self.standard_error, len(self.by_seed)
        spread = "" if error is None else f" \N{PLUS-MINUS SIGN} {100 * error:.2f}"
        remarks = ("one seed" if n == 1 else f"{n} seeds", *remarks)
        return f"{100 * self.mean:+.2f}{spread} points ({', '.join(remarks)})"


def paired(group: Group, base: Group) -> Difference | None:
    """Compare the scores of two groups on the seeds that both have; None if there is none."""
    scores = {run.seed: run.score for run in base.runs}
    found = {
        run.seed: run.score - other
        for run in group.runs
        if run.seed is not None and run.score is not None and (other := scores.get(run.seed)) is not None
    }
    return Difference(found) if found else None


@dataclass(frozen=True)
class Comparison:
    """Hold the highest row of a task, model and sparsity beside another one.

    Args:
        highest: That of the highest mean among those with the most seeds.
        other: Another row of the same place.
        difference: Highest minus other, of runs of one seed.
    """

    highest: Group
    other: Group
    difference: Difference


COMPARISON_HEADER = ("task", "model", "sparsity asked", "highest", "other", "highest minus other")
COMPARISON_CAPTION = (
    "For each task, its data, model and sparsity the row of the highest mean, of those with the most seeds, minus "
    "every other: mean \N{PLUS-MINUS SIGN} standard error over the runs of one seed, in points. Rows of two pruning "
    "types may differ in other settings, too, in steps and teacher among them. The highest of many rows is partly the "
    "luckiest: a clear difference means less the more rows there are."
)


def comparisons(groups: Sequence[Group]) -> list[Comparison]:
    """Compare the highest row of each task, model and sparsity with the others there.

    Args:
        groups: Rows of a report.

    Returns:
        Comparisons in the order of the rows' means; none with a row that has no seed in common with the highest, and
        none of runs on other data.
    """
    places: dict[tuple[object, ...], list[Group]] = defaultdict(list)
    for group in groups:
        run = group.first
        rows = (at(run.record, "data", "fingerprint"), run.settings.get("data.max_eval_rows"))
        places[run.task, run.model, run.metric, run.asked, *rows].append(group)
    found = []
    for rivals in places.values():
        order = sorted(rivals, key=lambda group: (-group.seeds, -(group.mean("score") or 0.0)))
        highest, *others = order
        for other in sorted(others, key=lambda group: -(group.mean("score") or 0.0)):
            if (difference := paired(highest, other)) is not None:
                found.append(Comparison(highest, other, difference))
    return found


def comparison_rows(groups: Sequence[Group]) -> list[list[str]]:
    """Write the comparisons, a row each, below ``COMPARISON_HEADER``."""
    return [
        [
            *_place(one),
            _name(one.highest),
            _name(one.other),
            one.difference.judged,
        ]
        for one in comparisons(groups)
    ]


def comparisons_csv(groups: Sequence[Group]) -> str:
    """Write the comparisons with all digits, as fractions, and the difference of every seed."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["task", "model", "asked", "metric", "highest", "other", "mean", "standard_error", "by_seed"])
    for one in comparisons(groups):
        by_seed = " ".join(f"{seed}:{value}" for seed, value in one.difference.by_seed.items())
        names = [one.highest.first.metric, _name(one.highest), _name(one.other)]
        error = one.difference.standard_error
        writer.writerow([*_place(one), *names, one.difference.mean, "" if error is None else error, by_seed])
    return lines.getvalue()


def _place(one: Comparison) -> tuple[str, str, str]:
    run = one.highest.first
    return run.task, run.model, "" if run.asked is None else f"{run.asked:g}"


def _name(group: Group) -> str:
    run = group.first
    return ", ".join(filter(None, [run.pruning, f"contrast {run.contrast}", group.note]))


__all__ = [
    "COMPARISON_CAPTION",
    "COMPARISON_HEADER",
    "Comparison",
    "Difference",
    "comparison_rows",
    "comparisons",
    "comparisons_csv",
    "paired",
]
