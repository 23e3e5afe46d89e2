"""Tags of words, scored as whole entities or one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import pyarrow.compute as pc
import torch
from nervaluate import Evaluator
from torch import Tensor
from torchmetrics.functional.classification import multiclass_f1_score

from cap.base.errors import InputError
from cap.data.lists import shown
from cap.data.metrics import check_metrics
from cap.data.tags import OUTSIDE, TAGS, entity_types
from cap.data.tasks import Task
from cap.data.tokens import Layout, read_array

SCORES_OF_ENTITIES = ("f1", "precision", "recall")
SCORES_OF_TAGS = ("macro_f1", "accuracy")
UNREAD = -1
"""Stands for the answer to a word that the model did not read."""
# Of examples: their numbers, how many of their words were answered, and all answers end to end.
_State = tuple[np.ndarray, np.ndarray, np.ndarray]


def check_tag_metrics(task: Task) -> None:
    """Check that a task asks for scores that exist for its tags.

    Raises:
        InputError: If a score is unknown, or counts entities where tags mark none.
    """
    check_metrics(task, (*SCORES_OF_ENTITIES, *SCORES_OF_TAGS), kind="tagging")
    if set(task.metrics) & set(SCORES_OF_ENTITIES) and entity_types(task.labels) is None:
        raise InputError(
            f"task.metrics may hold {', '.join(SCORES_OF_ENTITIES)} where tags mark entities by B- and I-, got "
            f"{list(task.metrics)} for the tags {shown(task.labels)}; choose among {', '.join(SCORES_OF_TAGS)}"
        )


def score_tags(task: Task, true: Sequence[np.ndarray], given: Sequence[np.ndarray]) -> dict[str, float]:
    """Score answers to rows of words.

    Args:
        task: Its metrics are the keys of the result.
        true: Tag numbers of the words of each row.
        given: Of the same words; ``UNREAD`` where there is no answer, which is none of the tags, and outside of every
            entity.

    Returns:
        Fractions in [0, 1]. ``precision``, ``recall`` and ``f1`` count entities of all types together, right ones being
        those whose first word, last word and type all are. ``macro_f1`` is the mean over the tags that occur in either,
        ``accuracy`` counts words.

    Source: the strict evaluation of SemEval-2013 task 9.1, which is that of CoNLL-2003 for tags that do not overlap.
    """
    scores = _entity_scores(task.labels, true, given) if set(task.metrics) & set(SCORES_OF_ENTITIES) else {}
    if set(task.metrics) & set(SCORES_OF_TAGS):
        scores |= _tag_scores(len(task.labels), np.concatenate(true), np.concatenate(given))
    return {name: scores[name] for name in task.metrics}


def majority_tags(task: Task, train: datasets.Dataset, rows: datasets.Dataset, *, suffix: str) -> dict[str, float]:
    """Score the model that gives every word the commonest training tag, of equals the one with the lowest number."""
    commonest = int(np.bincount(_flat(train), minlength=len(task.labels)).argmax())
    true = _by_row(rows)
    scores = score_tags(task, true, [np.full(len(tags), commonest) for tags in true])
    return {f"{name}{suffix}": score for name, score in scores.items()}


class TagMetrics:
    """Collect the tag of every word, and score all of them.

    Args:
        task: Its metrics are the keys of the result.
        rows: Their ``tags``.
        folder: What ``cap.data.words`` wrote for them: it says which words were read.
        suffix: Follows every key, to tell the splits of a task apart.

    Raises:
        InputError: If the task names a score that does not exist for its tags.
    """

    def __init__(self, task: Task, rows: datasets.Dataset, folder: Path, *, suffix: str = "") -> None:
        check_tag_metrics(task)
        self._task = task
        self._suffix = suffix
        self._rows = rows
        self._folder = folder
        self.reset()

    def reset(self) -> None:
        """Forget every row seen so far."""
        self._example_id: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
        self._counts: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
        self._given: list[np.ndarray] = [np.empty(0, dtype=np.int64)]

    def update(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Add the words of one batch.

        Args:
            logits: Of the tags, ``(batch, tokens, tags)``, any float type, any device.
            batch: With ``is_word``, the first sub-word of each word that was read, ``(batch, tokens)``.
        """
        is_word = batch["is_word"]
        self._example_id.append(batch["example_id"].cpu().numpy())
        self._counts.append(is_word.sum(dim=1).cpu().numpy())
        self._given.append(logits.detach()[is_word].argmax(dim=-1).cpu().numpy())

    def state(self) -> _State:
        """Return the rows since the last reset, how many words of each were read, and their tags end to end."""
        return np.concatenate(self._example_id), np.concatenate(self._counts), np.concatenate(self._given)

    def merge(self, states: Sequence[_State]) -> None:
        """Become the metrics that have seen all rows of several states, in place of their own."""
        self.reset()
        for example_id, counts, given in states:
            self._example_id.append(example_id)
            self._counts.append(counts)
            self._given.append(given)

    def answers(self) -> dict[int, np.ndarray]:
        """Return the tag numbers of the words of every row seen since the last reset, ``UNREAD`` where there is none.

        Returns:
            By row number, ascending.
        """
        example_id, counts, given = self.state()
        n_words = dict(zip(example_id.tolist(), self._lengths(example_id), strict=True))
        read = np.split(given, np.cumsum(counts)[:-1])
        answers = {}
        for place in example_id.argsort(kind="stable"):
            row = int(example_id[place])
            answers[row] = np.full(n_words[row], UNREAD)
            answers[row][self._words_read(row)] = read[place]
        return answers

    def compute(self) -> dict[str, float]:
        """Score every row seen since the last reset, see ``score_tags``.

        Raises:
            ValueError: If there was no row.
        """
        answers = self.answers()
        if not answers:
            raise ValueError("metrics need at least one row, got none; call update before compute")
        true = _by_row(self._rows)
        scores = score_tags(self._task, [true[row] for row in answers], list(answers.values()))
        return {f"{name}{self._suffix}": score for name, score in scores.items()}

    @property
    def is_constant(self) -> bool:
        """Say whether one and the same tag was given to every word since the last reset."""
        given = np.concatenate(self._given)
        return bool((given == given[:1]).all())

    def _lengths(self, example_id: np.ndarray) -> list[int]:
        lengths = pc.list_value_length(self._rows.data.column(TAGS)).to_numpy()
        return [int(n) for n in lengths[example_id]]

    @cached_property
    def _layout(self) -> Layout:
        return Layout(np.asarray(read_array(self._folder, "lengths")))

    @cached_property
    def _words(self) -> np.ndarray:
        return read_array(self._folder, "words")

    def _words_read(self, row: int) -> np.ndarray:
        start = int(self._layout.starts[row])
        words = self._words[start : start + int(self._layout.lengths[row])]
        return np.asarray(words[words >= 0])


