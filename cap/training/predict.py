"""Score a model and keep what it answered to every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cap.base.kinds import Metrics
from cap.training.evaluation import evaluate


@dataclass(frozen=True)
class Answers:
    """Hold the answers to one split.

    Args:
        logits: Row by row, ordered by example_id; None where answers lie in the text.
        in_text: Where answers lie in the text: by row number the span's text, or the numbers of all words' tags; else
            None.
    """

    logits: Float[Tensor, "rows outputs"] | None
    in_text: Mapping[int, Any] | None


@runtime_checkable
class _AnswersInText(Protocol):
    def answers(self) -> Mapping[int, Any]: ...


def predict(
    model: nn.Module,
    loaders: Mapping[str, DataLoader],
    metrics: Mapping[str, Metrics],
    *,
    device: torch.device,
    description: str,
    order: Sequence[int] | None = None,
) -> tuple[dict[str, float], dict[str, Answers]]:
    """Score a model in eval mode and float32, and keep its answers.

    Args:
        model: Gives an output with ``logits`` for a batch, as ``PooledModel`` does; moved to ``device`` and left there.
        loaders: Validation data by split; every row once.
        metrics: By the same splits; reset before and after.
        device: Where to run.
        description: What the progress bar says.
        order: The model's output of every class of the task; None takes them as they are.

    Returns:
        Scores by name over all splits, and the answers by split.

    Raises:
        ValueError: If the loaders do not give every row exactly once.
    """
    kept = {split: _Keeping(metric, order) for split, metric in metrics.items()}
    scores, _ = evaluate(model, loaders, kept, device=device, description=description)
    return scores, {split: kept[split].kept() for split in loaders}


class _Keeping:
    """Score as other metrics do, and keep the answers beyond a reset."""

    def __init__(self, metric: Metrics, order: Sequence[int] | None) -> None:
        self._metric = metric
        self._order = order
        self._logits: list[Tensor] = []
        self._example_id: list[Tensor] = []
        self._in_text: Mapping[int, Any] | None = None

    @property
    def is_constant(self) -> bool:
        return self._metric.is_constant

    def update(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        if self._order is not None:
            logits = logits[..., list(self._order)]
        if logits.ndim == 2:  # those of spans and tags are as many as there are tokens, and are not read
            self._logits.append(logits.detach().cpu())
            self._example_id.append(batch["example_id"].cpu())
        self._metric.update(logits, batch)

    def compute(self) -> dict[str, float]:
        if isinstance(self._metric, _AnswersInText):
            self._in_text = self._metric.answers()
        return self._metric.compute()

    def reset(self) -> None:
        self._metric.reset()

    def state(self) -> Any:
        return self._metric.state()

    def merge(self, states: Sequence[Any]) -> None:
        self._metric.merge(states)

    def kept(self) -> Answers:
        if not self._logits:
            return Answers(None, self._in_text)
        example_id = torch.cat(self._example_id)
        rows = example_id.argsort()
        if not torch.equal(example_id[rows], torch.arange(len(example_id))):
            raise ValueError("predictions need every row exactly once, numbered from 0")
        return Answers(torch.cat(self._logits)[rows], self._in_text)


__all__ = ["Answers", "predict"]
