"""How much is pruned at which optimizer step.

A plan holds fractions of a run, so that a short run has the shape of a long one; ``over(n_steps)`` makes the
schedule, a callable from step to target sparsity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, runtime_checkable

Schedule = Callable[[int], float]


@runtime_checkable
class SchedulePlan(Protocol):
    """What every choice of ``schedule=`` offers."""

    warmup: float

    @property
    def n_epochs(self) -> int | None:
        """Epochs that the plan itself asks for; None leaves it to the trainer."""

    def over(self, n_steps: int) -> Schedule:
        """Make the schedule of a run of ``n_steps`` optimizer steps."""

    def level_starts(self, n_steps: int) -> list[int] | None:
        """Steps at which sparsity jumps; None when it rises gradually."""

    @property
    def levels_reached(self) -> tuple[float, ...] | None:
        """The sparsities it holds; None where it rises gradually and passes all."""

    def restarts(self, n_steps: int) -> list[int]:
        """Steps, 0 excluded, at which optimizer and learning-rate schedule start anew."""


@dataclass(frozen=True, kw_only=True)
class CubicSchedule:
    """Target sparsity: flat, cubic ramp, flat.

    Args:
        final_sparsity: Fraction of prunable weights at the end, in [0, 1).
        ramp_start: Last optimizer step at ``initial_sparsity``.
        ramp_end: First optimizer step at ``final_sparsity``, > ``ramp_start``.
        initial_sparsity: Fraction at the start.

    Source: arXiv:1710.01878, equation 1.
    """

    final_sparsity: float
    ramp_start: int
    ramp_end: int
    initial_sparsity: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.initial_sparsity <= self.final_sparsity < 1:
            raise ValueError(
                f"need 0 <= initial_sparsity <= final_sparsity < 1, got {self.initial_sparsity} and "
                f"{self.final_sparsity} (sparsity is the fraction pruned: 0.97, not 97 and not 0.03)"
            )
        if not 0 <= self.ramp_start < self.ramp_end:
            raise ValueError(f"need 0 <= ramp_start < ramp_end, got {self.ramp_start} and {self.ramp_end}")

    def __call__(self, step: int) -> float:
        """Return the target sparsity at an optimizer step."""
        progress = (step - self.ramp_start) / (self.ramp_end - self.ramp_start)
        remaining = 1.0 - min(max(progress, 0.0), 1.0)
        return self.final_sparsity + (self.initial_sparsity - self.final_sparsity) * remaining**3


@dataclass(frozen=True, kw_only=True)
class StepSchedule:
    """Target sparsity: constant levels, each from its own step on.

    Args:
        levels: Sparsity of each level, rising, in [0, 1).
        starts: First optimizer step of each level, rising; before the first the sparsity is 0.
    """

    levels: tuple[float, ...]
    starts: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.starts) or not self.levels:
            raise ValueError(f"every level needs one start, got levels {self.levels} and starts {self.starts}")
        if any(a > b for a, b in pairwise(self.starts)) or any(a > b for a, b in pairwise(self.levels)):
            raise ValueError(f"levels and their starts must not fall, got {self.levels} and {self.starts}")
        if not 0 <= self.levels[0] <= self.levels[-1] < 1:
            raise ValueError(f"sparsity is the fraction of weights pruned and lies in [0, 1), got {self.levels}")

    def __call__(self, step: int) -> float:
        """Return the target sparsity at an optimizer step."""
        reached = [level for level, start in zip(self.levels, self.starts, strict=True) if step >= start]
        return reached[-1] if reached else 0.0


def _check_fractions(*, sparsity: float, warmup: float, flat_before: float, flat_after: float) -> None:
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is the fraction of weights pruned and lies in [0, 1), got {sparsity}")
    fractions = {"warmup": warmup, "flat_before": flat_before, "flat_after": flat_after}
    for name, value in fractions.items():
        if not 0 <= value < 1:
            raise ValueError(f"schedule.{name} is a fraction of the run and lies in [0, 1), got {value}")
    if flat_before + flat_after >= 1:
        raise ValueError(
            f"schedule.flat_before + schedule.flat_after must leave room for the pruning itself (< 1), "
            f"got {flat_before} + {flat_after}"
        )


@dataclass(frozen=True, kw_only=True)
class Cubic:
    """Plan a cubic rise between two flat phases.

    Args:
        sparsity: Fraction at the end, in [0, 1).
        warmup: Fraction of the run in which the learning rate rises.
        flat_before: Fraction of the run before the rise, at sparsity 0.
        flat_after: Fraction of the run after the rise, at the final sparsity.
    """

    sparsity: float
    warmup: float
    flat_before: float
    flat_after: float

    def __post_init__(self) -> None:
        _check_fractions(
            sparsity=self.sparsity, warmup=self.warmup, flat_before=self.flat_before, flat_after=self.flat_after
        )

    @property
    def n_epochs(self) -> int | None:
        """Leave the length of the run to the trainer."""
        return None

    def over(self, n_steps: int) -> Schedule:
        """Make the schedule; the target is reached before the last step, however short the run."""
        if n_steps < 2:
            return StepSchedule(levels=(self.sparsity,), starts=(0,))
        end = min(max(round((1 - self.flat_after) * n_steps), 1), n_steps - 1)
        start = min(round(self.flat_before * n_steps), end - 1)
        return CubicSchedule(final_sparsity=self.sparsity, ramp_start=start, ramp_end=end)

    @property
    def levels_reached(self) -> tuple[float, ...] | None:
        """Return None: sparsity rises gradually."""
        return None

    def level_starts(self, n_steps: int) -> list[int] | None:
        """Return None: sparsity rises gradually."""
        return None

    def restarts(self, n_steps: int) -> list[int]:
        """Return none: it is one run."""
        return []


@dataclass(frozen=True, kw_only=True)
class Stepwise:
    """Plan levels with retraining after each, all of the same length.

    Args:
        sparsity: Fraction at the last level, in [0, 1).
        warmup: Fraction in which the learning rate rises: of each level if ``restart``, else of the run.
        flat_before: Fraction of the run before the first level.
        levels: Rising sparsities that end at ``sparsity``; None takes steps of 10 points up to it.
        epochs_per_level: Epochs of retraining after each level; they set the length of the run, which
            ``trainer.max_steps`` may still cut. None spreads the levels over ``trainer.max_epochs``.
        restart: Start optimizer and learning-rate schedule anew at each level (published for structured pruning).
    """

    sparsity: float
    warmup: float
    flat_before: float = 0.0
    levels: tuple[float, ...] | list[float] | None = None
    epochs_per_level: int | None = None
    restart: bool = True
    resolved_levels: tuple[float, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        _check_fractions(sparsity=self.sparsity, warmup=self.warmup, flat_before=self.flat_before, flat_after=0.0)
        levels = tuple(self.levels) if self.levels is not None else _ten_point_levels(self.sparsity)
        is_rising = all(a < b for a, b in pairwise(levels))
        if not levels or not is_rising or levels[0] < 0 or abs(levels[-1] - self.sparsity) > 1e-9:
            raise ValueError(
                f"schedule.levels must rise and end at sparsity={self.sparsity}, got {list(levels)}; "
                f"leave schedule.levels out for steps of 10 points"
            )
        if self.epochs_per_level is not None and self.epochs_per_level < 1:
            raise ValueError(f"schedule.epochs_per_level must be at least 1, got {self.epochs_per_level}")
        object.__setattr__(self, "resolved_levels", levels)

    @property
    def n_epochs(self) -> int | None:
        """Epochs for all levels, plus the flat phase before them."""
        if self.epochs_per_level is None:
            return None
        return max(1, round(len(self.resolved_levels) * self.epochs_per_level / (1 - self.flat_before)))

    def over(self, n_steps: int) -> Schedule:
        """Make the schedule; levels that find no step of their own in a short run are passed over."""
        return StepSchedule(levels=self.resolved_levels, starts=tuple(self._starts(n_steps)))

    @property
    def levels_reached(self) -> tuple[float, ...] | None:
        """Return the levels."""
        return self.resolved_levels

    def level_starts(self, n_steps: int) -> list[int] | None:
        """Return the first step of each level."""
        return self._starts(n_steps)

    def restarts(self, n_steps: int) -> list[int]:
        """Return the first step of each level, if each is a training of its own."""
        return sorted({start for start in self._starts(n_steps) if start > 0}) if self.restart else []

    def _starts(self, n_steps: int) -> list[int]:
        first = self.flat_before * n_steps
        length = (n_steps - first) / len(self.resolved_levels)
        return [min(round(first + i * length), n_steps - 1) for i in range(len(self.resolved_levels))]


@dataclass(frozen=True, kw_only=True)
class OneShot:
    """Plan a single jump to the target.

    Args:
        sparsity: Fraction from the jump on, in [0, 1).
        warmup: Fraction of the run in which the learning rate rises.
        flat_before: Fraction of the run before the jump; scores that are learned need some.
    """

    sparsity: float
    warmup: float
    flat_before: float

    def __post_init__(self) -> None:
        _check_fractions(sparsity=self.sparsity, warmup=self.warmup, flat_before=self.flat_before, flat_after=0.0)

    @property
    def n_epochs(self) -> int | None:
        """Leave the length of the run to the trainer."""
        return None

    def over(self, n_steps: int) -> Schedule:
        """Make the schedule."""
        return StepSchedule(levels=(self.sparsity,), starts=(self._start(n_steps),))

    @property
    def levels_reached(self) -> tuple[float, ...] | None:
        """Return the target, the only one."""
        return (self.sparsity,)

    def level_starts(self, n_steps: int) -> list[int] | None:
        """Return the step of the jump."""
        return [self._start(n_steps)]

    def restarts(self, n_steps: int) -> list[int]:
        """Return none: it is one run."""
        return []

    def _start(self, n_steps: int) -> int:
        return min(round(self.flat_before * n_steps), n_steps - 1)


def _ten_point_levels(sparsity: float) -> tuple[float, ...]:
    tens = [round(0.1 * i, 10) for i in range(1, 10)]
    return (*[level for level in tens if level < sparsity - 1e-9], sparsity)


__all__ = ["Cubic", "CubicSchedule", "OneShot", "Schedule", "SchedulePlan", "StepSchedule", "Stepwise"]
