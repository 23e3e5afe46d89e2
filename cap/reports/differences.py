"""How far two configurations lie apart: differences between runs of the same seed, with their standard error."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass

from cap.reports.tables import Group

_CLEAR = 2.0
"""Standard errors from which a difference is called one."""


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
        return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None

    @property
    def is_clear(self) -> bool:
        """Whether it is two standard errors or more."""
        error = self.standard_error
        return error is not None and abs(self.mean) >= _CLEAR * error and self.mean != 0

    def __str__(self) -> str:
        return self._said()

    @property
    def judged(self) -> str:
        """It, and how many standard errors it is."""
        error = self.standard_error
        if error is None:
            return self._said("from which nothing can be concluded")
        errors = [f"{abs(self.mean) / error:.1f} standard errors"] if error else []
        return self._said(*errors, *([] if self.is_clear else ["no clear difference"]))

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


__all__ = ["Difference", "paired"]
