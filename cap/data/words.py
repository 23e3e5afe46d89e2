"""Rows of words as examples: the first sub-word of every word stands for it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase

from cap.base.errors import InputError
from cap.base.words import spaced
from cap.data.entities import TagMetrics
from cap.data.tags import TAGS
from cap.data.tasks import Task
from cap.data.tokens import NO_LABEL, check_tokenizer, flatten, write_arrays

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every cache key of these examples: raise it when the files change their meaning."""
# Tokenised as a whole and word by word, they show what a tokenizer must be told of the space before a word.
_SAMPLE = ["cat", "dog", "cat"]


class WordExamples:
    """Make one example of every row of words, cut where it is too long.

    Args:
        task: Its text column holds the words.
        tokenizer: Turns words into tokens; must be a fast one, which knows which token belongs to which word.
        max_length: Longest example in tokens, special ones included.

    Raises:
        InputError: If the tokenizer is not fast or has no padding token, or if no word fits into the length.
    """

    def __init__(self, task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                f"task={task.name} needs a fast tokenizer, which knows the tokens of every word, got "
                f"{type(tokenizer).__name__} of {tokenizer.name_or_path!r}; choose a model with a tokenizer.json"
            )
        check_tokenizer(tokenizer, max_length, shortest=tokenizer.num_special_tokens_to_add() + 1, room_for="a word")
        self._task = task
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._between = space_between(tokenizer)

    @property
    def settings(self) -> dict[str, object]:
        """What decides the tokens: the length and the column."""
        return {"words": FORMAT, "max_length": self._max_length, "text_columns": self._task.text_columns}

    def tokenise(self, rows: datasets.Dataset, folder: Path, *, where: str) -> None:
        """Write the tokens; of each its word's number and tag, where it is the first of a word."""
        arrays = write_arrays(rows, folder, self._encode)
        n_words = sum(map(len, rows[TAGS]))
        n_unread = n_words - int(np.count_nonzero(np.asarray(arrays["words"]) >= 0))
        if n_unread:
            log.warning(
                "%s of the %s words of %s lie beyond max_length=%d tokens, or the tokenizer drops all their "
                "characters: training ignores them, and they are scored as wrong or as outside of every entity",
                f"{n_unread:,}",
                f"{n_words:,}",
                where,
                self._max_length,
            )

    def _encode(self, columns: dict[str, list[Any]], first_row: int) -> dict[str, np.ndarray]:
        (column,) = self._task.text_columns
        encoded = self._tokenizer(
            [spaced(words, self._between) for words in columns[column]],
            is_split_into_words=True,
            truncation=True,
            max_length=self._max_length,
            padding=False,
            return_attention_mask=False,
        )
        words = [_first_tokens(encoded, row) for row in range(len(columns[column]))]
        tags = [
            np.where(numbers >= 0, np.asarray(own)[numbers], NO_LABEL)
            for numbers, own in zip(words, columns[TAGS], strict=True)
        ]
        return {
            **flatten(encoded),
            "words": np.concatenate(words).astype(np.int32),
            "labels": np.concatenate(tags).astype(np.int32),
        }

    def labels(self, rows: datasets.Dataset, folder: Path) -> None:
        """Return None: there is a label for every word, beside its tokens."""

    def groups(self, folder: Path) -> None:
        """Return None: every row is one example."""

    def metrics(self, rows: datasets.Dataset, folder: Path, *, suffix: str) -> TagMetrics:
        """Make metrics that compare the tags of words, read or not."""
        return TagMetrics(self._task, rows, folder, suffix=suffix)


def space_between(tokenizer: PreTrainedTokenizerBase) -> str:
    """Find what must stand before a word so that words on their own give the tokens they have within a text.

    Byte-level tokenizers, RoBERTa's say, keep the space before a word in its first token.

    Returns:
        A space or nothing; nothing too where neither gives the same tokens.
    """
    whole = tokenizer(" ".join(_SAMPLE))["input_ids"]
    for between in ("", " "):
        if tokenizer(spaced(_SAMPLE, between), is_split_into_words=True)["input_ids"] == whole:
            return between
    return ""


def _first_tokens(encoded: BatchEncoding, row: int) -> np.ndarray:
    """Number the word of each token that is the first of one; -1 at all others."""
    numbers = np.array([-1 if word is None else word for word in encoded.word_ids(row)])
    is_first = np.concatenate([[True], numbers[1:] != numbers[:-1]])
    return np.where(is_first, numbers, -1)


__all__ = ["WordExamples", "space_between"]
