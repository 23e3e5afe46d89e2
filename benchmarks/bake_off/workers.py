"""What a worker of the bake-off uses, and how long its cells take."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field

from benchmarks.bake_off.cells import Cell
from cap.base.errors import InputError

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Slot:
    """Name what one worker uses.

    Args:
        cores: The cores its process is kept on; empty leaves that to the system.
        environment: Variables of its process.
    """

    cores: frozenset[int] = frozenset()
    environment: dict[str, str] = field(default_factory=dict)


def slots(n_workers: int | None) -> list[Slot]:
    """Make the slots: one for each GPU, or two cores with a thread each.

    Args:
        n_workers: How many; None is one for each GPU, or as many as there are cores, at most two.

    Raises:
        InputError: If there are fewer cores than workers.
    """
    gpus, cores = _gpus(), _cores()
    n = n_workers or len(gpus) or min(2, len(cores))
    if gpus:
        n_threads = str(max(1, len(cores) // n))
        return [
            Slot(environment={"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)], **dict.fromkeys(_THREADS, n_threads)})
            for i in range(n)
        ]
    if not 0 < n <= len(cores):
        raise InputError(f"--workers must be at most the number of cores, {len(cores)}, and at least 1, got {n}")
    return [Slot(frozenset({cores[i]}), dict.fromkeys(_THREADS, "1")) for i in range(n)]


class Times:
    """Know how long cells of this call took, and how long one like them will take."""

    def __init__(self) -> None:
        self._seconds: list[tuple[Cell, float]] = []

    def add(self, cell: Cell, seconds: float) -> None:
        """Learn from a cell that has completed."""
        self._seconds.append((cell, seconds))

    def expected(self, cell: Cell, *, spent: float = 0.0) -> float | None:
        """Estimate what is left of a cell: from those with its rows and contrast, else from those with its rows.

        Args:
            cell: It.
            spent: Seconds of its earlier attempts.

        Returns:
            Seconds; None if nothing like it has completed.
        """
        rows = [(other, seconds) for other, seconds in self._seconds if other.task == cell.task]
        alike = [seconds for other, seconds in rows if other.contrast == cell.contrast]
        known = alike or [seconds for _, seconds in rows]
        # Loading and scoring are done again, whatever was spent.
        return max(statistics.median(known) - spent, 0.1 * statistics.median(known)) if known else None


def _gpus() -> list[str]:
    import torch  # takes seconds

    if not torch.cuda.is_available():
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen.split(",") if chosen else [str(index) for index in range(torch.cuda.device_count())]


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


__all__ = ["Slot", "Times", "slots"]
