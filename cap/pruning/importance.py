"""A pass over training rows that tells a pruner how much the loss depends on each unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from cap.base.errors import InputError
from cap.models.pooled import evaluating
from cap.pruning.pruner import Pruner

Batch = TypeVar("Batch")


def measure_importance(
    pruner: Pruner, model: nn.Module, batches: Iterable[Batch], *, loss: Callable[[Batch], Tensor]
) -> None:
    """Run the pass that a pruner asks for before its masks move; the pruner keeps what it learns.

    The model runs in eval mode, and nothing but the gates gets a gradient. Several processes must see the same batches.

    Args:
        pruner: What ``cap.attach`` returned; one that asks for no pass is left alone.
        model: What it was attached to.
        batches: Training batches, on the model's device; as many as are to count.
        loss: Computes the mean loss of a batch.

    Raises:
        InputError: If there is no batch.
    """
    if pruner.importance_pass is None:
        return
    n_batches = 0
    with gates_alone(pruner, model):
        for batch in batches:
            pruner.observe_importance(pruner.measured(partial(loss, batch)))
            n_batches += 1
    if n_batches == 0:
        raise InputError(
            f"{type(pruner).__name__} ranks by what a pass measures, which needs at least one batch, got none; give a "
            "list or a DataLoader: a generator is empty after its first pass"
        )


@contextmanager
def gates_alone(pruner: Pruner, model: nn.Module) -> Iterator[None]:
    """Forget what a pruner has measured, and let gradients reach its gates alone for the block, in eval mode.

    Args:
        pruner: Its gates stand in the model.
        model: Put back into its modes, with gradients for the parameters that had them.
    """
    frozen = [p for p in model.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    for gates in pruner.gate_parameters():
        gates.requires_grad_(True)
    pruner.forget_importance()
    try:
        with evaluating(model), torch.enable_grad():
            yield
    finally:
        for gates in pruner.gate_parameters():
            gates.requires_grad_(False)
        for parameter in frozen:
            parameter.requires_grad_(True)


def require_a_pass(pruner: Pruner, *, is_measured: bool) -> None:
    """Refuse to move masks that nothing was measured for.

    Args:
        pruner: Asks for a pass, or for none.
        is_measured: Whether somebody runs one before the masks move.

    Raises:
        ValueError: If it asks for one and nobody does.
    """
    if pruner.importance_pass is not None and not is_measured:
        raise ValueError(
            f"{type(pruner).__name__} ranks by a pass over training rows, which must run before the masks move, but "
            f"importance is None; give importance=lambda: cap.measure_importance(pruner, model, batches, loss=...), "
            f"or use a pruner that needs no pass"
        )


__all__ = ["gates_alone", "measure_importance", "require_a_pass"]
