"""Estimate a run beforehand: steps, path of the weights, parameters, banks, minutes.

Adam moves a weight by about the learning rate a step, so the sum of the learning rates, the path, bounds how far a
weight can go: what is pruned can be made up for only on the path that is left after the final sparsity is reached.
"""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from typing import Any

from cap.pruning.masks import n_to_prune
from cap.pruning.parameters import own_parameters
from cap.pruning.schedule import Cubic, SchedulePlan
from cap.training.module import CapModule, Optimisation

log = logging.getLogger(__name__)

# A rule of thumb, to be set from measurements: from this sparsity on, runs with a shorter path after the target are
# warned of. Weights of the encoders that are pruned here have standard deviations of a few hundredths.
SHORT_PATH = 0.02
HIGH_SPARSITY = 0.9


@dataclass(frozen=True, kw_only=True)
class Dynamics:
    """Hold what is known of a run before it trains.

    Args:
        steps: Optimizer steps.
        steps_after_target: Of them, those at the final sparsity.
        path: Sum of the learning rates of the encoder's weights over the steps; 0 where these keep their values.
        path_after_target: Of it, the part at the final sparsity.
        trained: Parameters in the optimizer, scores not counted.
        frozen: Parameters of the student that are not in it.
        kept: Of both together, those that are not pruned when the target is met.
        encodings: How many the banks hold of each training example.
        bank_disk_gb: What they and the teacher's hidden states take on disk, in GiB.
        bank_memory_gb: Of that, what is read into memory, over all processes of a machine.
    """

    steps: int
    steps_after_target: int
    path: float
    path_after_target: float
    trained: int
    frozen: int
    kept: int
    encodings: int
    bank_disk_gb: float
    bank_memory_gb: float

    def record(self) -> dict[str, Any]:
        """Return it for the record, where the minutes come once steps were timed."""
        return {**asdict(self), "minutes_estimated": None}

    def table(self) -> str:
        """Return one aligned line per number: its name in the record, its value, and what it is."""
        rows = {
            "steps": (f"{self.steps:,}", "optimizer steps"),
            "steps_after_target": (f"{self.steps_after_target:,}", "of them at the final sparsity"),
            "path": (f"{self.path:.4g}", "sum of the learning rates: about how far a weight can move"),
            "path_after_target": (f"{self.path_after_target:.4g}", "of it at the final sparsity"),
            "trained": (f"{self.trained:,}", "parameters in the optimizer, without scores"),
            "frozen": (f"{self.frozen:,}", "parameters that keep their values"),
            "kept": (f"{self.kept:,}", "parameters that are left at the final sparsity"),
            "encodings": (f"{self.encodings:,}", "of each training example, in the banks"),
            "bank_disk_gb": (f"{self.bank_disk_gb:.3f}", "GiB that these and hidden states take on disk"),
            "bank_memory_gb": (f"{self.bank_memory_gb:.3f}", "GiB of that in memory; the rest is memory-mapped"),
        }
        names, values = (max(map(len, column)) for column in (rows, [value for value, _ in rows.values()]))
        return "\n".join(f"  {name:<{names}}  {value:>{values}}  {what}" for name, (value, what) in rows.items())

    def say(self, plan: SchedulePlan, *, max_steps: int, prunes: bool) -> str | None:
        """Log the table, and the warning if there is one, which is returned.

        Args:
            plan: As in ``warning``.
            max_steps: Likewise.
            prunes: Whether there is anything to recover from.
        """
        log.info("what this run is going to do:\n%s", self.table())
        warning = self.warning(plan, max_steps=max_steps) if prunes else None
        if warning is not None:
            log.warning(warning)
        return warning

    def warning(self, plan: SchedulePlan, *, max_steps: int) -> str | None:
        """Say if a run at a high sparsity leaves its weights no way to recover; None if it does not look so.

        Args:
            plan: How sparsity rises, and where the learning rate starts again.
            max_steps: ``trainer.max_steps``, which may be what ends the run.
        """
        sparsity, rewinds = plan.sparsity, bool(plan.rewinds(self.steps))
        # Without any path nothing is meant to recover: masks alone are learned, or a step only prunes.
        if sparsity < HIGH_SPARSITY or self.path_after_target >= SHORT_PATH or self.path == 0:
            return None
        length = "trainer.max_epochs" if plan.n_epochs is None else "schedule.epochs_per_level"
        length = "trainer.max_steps" if self.steps == max_steps else length
        keys = ["learning_rate", length, *(["schedule.flat_after"] if isinstance(plan, Cubic) else [])]
        way = f"raise {', '.join(keys[:-1])} or {keys[-1]}"
        way += "" if rewinds or plan.jumps(self.steps)[-1] == 0 else ", or set schedule.rewind=last"
        return (
            f"After sparsity {sparsity:g} is reached, a weight can move by about {self.path_after_target:.2g} "
            f"(path_after_target, the sum of the learning rates of {self.steps_after_target:,} steps), which by rule "
            f"of thumb should be {SHORT_PATH:g} at least; {way}."
        )


def planned_steps(
    n_batches: int, *, limit: int | float, accumulate_grad_batches: int, max_epochs: int, max_steps: int
) -> int:
    """Count the optimizer steps of a run as Lightning will.

    Args:
        n_batches: Batches that each process has in an epoch.
        limit: ``trainer.limit_train_batches``: a whole number counts batches, any other is a fraction of them.
        accumulate_grad_batches: Batches of a step; the last step of an epoch may have fewer.
        max_epochs: -1 for no limit.
        max_steps: Likewise; one of the two is not -1.
    """
    limited = min(n_batches, limit) if isinstance(limit, int) else int(n_batches * limit)
    n_steps = math.ceil(limited / accumulate_grad_batches) * max_epochs if max_epochs != -1 else max_steps
    return min(n_steps, max_steps) if max_steps != -1 else n_steps


def path_length(optimisation: Optimisation, n_steps: int, *, start: int = 0) -> float:
    """Sum the learning rates of the weights over the steps of a run.

    Args:
        optimisation: Says what they are.
        n_steps: Optimizer steps of the run.
        start: First step that counts.
    """
    return optimisation.learning_rate * math.fsum(map(optimisation.over(n_steps), range(start, n_steps)))


def count_parameters(module: CapModule, sparsity: float) -> dict[str, int]:
    """Count what of a student is trained, frozen, and kept at a sparsity.

    Args:
        module: With its masks on, if it has any.
        sparsity: Fraction of the prunable weights that will be zero; biases that go with pruned units are not counted
            as pruned.
    """
    pruner = module.pruner
    own = own_parameters(pruner)
    in_optimizer = {id(p) for group in module.parameter_groups() for p in group["params"]}
    weights = [p for p in module.student.parameters() if id(p) not in own]
    trained = sum(p.numel() for p in weights if id(p) in in_optimizer)
    n_all = sum(p.numel() for p in weights)
    n_prunable = sum(mask.numel() for mask in pruner.masks.values()) if pruner is not None else 0
    return {"trained": trained, "frozen": n_all - trained, "kept": n_all - n_to_prune(sparsity, n_prunable)}


__all__ = [
    "HIGH_SPARSITY",
    "SHORT_PATH",
    "Dynamics",
    "count_parameters",
    "path_length",
    "planned_steps",
]
