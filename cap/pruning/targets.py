"""The sparsity that is wanted at each optimizer step of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

Schedule = Callable[[int], float]


def sparsity_problem(sparsity: float) -> str | None:
    """Say what is wrong with a final sparsity; None if nothing is."""
    if 0 <= sparsity < 1:
        return None
    hint = f"; did you mean {sparsity / 100:g}?" if 1 < sparsity < 100 else ""
    return f"sparsity is the fraction of weights pruned and lies in [0, 1), got {sparsity}{hint}"


@dataclass(frozen=True, kw_only=True)
class CubicSchedule:
    """Target sparsity: flat, cubic ramp, flat.

    Args:
        final_sparsity: Fraction of prunable weights at the end, in [0, 1).
        ramp_start: Optimizer step that jumps from 0 to ``initial_sparsity``.
        ramp_end: First optimizer step at ``final_sparsity``, > ``ramp_start``.
        initial_sparsity: Fraction at the start of the ramp.

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
        if step < self.ramp_start:
            return 0.0
        progress = min((step - self.ramp_start) / (self.ramp_end - self.ramp_start), 1.0)
        return cubic(progress, initial=self.initial_sparsity, final=self.final_sparsity)


def cubic(progress: float, *, initial: float, final: float) -> float:
    """Return the sparsity at a part of a cubic ramp, 0 at its start and 1 at its end."""
    return final + (initial - final) * (1.0 - progress) ** 3


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


__all__ = ["CubicSchedule", "Schedule", "StepSchedule", "cubic", "sparsity_problem"]
