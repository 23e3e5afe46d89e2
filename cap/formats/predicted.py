"""What a model answered to the rows of a split, as columns of ``predictions.csv``, by kind of answer."""

from __future__ import annotations

from collections.abc import Callable

import datasets
import torch

from cap.base.kinds import Kind
from cap.data.likeness import similarities
from cap.data.majority import labels_of
from cap.data.pairs import SCORE
from cap.data.tags import TAGS
from cap.data.tasks import Task
from cap.runs.predictions import (
    Columns,
    answer_columns,
    class_columns,
    number_columns,
    pair_columns,
    set_columns,
    tag_columns,
)
from cap.training.predict import Answers


def columns_of(task: Task, rows: datasets.Dataset, answers: Answers) -> Columns:
    """Put a model's answers beside the right ones.

    Args:
        task: Says what an answer is.
        rows: Those of one split, in order.
        answers: To them.
    """
    return _COLUMNS[task.kind](task, rows, answers)


def _class_columns(task: Task, rows: datasets.Dataset, answers: Answers) -> Columns:
    assert answers.logits is not None
    return class_columns(answers.logits, labels_of(task, rows), task.labels)


def _set_columns(task: Task, rows: datasets.Dataset, answers: Answers) -> Columns:
    assert answers.logits is not None
    return set_columns(answers.logits, labels_of(task, rows), task.labels)


def _number_columns(task: Task, rows: datasets.Dataset, answers: Answers) -> Columns:
    assert answers.logits is not None
    return number_columns(answers.logits[:, 0], labels_of(task, rows))


def _answer_columns(task: Task, rows: datasets.Dataset, answers: Answers) -> Columns:
    return answer_columns(answers.in_text or {}, rows["answers"][:])


def _tag_columns(task: Task, rows: datasets.Dataset, answers: Answers) -> Columns:
    (column,) = task.text_columns
    given = {row: tags.tolist() for row, tags in (answers.in_text or {}).items()}
    return tag_columns(given, rows[column][:], rows[TAGS][:], task.labels)


def _pair_columns(task: Task, rows: datasets.Dataset, answers: Answers) -> Columns:
    assert answers.logits is not None
    scores = torch.tensor(rows[SCORE][:]) if SCORE in rows.column_names else None
    return pair_columns(similarities(answers.logits[::2], answers.logits[1::2]), scores)


_COLUMNS: dict[Kind, Callable[[Task, datasets.Dataset, Answers], Columns]] = {
    "classes": _class_columns,
    "label_sets": _set_columns,
    "number": _number_columns,
    "span": _answer_columns,
    "tags": _tag_columns,
    "encoding": _pair_columns,
}


__all__ = ["columns_of"]
