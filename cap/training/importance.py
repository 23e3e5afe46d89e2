"""Measure how much the loss depends on each gate: one pass over training rows before the masks move."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import cast

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from cap.base.errors import RunError
from cap.data.batch import on_device
from cap.pruning.importance import gates_alone
from cap.pruning.pruner import ImportancePass
from cap.training.module import CapModule
from cap.training.parallel.ranks import Ranks, Share
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
    can_stop: bool = True,
) -> None:
    """Run the pass that a pruner asks for; what it learns is kept by the pruner.

    The student runs in eval mode, so that dropout does not blur the ranking, and nothing but the gates gets a gradient.
    The pass begins from nothing, so that one that was interrupted can be repeated. It draws its extra examples from
    where training stands and leaves the stream there: training draws the same ones whatever the kind of importance.
    Several processes share every batch, and each sees the importance of the whole; of batches that the pruner wants of
    a size of its own they take whole ones, and add up what they have learned at the end.

    Args:
        module: Holds student, memory and pruner.
        loader: Training batches, of the size that training uses or the pruner wants; this process's share of them.
        wanted: How many rows, and which loss.
        batch_size: Training rows a batch and process.
        trainer: Says where to run, and shows progress.
        with_contrast: Whether the total loss has the contrastive terms of the banks that there are.
        can_stop: Whether a request to stop ends the pass: not where masks have moved already in this step.
    """
    pruner = module.pruner
    if pruner is None:
        raise ValueError("importance is measured for a pruner, but the module has none")
    if wanted.batch_rows is not None and wanted.loss == "total" and module.ranks.size > 1:
        # Its terms are those of batches that all processes share.
        raise RunError(
            f"an importance pass with batch_rows takes loss='task' where {module.ranks.size} processes take part, got "
            f"loss='total' of {type(pruner).__name__}; set loss='task' or batch_rows=None, or run one process"
        )
    n_batches = _n_batches(len(cast(Sized, loader)), wanted, module.ranks, batch_size=batch_size, trainer=trainer)
    # What a loss is without some part of the model is measured as it is, and differentiated by nothing.
    noise = _with_noise(module) if pruner.gate_parameters() else nullcontext()
    with gates_alone(pruner, module), module.keeping_extras(), noise:
        batches = itertools.islice(loader, n_batches)
        for batch in tracked(batches, description="importance", total=n_batches, trainer=trainer, can_stop=can_stop):
            moved = on_device(batch, trainer.strategy.root_device)
            if wanted.batch_rows is not None:
                # Nothing is asked of other processes, which may have a batch less, nor of the device.
                own = Share(rank=0, counts=(len(batch["example_id"]),))
                loss = partial(_loss, module, moved, wanted, own, with_contrast=with_contrast)
                pruner.observe_importance(pruner.measured(loss))
                continue
            share = module.ranks.share(len(batch["example_id"]))
            loss = partial(_finite_loss, module, moved, wanted, share, with_contrast=with_contrast)
            pruner.observe_importance(_shared(pruner.measured(loss), module.ranks))
        if wanted.batch_rows is not None and module.ranks.size > 1:
            for values in pruner.importance_sums():
                values.copy_(module.ranks.total(values))


@contextmanager
def _with_noise(module: CapModule) -> Iterator[None]:
    """Add noise to the teacher's encodings; logits are left as they are.

    A student that still is its dense encoder is at a minimum of its loss, where every gradient is 0.
    """
    plain = module.distill
    module.distill = dataclasses.replace(plain, is_noisy=True)
    try:
        yield
    finally:
        module.distill = plain


def _n_batches(n_there: int, wanted: ImportancePass, ranks: Ranks, *, batch_size: int, trainer: Trainer) -> int:
    """Count the batches of this process. A run on part of the rows ranks by part of the rows."""
    if wanted.batch_rows is None:
        n_trained = int(min(n_there, trainer.num_training_batches))
        return n_trained if wanted.rows is None else min(n_trained, math.ceil(wanted.rows / (batch_size * ranks.size)))
    n_rows = trainer.num_training_batches * batch_size * ranks.size
    n_rows = n_rows if wanted.rows is None else min(n_rows, wanted.rows)
    n_of_all = max(1, int(n_rows // wanted.batch_rows))
    return min(n_there, len(range(ranks.rank, n_of_all, ranks.size)))


def _loss(
    module: CapModule, batch: dict[str, torch.Tensor], wanted: ImportancePass, share: Share, *, with_contrast: bool
) -> torch.Tensor:
    # Without autocast: there is no loss scaler here, and small gradients would vanish in float16.
    output = module(batch)
    if wanted.loss == "task":
        return module.task_loss(output, batch, share)
    return torch.stack(list(module.loss_terms(output, batch, with_contrast=with_contrast).values())).sum()


def _finite_loss(
    module: CapModule, batch: dict[str, torch.Tensor], wanted: ImportancePass, share: Share, *, with_contrast: bool
) -> torch.Tensor:
    loss = _loss(module, batch, wanted, share, with_contrast=with_contrast)
    shared = module.ranks.mean(loss)
    module.require_finite(shared, {wanted.loss: shared})
    return loss


def _shared(measured: Sequence[torch.Tensor], ranks: Ranks) -> Sequence[torch.Tensor]:
    """Return what was measured of the whole batch: its gradients, say, whose absolute value is taken batch by batch."""
    if ranks.size == 1:
        return measured
    shared = ranks.mean(torch.cat([values.flatten() for values in measured]))
    parts = shared.split([values.numel() for values in measured])
    return [part.view_as(values) for part, values in zip(parts, measured, strict=True)]


__all__ = ["measure_importance"]
