"""Sentences and pairs of texts as examples: one per row, cut where it is too long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cap.data.majority import labels_of
from cap.data.metrics import TaskMetrics
from cap.data.tasks import Task
from cap.data.tokens import check_tokenizer, flatten, write_arrays


class SentenceExamples:
    """Make one example of every row; of a pair that is too long the longer text is cut first.

    Args:
        task: Which columns a model reads, and how it is scored.
        tokenizer: Turns texts into tokens.
        max_length: Longest example in tokens, special ones included.

    Raises:
        InputError: If ``max_length`` is more than the tokenizer's model can read or leaves no room for text, or if
            the tokenizer has no padding token.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        n_texts = len(task.text_columns)
        shortest = tokenizer.num_special_tokens_to_add(pair=n_texts == 2) + n_texts
        check_tokenizer(tokenizer, max_length, shortest=shortest)
        self._task = task
        self._tokenizer = tokenizer
        self._max_length = max_length

    @property
    def settings(self) -> dict[str, object]:
        """What decides the tokens: the length and the columns."""
        return {"max_length": self._max_length, "text_columns": self._task.text_columns}

    def tokenise(self, rows: datasets.Dataset, folder: Path, *, where: str) -> None:
        """Write one flat int32 array per tokenizer output, and the rows' lengths."""
        write_arrays(rows, folder, self._encode)

    def _encode(self, texts: dict[str, list[Any]], first_row: int) -> dict[str, np.ndarray]:
        encoded = self._tokenizer(
            *(list(texts[column]) for column in self._task.text_columns),
            truncation="longest_first",
            max_length=self._max_length,
            padding=False,
            return_attention_mask=False,
        )
        return flatten(encoded)

    def labels(self, rows: datasets.Dataset, folder: Path) -> Tensor:
        """Return int64 classes, float32 values, or of sets of labels which there are, int8."""
        return labels_of(self._task, rows)

    def groups(self, folder: Path) -> None:
        """Return None: every row is one example."""

    def metrics(self, rows: datasets.Dataset, folder: Path, *, suffix: str) -> TaskMetrics:
        """Make metrics that compare with the batch's own labels."""
        return TaskMetrics(self._task, suffix=suffix)


__all__ = ["SentenceExamples"]
