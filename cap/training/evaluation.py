"""Score a model on every validation row, once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

from cap.base.kinds import Metrics
from cap.data.batch import on_device
from cap.models.pooled import evaluating
from cap.training.parallel.ranks import ALONE, Ranks
from cap.training.progress import tracked


def evaluate(
    model: nn.Module,
    loaders: Mapping[str, DataLoader],
    metrics: Mapping[str, Metrics],
    *,
    device: torch.device,
    description: str,
    trainer: Trainer | None = None,
    ranks: Ranks = ALONE,
    can_stop: bool = True,
) -> tuple[dict[str, float], bool]:
    """Score a model in eval mode, and in its own precision unless the caller has chosen another one.

    Args:
        model: Gives an output with ``logits`` for a batch, as ``PooledModel`` does; moved to ``device`` and left there.
        loaders: Validation data by split; every row once, over all processes together.
        metrics: By the same splits; reset before and after.
        device: Where to run.
        description: What the progress bar says.
        trainer: A trainer that is fitting at the moment, for its progress display.
        ranks: The processes that share the rows; every one of them calls this with its own loaders.
        can_stop: Whether a request to stop gives it up where a trainer is fitting: not in the middle of a step.

    Returns:
        Scores by name over all splits, and whether the first split got one class only; the same on every process.
    """
    model.to(device)
    scores: dict[str, float] = {}
    constant: list[bool] = []
    for split, loader in loaders.items():
        metric = metrics[split]
        metric.reset()
        with evaluating(model), parametrize.cached():  # masks are put on weights once, not for every batch
            shown = tracked(loader, description=description, trainer=trainer, can_stop=can_stop)
            for batch in shown if ranks.is_first else loader:
                moved = on_device(batch, device)
                metric.update(model(moved).logits, moved)
        if ranks.size > 1:
            metric.merge(ranks.gather(metric.state()))
        scores.update(metric.compute())
        constant.append(metric.is_constant)
        metric.reset()
    return scores, constant[0]


__all__ = ["evaluate"]
