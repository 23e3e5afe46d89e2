"""Lightning's ModelPruning."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning.pytorch.callbacks import ModelPruning
from omegaconf import DictConfig
from torch import nn

from benchmarks.peers.student import Outcome, begin, train_student
from cap.base.errors import InputError
from cap.models.families import prunable_linears
from cap.training.preparation import Prepared
from cap.training.ready import Ready


def run_model_pruning(cfg: DictConfig) -> Outcome:
    """Train the student with Lightning's ModelPruning, which moves its masks at the end of epochs."""
    start = begin(cfg)
    linears = list(prunable_linears(start.model).values())
    amounts = amounts_by_epoch(start.ready.config.sparsity, start.ready.config.trainer.max_epochs)
    return train_student(start, model_pruning(linears, amounts))


def require_epochs(ready: Ready, prepared: Prepared) -> None:
    """Refuse a run that has no end of an epoch to prune at.

    Raises:
        InputError: If it has fewer than two epochs, or counts steps.
    """
    trainer = ready.config.trainer
    if trainer.max_steps > 0 or trainer.max_epochs < 2:
        raise InputError(
            f"ModelPruning prunes at the end of epochs, so that trainer.max_epochs must be at least 2 and "
            f"trainer.max_steps -1, got {trainer.max_epochs} and {trainer.max_steps}; set both"
        )


def model_pruning(linears: Sequence[nn.Linear], amounts: Sequence[float]) -> ModelPruning:
    """Set Lightning's callback up to prune the weights of some layers by magnitude, all ranked together.

    By default it would prune biases and embeddings, too, and put weights back to where they began at each pruning.

    Args:
        linears: Their biases are left alone.
        amounts: By epoch, the fraction of the weights that are left which goes at its end; of later ones 0.
    """
    return ModelPruning(
        "l1_unstructured",
        parameters_to_prune=[(linear, "weight") for linear in linears],
        use_global_unstructured=True,
        amount=lambda epoch: amounts[epoch] if epoch < len(amounts) else 0.0,
        use_lottery_ticket_hypothesis=False,
        make_pruning_permanent=True,
    )


def amounts_by_epoch(sparsity: float, n_epochs: int) -> list[float]:
    """Spread a sparsity over the ends of the first half of the epochs, as a cubic schedule rises.

    Args:
        sparsity: Where it ends, in [0, 1).
        n_epochs: At least 2; after the last pruning one epoch is left at least.

    Returns:
        By epoch, the fraction of what is left that goes: torch counts what is pruned in what is left.
    """
    n = math.ceil((n_epochs - 1) / 2)
    levels = [sparsity * (1 - (1 - (k + 1) / n) ** 3) for k in range(n)]
    return [(level - before) / (1 - before) for before, level in zip([0.0, *levels], levels, strict=False)]
