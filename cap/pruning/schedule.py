"""How much is pruned at which optimizer step.

A plan holds fractions of a run, so that a short run has the shape of a long one; ``over(n_steps)`` makes the
schedule, a callable from step to target sparsity.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

from cap.pruning.targets import CubicSchedule, Schedule, StepSchedule, cubic, sparsity_problem

Rewind = Literal["none", "last", "each"]
# So near to a level of a schedule is the sparsity that somebody types who means it.
_MEANT_WITHIN = 0.005


@runtime_checkable
class SchedulePlan(Protocol):
    """What every choice of ``schedule=`` offers."""

    sparsity: float
    warmup: float
    rewind_warmup: float

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

    def jumps(self, n_steps: int) -> list[int]:
        """Steps at which the masks move whatever ``pruning.every_n_steps`` is; the last one reaches the target."""

    def rewinds(self, n_steps: int) -> list[int]:
        """Steps, 0 excluded, at which the learning rate starts again."""

    def restarts(self, n_steps: int) -> list[int]:
        """Those of them at which the optimizer forgets its moving averages, too."""

    def problems(self, n_steps: int) -> list[str]:
        """Say what cannot work in a run of ``n_steps`` steps, or in any shorter one."""


def _check_fractions(*, flat_before: float = 0.0, flat_after: float = 0.0, **others: float) -> None:
    fractions = {"flat_before": flat_before, "flat_after": flat_after, **others}
    for name, value in fractions.items():
        if not 0 <= value < 1:
            raise ValueError(f"schedule.{name} is a fraction of the run and lies in [0, 1), got {value}")
    if flat_before + flat_after >= 1:
        raise ValueError(
            f"schedule.flat_before + schedule.flat_after must leave room for the pruning itself (< 1), "
            f"got {flat_before} + {flat_after}"
        )


@dataclass(frozen=True, kw_only=True)
class _Plan(ABC):
    """Hold what the plans share: the target, and where the learning rate starts again.

    Args:
        sparsity: Fraction at the end, in [0, 1).
        warmup: Fraction of the run, up to its first rewind, in which the learning rate rises.
        rewind: Where the learning rate starts again: nowhere, at the ``last`` jump, which reaches the target, or at
            ``each`` jump of the sparsity.
        rewind_warmup: Fraction of each part that begins with a rewind in which the learning rate rises.
        restart_optimizer: Forget the optimizer's moving averages there, too (published for structured pruning).
    """

    sparsity: float
    warmup: float = 0.1
    rewind: Rewind = "none"
    rewind_warmup: float = 0.05
    restart_optimizer: bool = False

    def __post_init__(self) -> None:
        problem = sparsity_problem(self.sparsity)
        if problem is not None:
            raise ValueError(problem)
        _check_fractions(warmup=self.warmup, rewind_warmup=self.rewind_warmup)

    @abstractmethod
    def jumps(self, n_steps: int) -> list[int]:
        """Return the steps at which the sparsity jumps, and that at which it reaches the target."""

    @property
    def n_epochs(self) -> int | None:
        """Leave the length of the run to the trainer."""
        return None

    def rewinds(self, n_steps: int) -> list[int]:
        """Return where the learning rate starts again; at step 0 it starts anyway."""
        steps = {"none": [], "last": self.jumps(n_steps)[-1:], "each": self.jumps(n_steps)}[self.rewind]
        return sorted({step for step in steps if 0 < step < n_steps})

    def restarts(self, n_steps: int) -> list[int]:
        """Return the rewinds, if the optimizer starts again with the learning rate."""
        return self.rewinds(n_steps) if self.restart_optimizer else []

    def problems(self, n_steps: int) -> list[str]:
        """Say if a rewind leaves no steps; levels that find no step of their own are passed over.

        A single step has no schedule, and is let through: it tries a command out.
        """
        if self.rewind == "none" or n_steps < 2 or self._target_step(n_steps) < n_steps:
            return []
        return [
            f"schedule.rewind={self.rewind} leaves no steps: a run of {n_steps} steps ends at its target; leave some "
            f"behind that (schedule.flat_before, schedule.flat_after), give it more steps (trainer.max_epochs), or set "
            f"schedule.rewind=none"
        ]

    def _target_step(self, n_steps: int) -> int:
        """Return the step from which the target holds."""
        return self.jumps(n_steps)[-1]


@dataclass(frozen=True, kw_only=True)
class Cubic(_Plan):
    """Plan a cubic rise between two flat phases.

    Further arguments are those that all plans share.

    Args:
        flat_before: Fraction of the run before the rise, at sparsity 0.
        flat_after: Fraction of the run after the rise, at the final sparsity.
        initial_sparsity: Where the rise begins: the sparsity jumps to it at the end of the first flat phase.
        n_prunings: Rise in so many jumps at equal distances, with retraining after each: the first one to
            ``initial_sparsity``, if that is above 0, and the last one to the target. None rises in every step.
    """

    warmup: float = 0.05
    flat_before: float = 0.05
    flat_after: float = 0.45
    initial_sparsity: float = 0.0
    n_prunings: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fractions(flat_before=self.flat_before, flat_after=self.flat_after)
        if not (0 <= self.initial_sparsity < self.sparsity or self.initial_sparsity == 0):
            raise ValueError(
                f"schedule.initial_sparsity is where the rise to sparsity begins, and lies in [0, {self.sparsity}), "
                f"got {self.initial_sparsity}; lower it, or set schedule=oneshot for a single jump"
            )
        fewest = 1 if self.initial_sparsity == 0 else 2
        if self.n_prunings is not None and self.n_prunings < fewest:
            raise ValueError(
                f"schedule.n_prunings must be at least {fewest}"
                f"{', the jump to schedule.initial_sparsity and that to sparsity' if fewest > 1 else ''}, "
                f"got {self.n_prunings}; null prunes in every step of the rise"
            )
        if self.rewind == "each" and self.n_prunings is None:
            raise ValueError(
                "schedule.rewind=each needs prunings with steps between them, but this schedule rises in every step; "
                "set schedule.n_prunings, or schedule.rewind=last for one rewind where the target is reached"
            )
        if self.rewind != "none" and self.flat_after == 0:
            raise ValueError(
                f"schedule.rewind={self.rewind} leaves no steps: the learning rate starts again where the target is "
                f"reached, and schedule.flat_after=0.0 ends the run there; set 0.4, say"
            )

    def over(self, n_steps: int) -> Schedule:
        """Make the schedule; the target is reached before the last step, however short the run."""
        starts, levels = self.level_starts(n_steps), self.levels_reached
        if starts is not None and levels is not None:
            return StepSchedule(levels=levels, starts=tuple(starts))
        if n_steps < 2:
            return StepSchedule(levels=(self.sparsity,), starts=(0,))
        start, end = self._ramp(n_steps)
        return CubicSchedule(
            final_sparsity=self.sparsity, ramp_start=start, ramp_end=end, initial_sparsity=self.initial_sparsity
        )

    @property
    def levels_reached(self) -> tuple[float, ...] | None:
        """Return the sparsity after each pruning; None if there are so many that it rises gradually."""
        if self.n_prunings is None:
            return None
        numbers, n_distances = self._numbers(self.n_prunings)
        levels = [cubic(i / n_distances, initial=self.initial_sparsity, final=self.sparsity) for i in numbers]
        return (self.initial_sparsity or levels[0], *levels[1:])  # without what rounding adds to it

    def level_starts(self, n_steps: int) -> list[int] | None:
        """Return the step of each pruning; None if sparsity rises gradually."""
        if self.n_prunings is None:
            return None
        start, end = self._ramp(n_steps)
        numbers, n_distances = self._numbers(self.n_prunings)
        # Half is rounded up: where there is a step for each, no two prunings share one.
        return [start + (2 * i * (end - start) + n_distances) // (2 * n_distances) for i in numbers]

    def jumps(self, n_steps: int) -> list[int]:
        """Return the step of each pruning; of a gradual rise its first step, if that is a jump, and its last."""
        start, end = self._ramp(n_steps)
        gradual = [end] if self.initial_sparsity == 0 else [start, end]
        return self.level_starts(n_steps) or gradual

    def problems(self, n_steps: int) -> list[str]:
        """Say if prunings find no step of their own, or a rewind leaves none."""
        start, end = self._ramp(n_steps)
        n_most = end - start if self.initial_sparsity == 0 else end - start + 1
        if self.n_prunings is None or self.n_prunings <= n_most:
            return super().problems(n_steps)
        return [
            f"schedule.n_prunings must be at most {n_most} in a run of {n_steps} steps, of which the rise of sparsity "
            f"has {end - start}, got {self.n_prunings}; lower it, or give the run more steps (trainer.max_epochs)",
            *super().problems(n_steps),
        ]

    def _numbers(self, n: int) -> tuple[range, int]:
        """Number the prunings by their distances from the start of the ramp: a jump from 0 to 0 there would be none."""
        return (range(1, n + 1), n) if self.initial_sparsity == 0 else (range(n), n - 1)

    def _ramp(self, n_steps: int) -> tuple[int, int]:
        """Return its first step and that which reaches the target."""
        if n_steps < 2:
            return 0, 0
        end = min(max(self._target_step(n_steps), 1), n_steps - 1)
        return min(round(self.flat_before * n_steps), end - 1), end

    def _target_step(self, n_steps: int) -> int:
        return round((1 - self.flat_after) * n_steps)


@dataclass(frozen=True, kw_only=True)
class Stepwise(_Plan):
    """Plan levels with retraining after each, all of the same length.

    Further arguments are those that all plans share.

    Args:
        flat_before: Fraction of the run before the first level.
        levels: Rising sparsities that end at ``sparsity``; None takes steps of 10 points up to it.
        epochs_per_level: Epochs of retraining after each level; they set the length of the run, which
            ``trainer.max_steps`` may still cut. None spreads the levels over ``trainer.max_epochs``.
    """

    flat_before: float = 0.0
    levels: tuple[float, ...] | list[float] | None = None
    epochs_per_level: int | None = None
    resolved_levels: tuple[float, ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fractions(flat_before=self.flat_before)
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
        return StepSchedule(levels=self.resolved_levels, starts=tuple(self.jumps(n_steps)))

    @property
    def levels_reached(self) -> tuple[float, ...] | None:
        """Return the levels."""
        return self.resolved_levels

    def level_starts(self, n_steps: int) -> list[int] | None:
        """Return the first step of each level."""
        return self.jumps(n_steps)

    def jumps(self, n_steps: int) -> list[int]:
        """Return the first step of each level."""
        first = self.flat_before * n_steps
        length = (n_steps - first) / len(self.resolved_levels)
        return [min(round(first + i * length), n_steps - 1) for i in range(len(self.resolved_levels))]


@dataclass(frozen=True, kw_only=True)
class OneShot(_Plan):
    """Plan a single jump to the target.

    Further arguments are those that all plans share.

    Args:
        flat_before: Fraction of the run before the jump; scores that are learned need some.
    """

    flat_before: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fractions(flat_before=self.flat_before)

    def over(self, n_steps: int) -> Schedule:
        """Make the schedule."""
        return StepSchedule(levels=(self.sparsity,), starts=tuple(self.jumps(n_steps)))

    @property
    def levels_reached(self) -> tuple[float, ...] | None:
        """Return the target, the only one."""
        return (self.sparsity,)

    def level_starts(self, n_steps: int) -> list[int] | None:
        """Return the step of the jump."""
        return self.jumps(n_steps)

    def jumps(self, n_steps: int) -> list[int]:
        """Return the step of the jump."""
        return [min(self._target_step(n_steps), n_steps - 1)]

    def _target_step(self, n_steps: int) -> int:
        return round(self.flat_before * n_steps)


def snapshot_steps(plan: SchedulePlan, n_steps: int, n_snapshots: int) -> list[int]:
    """Choose the optimizer steps at which snapshots are taken.

    Args:
        plan: The schedule.
        n_steps: Optimizer steps of the run.
        n_snapshots: How many at most. Of a gradual schedule, and of one with a single rise, these are equally spaced
            over the run; of one with levels they lie before its rises after the first, as evenly among these as can be
            and with the last one.

    Returns:
        Rising steps, none of them 0: the student is there what it starts from, whose encodings exist already.

    Source: CAP's released scripts: before each rise of sparsity after the first (structured; at most nine), at the
    start of each epoch after the first of ten (unstructured).
    """
    starts = plan.level_starts(n_steps) or []
    rises = sorted({step for step in starts[1:] if 0 < step < n_steps})
    if not rises:
        steps = [round(i * n_steps / (n_snapshots + 1)) for i in range(1, n_snapshots + 1)]
        return sorted({step for step in steps if 0 < step < n_steps})
    n_taken = min(n_snapshots, len(rises))
    return [rises[i * len(rises) // n_taken - 1] for i in range(1, n_taken + 1)]


def held_level(asked: float, plan: SchedulePlan) -> float | None:
    """Find the level of a schedule that is meant by a sparsity of a few digits.

    Args:
        asked: A sparsity, like 0.82 for a level of 0.8203703703703704.
        plan: Of the run.

    Returns:
        The level, if one lies within 0.005; ``asked`` itself where sparsity rises gradually and passes all; else None.
    """
    held = plan.levels_reached
    if held is None:
        return asked
    nearest = min(held, key=lambda level: abs(level - asked))
    return nearest if abs(nearest - asked) <= _MEANT_WITHIN else None


def _ten_point_levels(sparsity: float) -> tuple[float, ...]:
    tens = [round(0.1 * i, 10) for i in range(1, 10)]
    return (*[level for level in tens if level < sparsity - 1e-9], sparsity)


def stride_problem(every_n_steps: Any, plan: SchedulePlan) -> str | None:
    """Say what is wrong with a number of steps between two moves of the masks; None if it fits the schedule."""
    if every_n_steps is None:
        if plan.level_starts(1) is not None:
            return None
        return (
            "is null, which moves masks at the jumps of the schedule alone, but this one rises in every step; set a "
            "number of steps, or schedule.n_prunings"
        )
    if isinstance(every_n_steps, int) and not isinstance(every_n_steps, bool) and every_n_steps >= 1:
        return None
    return f"must be a whole number of at least 1, got {every_n_steps!r}"


__all__ = ["Cubic", "OneShot", "SchedulePlan", "Stepwise", "held_level", "snapshot_steps", "stride_problem"]
