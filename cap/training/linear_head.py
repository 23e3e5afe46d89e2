"""A linear head on frozen encodings: trained for a fixed number of epochs, with nothing chosen on validation rows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from cap.base.kinds import Metrics
from cap.objectives.distillation import label_loss


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """Say how a head is trained.

    Args:
        epochs: Passes over the training rows.
        batch_size: Rows per step.
        learning_rate: Of the first step; it falls linearly to 0.
        weight_decay: Of AdamW.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class EncodedRows:
    """Hold the encodings of some rows, of any float type, and their labels: int64 classes or float32 numbers."""

    encodings: Float[Tensor, "rows dim"]
    labels: Int64[Tensor, " rows"] | Float[Tensor, " rows"]


def train_head(rows: EncodedRows, *, n_outputs: int, training: HeadTraining, seed: int) -> nn.Linear:
    """Train a linear head with cross-entropy, or with the mean squared error of standardised numbers.

    It sees each dimension of the encodings standardised over the training rows: otherwise encodings with a large common
    mean, as dense models have them, learn slower than others, and a fixed number of epochs would compare that.

    Args:
        rows: The training rows; their encodings get no gradient.
        n_outputs: One per class, or 1.
        training: How long and how fast.
        seed: Fixes the first weights and the order of the rows; the global seed is neither read nor changed.

    Returns:
        The head of the last step, which takes encodings as they are and answers in the unit of the labels.
    """
    n_rows, dim = rows.encodings.shape
    encodings = rows.encodings.float()
    centre, spread = encodings.mean(dim=0), encodings.std(dim=0, correction=0)
    spread = torch.where(spread > 0, spread, 1.0)
    inputs = (encodings - centre) / spread
    generator = torch.Generator().manual_seed(seed)
    labels, shift, scale = _standardised(rows.labels)
    head: nn.Linear = nn.utils.skip_init(nn.Linear, dim, n_outputs)
    for parameter in head.parameters():
        nn.init.uniform_(parameter, -(dim**-0.5), dim**-0.5, generator=generator)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )
    n_steps = training.epochs * -(-n_rows // training.batch_size)
    # At a constant rate the last steps alone move the score by several points.
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=n_steps)
    for _ in range(training.epochs):
        for batch in torch.randperm(n_rows, generator=generator).split(training.batch_size):
            optimizer.zero_grad()
            label_loss(head(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            decay.step()
    with torch.no_grad():
        head.weight.mul_(scale / spread)
        head.bias.mul_(scale).add_(shift - head.weight @ centre)
    return head


def score_head(
    head: nn.Linear, validation: Mapping[str, EncodedRows], metrics: Mapping[str, Metrics]
) -> dict[str, float]:
    """Score a head on every validation split.

    Args:
        head: The head.
        validation: Rows by split.
        metrics: By the same splits; reset before and after.

    Returns:
        Scores by name over all splits.
    """
    scores: dict[str, float] = {}
    for split, rows in validation.items():
        metrics[split].reset()
        with torch.no_grad():
            metrics[split].update(head(rows.encodings.float()), {"labels": rows.labels})
        scores |= metrics[split].compute()
        metrics[split].reset()
    return scores


def _standardised(labels: Tensor) -> tuple[Tensor, float, float]:
    """Scale numbers to mean 0 and standard deviation 1; classes stay as they are."""
    if not labels.is_floating_point():
        return labels, 0.0, 1.0
    shift, scale = float(labels.mean()), float(labels.std(correction=0))
    scale = scale if scale > 0 else 1.0
    return (labels - shift) / scale, shift, scale


def summary(values: Sequence[float], teacher: Sequence[float] | None) -> dict[str, Any]:
    """Sum up the scores of one model on one task.

    Args:
        values: One per seed.
        teacher: The dense teacher's, or None where there is none.

    Returns:
        ``seeds``: the values; ``mean``; ``standard_error``: their sample standard deviation divided by the root of
        their number, None for one seed; ``gap``: the mean minus the teacher's mean, or None.
    """
    mean = statistics.fmean(values)
    return {
        "seeds": list(values),
        "mean": mean,
        "standard_error": statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None,
        "gap": mean - statistics.fmean(teacher) if teacher is not None else None,
    }


__all__ = ["EncodedRows", "HeadTraining", "score_head", "summary", "train_head"]
