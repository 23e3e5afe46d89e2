"""Measure how much the loss depends on each gate: one pass over training rows before the masks move."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence, Sized
from typing import cast

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from cap.pruning.importance import gate_gradients, gates_alone
from cap.pruning.pruner import ImportancePass
from cap.training.module import CapModule
from cap.training.parallel.ranks import Ranks
from cap.training.progress import tracked

log = logging.getLogger(__name__)


def measure_importance(
    module: CapModule,
    loader: DataLoader,
    wanted: ImportancePass,
    *,
    batch_size: int,
    trainer: Trainer,
    with_contrast: bool = True,
) -> None:
    """Run the pass that a pruner asks for; what it learns is kept by the pruner.

    The student runs in eval mode, so that dropout does not blur the ranking, and nothing but the gates gets a gradient.
    The pass begins from nothing, so that one that was interrupted can be repeated. It draws its extra examples from
    where training stands and leaves the stream there: training draws the same ones whatever the kind of importance.
    Several processes share every batch, and each sees the importance of the whole.

    Args:
        module: Holds student, memory and pruner.
        loader: Training batches, of the size that training uses; this process's share of them.
        wanted: How many rows, and which loss.
        batch_size: Training rows a batch and process.
        trainer: Says where to run, and shows progress.
        with_contrast: Whether the total loss has the contrastive terms of the banks that there are.
    """
    pruner = module.pruner
    if pruner is None:
        raise ValueError("importance is measured for a pruner, but the module has none")
    # A run on part of the rows ranks by part of the rows.
    n_batches = int(min(len(cast(Sized, loader)), trainer.num_training_batches))
    if wanted.rows is not None:
        n_batches = min(n_batches, math.ceil(wanted.rows / (batch_size * module.ranks.size)))
    with gates_alone(pruner, module), module.keeping_extras():
        batches = itertools.islice(loader, n_batches)
        for batch in tracked(batches, description="importance", total=n_batches, trainer=trainer):
            on_device = {name: value.to(trainer.strategy.root_device) for name, value in batch.items()}
            loss = _loss(module, on_device, wanted, with_contrast=with_contrast)
            shared = module.ranks.mean(loss)
            module.require_finite(shared, {wanted.loss: shared})
            pruner.observe_importance(_shared(gate_gradients(pruner, loss), module.ranks))


def _loss(
    module: CapModule, batch: dict[str, torch.Tensor], wanted: ImportancePass, *, with_contrast: bool
) -> torch.Tensor:
    # Without autocast: there is no loss scaler here, and small gradients would vanish in float16.
    output = module(batch)
    if wanted.loss == "task":
        share = module.ranks.share(len(batch["example_id"]), device=batch["example_id"].device)
        return module.task_loss(output, batch, share)
    return torch.stack(list(module.loss_terms(output, batch, with_contrast=with_contrast).values())).sum()


def _shared(gradients: Sequence[torch.Tensor], ranks: Ranks) -> Sequence[torch.Tensor]:
    """Return the gradients of the whole batch: importance is their absolute value, batch by batch."""
    if ranks.size == 1:
        return gradients
    shared = ranks.mean(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = shared.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]


__all__ = ["measure_importance"]
