"""Texts to encode as examples: one for each training text, two for each validation pair."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cap.data.likeness import PairMetrics
from cap.data.pairs import text_names
from cap.data.tasks import Task
from cap.data.tokens import check_tokenizer, flatten, read_array, write_arrays

FORMAT = 1
"""Part of every cache key of these examples: raise it when the files change their meaning."""
_ROWS = "rows"


class TextExamples:
    """Make one example of every text, cut where it is too long; the texts of pair n are the examples 2n and 2n + 1.

    Args:
        task: How encodings are scored.
        tokenizer: Turns texts into tokens.
        max_length: Longest example in tokens, special ones included.

    Raises:
        InputError: If ``max_length`` is more than the tokenizer's model can read or leaves no room for text, or if
            the tokenizer has no padding token.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        check_tokenizer(tokenizer, max_length, shortest=tokenizer.num_special_tokens_to_add() + 1, room_for="a text")
        self._task = task
        self._tokenizer = tokenizer
        self._max_length = max_length

    @property
    def settings(self) -> dict[str, object]:
        """What decides the tokens: the length."""
        return {"encodings": FORMAT, "max_length": self._max_length}

    def tokenise(self, rows: datasets.Dataset, folder: Path, *, where: str) -> None:
        """Write the tokens of every text, and of each the row that it comes from."""
        names = text_names(rows)

        def encode(columns: dict[str, list[Any]], first_row: int) -> dict[str, np.ndarray]:
            encoded = self._tokenizer(
                [text for texts in zip(*(columns[name] for name in names), strict=True) for text in texts],
                truncation=True,
                max_length=self._max_length,
                padding=False,
                return_attention_mask=False,
            )
            n_rows = len(columns[names[0]])
            return {**flatten(encoded), _ROWS: first_row + np.arange(n_rows, dtype=np.int64).repeat(len(names))}

        write_arrays(rows, folder, encode)

    def labels(self, rows: datasets.Dataset, folder: Path) -> None:
        """Return None: no label is learned from."""

    def groups(self, folder: Path) -> Tensor | None:
        """Return the pair of each example; None where every row is one text."""
        rows = np.array(read_array(folder, _ROWS))
        return torch.from_numpy(rows) if len(rows) > 1 and rows[0] == rows[1] else None

    def metrics(self, rows: datasets.Dataset, folder: Path, *, suffix: str) -> PairMetrics:
        """Make metrics that compare the encodings of pairs."""
        return PairMetrics(self._task, rows, suffix=suffix)


__all__ = ["TextExamples"]
