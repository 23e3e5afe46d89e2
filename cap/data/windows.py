"""Contexts that are longer than a model reads, cut into overlapping windows that each hold the whole question."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import BatchEncoding, PreTrainedTokenizerBase

from cap.data.tokens import Layout, flatten, read_array

_NOWHERE = np.iinfo(np.int32).max


class Windows:
    """Map the tokens of a split's windows back to characters of the contexts.

    Args:
        folder: What ``write_arrays`` wrote from ``cut_windows``.
    """

    def __init__(self, folder: Path) -> None:
        self.questions = np.asarray(read_array(folder, "questions"))  # (windows,), row of the window's question
        self._layout = Layout(np.asarray(read_array(folder, "lengths")))
        self._offsets = read_array(folder, "offsets")

    def __len__(self) -> int:
        return len(self.questions)

    def offsets(self, example_id: np.ndarray, *, width: int) -> np.ndarray:
        """Return the first character of each token and the one behind its last, in its question's context.

        Args:
            example_id: Numbers of windows.
            width: Tokens per window, as the batch was padded.

        Returns:
            ``(windows, width, 2)``; -1 at padding and at tokens that are not the context's.
        """
        positions, is_token = self._layout.places(example_id, width=width)
        return np.where(is_token[..., None], self._offsets[positions], -1)


def question_lengths(questions: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Count the tokens of each question, special ones not included."""
    encoded = tokenizer(
        list(questions), add_special_tokens=False, padding=False, return_attention_mask=False, verbose=False
    )
    return np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64)


def cut_windows(
    questions: Sequence[str],
    contexts: Sequence[str],
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    stride: int,
) -> dict[str, np.ndarray]:
    """Tokenise questions with their contexts, as many windows as each context needs.

    Args:
        questions: Never cut: all must leave more than ``stride`` tokens to the context.
        contexts: One per question.
        tokenizer: A fast one.
        max_length: Longest window in tokens, special ones included.
        stride: Tokens of the context that neighbouring windows share.

    Returns:
        The tokenizer's outputs end to end; ``lengths`` of the windows; ``questions``, the number of each window's
        question; ``offsets`` ``(tokens, 2)`` int32, characters of the context, -1 at all other tokens.
    """
    encoded = tokenizer(
        list(questions),
        list(contexts),
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        padding=False,
        return_attention_mask=False,
    )
    numbers = np.asarray(encoded.pop("overflow_to_sample_mapping"), dtype=np.int64)
    offsets = np.concatenate([np.asarray(window, dtype=np.int32) for window in encoded.pop("offset_mapping")])
    offsets[~_is_context(encoded)] = -1
    return {**flatten(encoded), "questions": numbers, "offsets": offsets}


def _is_context(encoded: BatchEncoding) -> np.ndarray:
    windows = range(len(encoded["input_ids"]))
    return np.concatenate([np.fromiter((part == 1 for part in encoded.sequence_ids(i)), dtype=bool) for i in windows])


def answer_positions(
    lengths: np.ndarray, questions: np.ndarray, offsets: np.ndarray, answers: np.ndarray
) -> np.ndarray:
    """Find the tokens that cover each question's answer.

    An answer that begins or ends inside a token gets that token whole.

    Args:
        lengths: Tokens of each window.
        questions: Number of each window's question.
        offsets: As ``cut_windows`` returns them, ``(tokens, 2)``.
        answers: First character of each question's answer and the one behind its last, ``(questions, 2)``; an answer
            that begins at -1 lies nowhere.

    Returns:
        First and last token ``(windows, 2)`` int32; both 0 where the answer is not wholly inside the window.
    """
    layout = Layout(lengths)
    window = np.repeat(np.arange(len(lengths)), lengths)  # (tokens,)
    begin, end = answers[questions[window]].T
    covers = (offsets[:, 0] >= 0) & (begin >= 0) & (offsets[:, 0] < end) & (offsets[:, 1] > begin)
    token = np.flatnonzero(covers)
    window = window[token]
    first, last = _extent(np.stack([token, token], axis=1), window, len(lengths))
    # All windows of a question together show the whole answer: one that shows less of it has only a piece.
    from_character, to_character = _extent(offsets[token], window, len(lengths))
    whole = _extent(offsets[token], questions[window], len(answers))
    holds = (last >= 0) & (from_character == whole[0][questions]) & (to_character == whole[1][questions])
    positions = np.stack([first, last], axis=1) - layout.starts[:, None]
    return np.where(holds[:, None], positions, 0).astype(np.int32)


def _extent(ranges: np.ndarray, group: np.ndarray, n_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the lowest begin and the highest end of each group's ranges; -1 is the highest of none."""
    lowest, highest = np.full(n_groups, _NOWHERE, dtype=np.int64), np.full(n_groups, -1, dtype=np.int64)
    np.minimum.at(lowest, group, ranges[:, 0])
    np.maximum.at(highest, group, ranges[:, 1])
    return lowest, highest


__all__ = ["Windows", "answer_positions", "cut_windows", "question_lengths"]
