"""Measure how much the loss depends on each gate: one pass over training rows before the masks move."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sized
from typing import cast

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from cap.models.encoders import evaluating
from cap.pruning.pruner import ImportancePass
from cap.training.module import CapModule
from cap.training.progress import tracked

log = logging.getLogger(__name__)


def measure_importance(
    module: CapModule, loader: DataLoader, wanted: ImportancePass, *, batch_size: int, trainer: Trainer
) -> None:
    """Run the pass that a pruner asks for; what it learns is kept by the pruner.

    The student runs in eval mode, so that dropout does not blur the ranking, and nothing but the gates gets a gradient.

    Args:
        module: Holds student, memory and pruner.
        loader: Training batches, of the size that training uses.
        wanted: How many rows, and which loss.
        batch_size: Training rows a batch.
        trainer: Says where to run, and shows progress.
    """
    pruner = module.pruner
    if pruner is None:
        raise ValueError("importance is measured for a pruner, but the module has none")
    # A run on part of the rows ranks by part of the rows.
    n_batches = int(min(len(cast(Sized, loader)), trainer.num_training_batches))
    if wanted.rows is not None:
        n_batches = min(n_batches, math.ceil(wanted.rows / batch_size))
    frozen = [p for p in module.student.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    for gates in pruner.gate_parameters():
        gates.requires_grad_(True)
    try:
        with evaluating(module), torch.enable_grad():
            batches = itertools.islice(loader, n_batches)
            for batch in tracked(batches, description="importance", total=n_batches, trainer=trainer):
                on_device = {name: value.to(trainer.strategy.root_device) for name, value in batch.items()}
                loss = _loss(module, on_device, wanted)
                module.require_finite(loss, {wanted.loss: loss})
                loss.backward()
                pruner.observe_importance()
    finally:
        for gates in pruner.gate_parameters():
            gates.requires_grad_(False)
        for parameter in frozen:
            parameter.requires_grad_(True)


def _loss(module: CapModule, batch: dict[str, torch.Tensor], wanted: ImportancePass) -> torch.Tensor:
    # Without autocast: there is no loss scaler here, and small gradients would vanish in float16.
    output = module(batch)
    if wanted.loss == "task":
        return module.task_loss(output, batch)
    return torch.stack(list(module.loss_terms(output, batch).values())).sum()


__all__ = ["measure_importance"]
