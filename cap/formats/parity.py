"""How far the logits of two forms of one model are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cap.models.pooled import PooledModel, Pooling, evaluating

Batch = Mapping[str, Tensor]
LogitsOf = Callable[[Batch], Tensor]


@dataclass(frozen=True)
class Difference:
    """Hold how far logits are apart.

    Args:
        absolute: The largest difference of two logits.
        largest_logit: The largest absolute value among the logits that were expected.
    """

    absolute: float
    largest_logit: float

    @property
    def relative(self) -> float:
        """The difference as a fraction of the largest logit, or of 1 where all logits are smaller."""
        return self.absolute / max(1.0, self.largest_logit)


def logits_of(model: PreTrainedModel, *, pooling: Pooling = "first_token") -> LogitsOf:
    """Make a function that computes a stock model's logits in eval mode, as float32.

    Args:
        model: With its task head, or bare.
        pooling: How the encoding of a bare one is pooled, which is what it answers.
    """
    pooled = PooledModel(model, pooling)

    def compute(batch: Batch) -> Tensor:
        with evaluating(pooled):
            logits: Tensor = pooled(batch).logits
        return logits.float()

    return compute


class LogitsOutput(NamedTuple):
    """Hold logits alone, without the pooled vector of an encoder."""

    logits: Tensor


class LogitsModel(nn.Module):
    """Let an evaluation run what is no torch module and gives logits alone, such as an ``OnnxModel``.

    Args:
        logits: Computes the logits of a batch; keys that are no model input are its own to ignore.
    """

    def __init__(self, logits: Callable[[Mapping[str, Tensor]], Tensor]) -> None:
        super().__init__()
        self._logits = logits

    def forward(self, batch: Mapping[str, Tensor]) -> LogitsOutput:
        """Compute the logits of a batch."""
        return LogitsOutput(self._logits(batch))


def largest_difference(found: LogitsOf, expected: LogitsOf, batches: Iterable[Batch]) -> Difference:
    """Compare logits on real tokens; those of padding, which spans and tags have, mean nothing and are left out.

    Args:
        found: What is checked.
        expected: What it must give.
        batches: With ``attention_mask``; one at least.

    Returns:
        The largest difference over all batches; NaN where one of the two gives NaN.
    """
    apart, sizes = [], []
    for batch in batches:
        pair = [_of_real_tokens(compute(batch), batch["attention_mask"]) for compute in (found, expected)]
        apart.append((pair[0] - pair[1]).abs().max())
        sizes.append(pair[1].abs().max())
    # torch's max hands a NaN on, Python's own may not.
    return Difference(float(torch.stack(apart).max()), float(torch.stack(sizes).max()))


def _of_real_tokens(logits: Tensor, attention_mask: Tensor) -> Tensor:
    is_per_token = logits.ndim == 3  # (batch, tokens, outputs)
    return logits[attention_mask.bool()] if is_per_token else logits


__all__ = ["Batch", "Difference", "LogitsModel", "LogitsOf", "largest_difference", "logits_of"]
