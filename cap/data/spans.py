"""Answers that are spans of a context: the best one of all windows, scored as SQuAD defines it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics.functional.text import squad

from cap.data.metrics import check_metrics
from cap.data.tasks import Task
from cap.data.windows import Windows

_SCORES = ("f1", "exact_match")
_N_BEST = 20
_MAX_ANSWER_LENGTH = 30
# Of windows: their numbers, first and last characters (windows, 2), and scores.
_State = tuple[np.ndarray, np.ndarray, np.ndarray]


def best_spans(
    logits: Float[Tensor, "batch tokens 2"],
    is_context: Bool[Tensor, "batch tokens"],
    *,
    n_best: int,
    max_answer_length: int,
) -> tuple[Int[Tensor, "batch 2"], Float[Tensor, " batch"]]:
    """Choose the best span of each window among its best starts and its best ends.

    Args:
        logits: Of the first and of the last token of an answer.
        is_context: Where an answer may lie.
        n_best: How many starts and how many ends are tried with each other.
        max_answer_length: Longest answer in tokens.

    Returns:
        The first and the last token, and the sum of their logits, float32; -inf where a window has no span whose
        logits are finite. Of equal sums the earliest start, then the earliest end is chosen.
    """
    outside = ~is_context.unsqueeze(-1)
    scores = logits.detach().float().masked_fill(outside, -torch.inf)
    # Stable, so that equal logits give the same answer on every device.
    best = scores.argsort(dim=1, descending=True, stable=True)[:, :n_best]
    kept = scores.gather(1, best)  # (batch, n_best, 2)
    first, last = best[:, :, None, 0], best[:, None, :, 1]
    total = kept[:, :, None, 0] + kept[:, None, :, 1]  # (batch, starts, ends)
    length = last - first + 1
    is_span = (length >= 1) & (length <= max_answer_length) & total.isfinite()
    total = total.masked_fill(~is_span, -torch.inf).flatten(1)
    place = total.argmax(dim=1, keepdim=True)
    n_ends = best.shape[1]
    positions = torch.cat([best[..., 0].gather(1, place // n_ends), best[..., 1].gather(1, place % n_ends)], dim=1)
    return positions, total.gather(1, place).squeeze(1)


class SpanMetrics:
    """Collect the best span of every window, and score the best of every question.

    Args:
        task: Its metrics are the keys of the result.
        rows: The questions' ``context`` and accepted ``answers``.
        windows: Where the windows' tokens lie in the contexts.
        suffix: Follows every key, to tell the splits of a task apart.
        n_best: How many starts and how many ends of a window are tried with each other.
        max_answer_length: Longest answer in tokens.

    Raises:
        InputError: If the task names another metric than ``f1`` and ``exact_match``.
    """

    def __init__(
        self,
        task: Task,
        rows: datasets.Dataset,
        windows: Windows,
        *,
        suffix: str = "",
        n_best: int = _N_BEST,
        max_answer_length: int = _MAX_ANSWER_LENGTH,
    ) -> None:
        check_metrics(task, _SCORES, kind="question answering")
        self._names = {name: f"{name}{suffix}" for name in task.metrics}
        self._context_column = task.text_columns[1]
        self._rows = rows
        self._windows = windows
        self._n_best = n_best
        self._max_answer_length = max_answer_length
        self.reset()

    def reset(self) -> None:
        """Forget every window seen so far."""
        self._example_id: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
        self._characters: list[np.ndarray] = [np.empty((0, 2), dtype=np.int64)]
        self._scores: list[np.ndarray] = [np.empty(0, dtype=np.float32)]

    def update(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Add the windows of one batch.

        Args:
            logits: Of the start and the end of an answer, ``(batch, tokens, 2)``, any float type, any device.
            batch: Its ``example_id`` are numbers of windows, ``(batch,)``.
        """
        example_id = batch["example_id"].cpu().numpy()
        offsets = torch.from_numpy(self._windows.offsets(example_id, width=logits.shape[1]))
        is_context = (offsets[..., 0] >= 0).to(logits.device)
        positions, scores = best_spans(
            logits, is_context, n_best=self._n_best, max_answer_length=self._max_answer_length
        )
        positions, scores = positions.cpu(), scores.cpu()
        # The first character of the first token, and the one behind the last token's last.
        characters = offsets.gather(1, positions[..., None].expand(-1, -1, 2)).diagonal(dim1=1, dim2=2).clone()
        characters[~scores.isfinite()] = 0
        self._example_id.append(example_id)
        self._characters.append(characters.numpy())
        self._scores.append(scores.numpy())

    def state(self) -> _State:
        """Return the number, span and score of every window since the last reset; their questions may lie elsewhere."""
        return np.concatenate(self._example_id), np.concatenate(self._characters), np.concatenate(self._scores)

    def merge(self, states: Sequence[_State]) -> None:
        """Become the metrics that have seen all windows of several states, in place of their own."""
        self.reset()
        for example_id, characters, scores in states:
            self._example_id.append(example_id)
            self._characters.append(characters)
            self._scores.append(scores)

    def answers(self) -> dict[int, str]:
        """Return the best answer of every question of which a window was seen since the last reset.

        Returns:
            By the question's row number, ascending: a slice of its context as it was written, empty where no window
            has a possible span. Of equally good windows the first counts.
        """
        example_id, scores = np.concatenate(self._example_id), np.concatenate(self._scores)
        questions = self._windows.questions[example_id]
        order = np.lexsort((example_id, -scores, questions))
        rows, first = np.unique(questions[order], return_index=True)
        spans = np.concatenate(self._characters)[order][first]
        contexts = self._column(self._context_column, rows)
        return {int(row): context[begin:end] for row, context, (begin, end) in zip(rows, contexts, spans, strict=True)}

    def compute(self) -> dict[str, float]:
        """Score every question seen since the last reset.

        Returns:
            ``f1`` and ``exact_match`` as fractions in [0, 1]: means over the questions of the best agreement with
            one of the accepted answers.

        Raises:
            ValueError: If there was no window.
        """
        answers = self.answers()
        if not answers:
            raise ValueError("metrics need at least one window, got none; call update before compute")
        accepted = self._column("answers", np.fromiter(answers, dtype=np.int64))
        given = [{"id": str(row), "prediction_text": text} for row, text in answers.items()]
        wanted: list[Any] = [
            {"id": str(row), "answers": {"text": texts}} for row, texts in zip(answers, accepted, strict=True)
        ]
        percent = squad(given, wanted)
        return {name: float(percent[key]) / 100 for key, name in self._names.items()}

    @property
    def is_constant(self) -> bool:
        """Say whether one and the same text answered every question since the last reset."""
        return len(set(self.answers().values())) <= 1

    def _column(self, name: str, rows: np.ndarray) -> list[Any]:
        values: list[Any] = self._rows.data.column(name).take(pa.array(rows)).to_pylist()
        return values


__all__ = ["SpanMetrics", "best_spans"]
