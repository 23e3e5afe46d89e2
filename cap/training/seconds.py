"""What the phases of a run took, over all attempts at it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

# What a later attempt finds done: an earlier one may have paid for it. Training keeps count in its checkpoints.
_PREPARATION = ("data", "teacher", "encode")


class PhaseSeconds:
    """Time the phases of a run; it starts when this is made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._own: dict[str, float] = {}
        self._earlier: dict[str, float] = {}
        self._trained_before = 0.0
        self._total: float | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; one that does not come to its end is not counted."""
        started = time.perf_counter()
        yield
        self._own[name] = time.perf_counter() - started

    def take_over(self, earlier: Mapping[str, float]) -> None:
        """Add what an interrupted attempt at this run took for its preparation.

        Args:
            earlier: What ``by_phase`` gave there.
        """
        self._earlier = {name: earlier[name] for name in _PREPARATION if name in earlier}

    def note_training(self, *, before: float, within: Mapping[str, float]) -> None:
        """Complete the phase ``fit``.

        Args:
            before: Seconds of training before this attempt.
            within: By name, what is part of training and shown apart from it; over all attempts.
        """
        self._own["fit"] += before
        self._trained_before = before
        for name, seconds in within.items():
            if seconds:
                self._own[name] = seconds
                self._own["fit"] -= seconds  # so that the phases add up

    def end(self) -> None:
        """End the run."""
        self._total = time.perf_counter() - self._started + self._trained_before + sum(self._earlier.values())

    def by_phase(self) -> dict[str, float]:
        """Return the seconds of each phase that is over, and of the whole run if it is."""
        names = dict.fromkeys([*self._own, *self._earlier])
        found = {name: self._own.get(name, 0.0) + self._earlier.get(name, 0.0) for name in names}
        if self._total is not None:
            found["total"] = self._total
        return {name: round(seconds, 3) for name, seconds in found.items()}


__all__ = ["PhaseSeconds"]
