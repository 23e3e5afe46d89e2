"""Questions about contexts as examples: as many windows per row as its context needs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cap.base.errors import InputError
from cap.data.spans import SpanMetrics
from cap.data.tasks import Task
from cap.data.tokens import check_tokenizer, read_array, write_arrays
from cap.data.windows import Windows, answer_positions, cut_windows, question_lengths

log = logging.getLogger(__name__)


class QuestionExamples:
    """Make overlapping windows of every row's context, each with the whole question in front.

    Args:
        task: Its text columns are the question and the context.
        tokenizer: Turns both into tokens; must be a fast one, which knows where its tokens lie in the text.
        max_length: Longest window in tokens, special ones included.
        stride: Tokens of the context that neighbouring windows share, as transformers counts it.

    Raises:
        InputError: If the tokenizer is not fast or has no padding token, or if the lengths cannot work for any row.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int, stride: int | None) -> None:
        if stride is None or stride < 0:
            raise InputError(
                f"task.stride counts the tokens that neighbouring windows of a context share and must be 0 or more "
                f"for task={task.name}, got {stride}; set 128, say"
            )
        if not tokenizer.is_fast:
            raise InputError(
                f"task={task.name} needs a fast tokenizer, which knows where its tokens lie in the text, got "
                f"{type(tokenizer).__name__} of {tokenizer.name_or_path!r}; choose a model with a tokenizer.json"
            )
        self._n_special = tokenizer.num_special_tokens_to_add(pair=True)
        check_tokenizer(
            tokenizer,
            max_length,
            shortest=self._n_special + stride + 2,
            room_for=f"a question and more than task.stride={stride} tokens of its context",
        )
        self._task = task
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._stride = stride

    @property
    def settings(self) -> dict[str, object]:
        """What decides the windows: lengths and columns."""
        return {"max_length": self._max_length, "stride": self._stride, "text_columns": self._task.text_columns}

    def tokenise(self, rows: datasets.Dataset, folder: Path, *, where: str) -> None:
        """Write the windows' tokens, where they lie in the contexts, and the positions of the answers."""

        def encode(columns: dict[str, list[Any]], first_row: int) -> dict[str, np.ndarray]:
            questions, contexts = (columns[name] for name in self._task.text_columns)
            self._require_room(question_lengths(questions, self._tokenizer), first_row, where)
            arrays = cut_windows(
                questions,
                contexts,
                tokenizer=self._tokenizer,
                max_length=self._max_length,
                stride=self._stride,
            )
            arrays["positions"] = answer_positions(
                arrays["lengths"], arrays["questions"], arrays["offsets"], _first_answers(columns)
            )
            arrays["questions"] += first_row
            return arrays

        arrays = write_arrays(rows, folder, encode)
        n_windows = len(arrays["questions"])
        n_found = len(np.unique(arrays["questions"][arrays["positions"][:, 1] > 0]))
        log.info(
            "%s questions of %s gave %s windows; the answer to %s of them is whole in none",
            f"{rows.num_rows:,}",
            where,
            f"{n_windows:,}",
            f"{rows.num_rows - n_found:,}",
        )

    def _require_room(self, lengths: np.ndarray, first_row: int, where: str) -> None:
        most = self._max_length - self._n_special - self._stride - 1
        too_long = np.flatnonzero(lengths > most)
        if len(too_long):
            row = int(too_long[0])
            raise InputError(
                f"a question is never cut: beside it and {self._n_special} special tokens, max_length="
                f"{self._max_length} must leave more than task.stride={self._stride} tokens to the context, so that "
                f"a question has at most {most} tokens, got {lengths[row]} in row {first_row + row} (counted from 0) "
                f"of {where}; raise max_length, lower task.stride, or remove the row"
            )

    def labels(self, rows: datasets.Dataset, folder: Path) -> Tensor:
        """Return the first and last token of the answer in each window, int64; both 0 where it is not whole."""
        return torch.from_numpy(read_array(folder, "positions").astype(np.int64))

    def groups(self, folder: Path) -> Tensor:
        """Return the row number of each window's question, int64."""
        return torch.from_numpy(read_array(folder, "questions").astype(np.int64))

    def metrics(self, rows: datasets.Dataset, folder: Path, *, suffix: str) -> SpanMetrics:
        """Make metrics that compare texts, whatever windows they were found in."""
        return SpanMetrics(self._task, rows, Windows(folder), suffix=suffix)


def _first_answers(columns: dict[str, list[Any]]) -> np.ndarray:
    """Return where the first accepted answer of each row begins and ends in the context."""
    begin = np.array([starts[0] for starts in columns["answer_starts"]], dtype=np.int64)
    length = np.array([len(texts[0]) for texts in columns["answers"]], dtype=np.int64)
    return np.stack([begin, begin + length], axis=1)


__all__ = ["QuestionExamples"]