def _flat(rows: datasets.Dataset) -> np.ndarray:
    """Return the tags of all rows end to end."""
    flat: np.ndarray = pc.list_flatten(rows.data.column(TAGS)).to_numpy()
    return flat


def _by_row(rows: datasets.Dataset) -> list[np.ndarray]:
    lengths = pc.list_value_length(rows.data.column(TAGS)).to_numpy()
    return np.split(_flat(rows), np.cumsum(lengths)[:-1])


def _entity_scores(labels: Sequence[str], true: Sequence[np.ndarray], given: Sequence[np.ndarray]) -> dict[str, float]:
    # A bare B or I is of the one type there is, whose name is empty; UNREAD is the last name.
    names = [f"{label}-" if label in ("B", "I") else label for label in (*labels, OUTSIDE)]
    wanted, found = ([[names[number] for number in row] for row in rows] for rows in (true, given))
    types = list(entity_types(labels) or ())
    strict = Evaluator(wanted, found, tags=types, loader="list").evaluate()["overall"]["strict"]
    return {"f1": float(strict.f1), "precision": float(strict.precision), "recall": float(strict.recall)}


def _tag_scores(n_tags: int, true: np.ndarray, given: np.ndarray) -> dict[str, float]:
    wanted, found = torch.from_numpy(true), torch.from_numpy(np.where(given == UNREAD, n_tags, given))
    # No answer is a class of its own: it costs the recall of the others, and does not count itself.
    by_tag = multiclass_f1_score(found, wanted, num_classes=n_tags + 1, average="none")[:n_tags]
    is_there = torch.bincount(torch.cat([wanted, found]), minlength=n_tags + 1)[:n_tags] > 0
    return {"macro_f1": float(by_tag[is_there].mean()), "accuracy": float((wanted == found).double().mean())}


__all__ = [
    "SCORES_OF_ENTITIES",
    "SCORES_OF_TAGS",
    "UNREAD",
    "TagMetrics",
    "check_tag_metrics",
    "majority_tags",
    "score_tags",
]
