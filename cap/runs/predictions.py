"""``predictions.csv``: what a model answered to every row, beside what was asked for."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from cap.base.files import atomic_file

Columns = dict[str, Sequence[Any]]
"""The cells of each column, all columns equally long."""

_BETWEEN_ANSWERS = " | "


def class_columns(logits: Float[Tensor, "rows classes"], labels: Int[Tensor, " rows"], names: Sequence[str]) -> Columns:
    """Make the columns of a classification.

    Args:
        logits: Row by row, ordered by example_id.
        labels: Class numbers.
        names: Of the classes, in the order of the outputs.

    Returns:
        ``example_id``, ``label``, ``prediction`` and ``p_<name>`` for each class, the softmax of the logits.
    """
    probabilities = logits.double().softmax(dim=1).float().cpu().numpy()
    return {
        "example_id": range(len(labels)),
        "label": [names[number] for number in labels.tolist()],
        "prediction": [names[number] for number in logits.argmax(dim=1).tolist()],
        **{f"p_{name}": _shortest(probabilities[:, i]) for i, name in enumerate(names)},
    }


def set_columns(
    logits: Float[Tensor, "rows labels"], marked: Int[Tensor, "rows labels"], names: Sequence[str]
) -> Columns:
    """Make the columns of texts with any number of labels.

    Args:
        logits: Row by row, ordered by example_id.
        marked: 1 for the labels that a row has.
        names: Of the labels, in the order of the outputs.

    Returns:
        ``example_id``, ``label`` and ``prediction`` (names, joined, empty for none), and ``p_<name>`` for each label,
        the sigmoid of its logit.
    """
    probabilities = logits.double().sigmoid().float().cpu().numpy()
    columns = {"label": marked > 0, "prediction": logits > 0}
    return {
        "example_id": range(len(marked)),
        **{
            column: [_BETWEEN_ANSWERS.join(compress(names, row)) for row in own.tolist()]
            for column, own in columns.items()
        },
        **{f"p_{name}": _shortest(probabilities[:, i]) for i, name in enumerate(names)},
    }


def number_columns(values: Float[Tensor, " rows"], labels: Float[Tensor, " rows"]) -> Columns:
    """Make the columns of a regression: ``example_id``, ``label``, ``prediction``, ordered by example_id."""
    return {
        "example_id": range(len(labels)),
        "label": _shortest(labels.float().cpu().numpy()),
        "prediction": _shortest(values.float().cpu().numpy()),
    }


def answer_columns(answers: Mapping[int, str], accepted: Iterable[Sequence[str]]) -> Columns:
    """Make the columns of questions.

    Args:
        answers: Text by the question's row number; none is an empty one.
        accepted: The right answers to every question, in the order of the rows.

    Returns:
        ``example_id`` (the row number), ``label`` (the different right answers, joined), ``prediction``.
    """
    joined = [_BETWEEN_ANSWERS.join(dict.fromkeys(texts)) for texts in accepted]
    return {
        "example_id": range(len(joined)),
        "label": joined,
        "prediction": [answers.get(row, "") for row in range(len(joined))],
    }


def tag_columns(
    answers: Mapping[int, Sequence[int]],
    words: Iterable[Sequence[str]],
    tags: Iterable[Sequence[int]],
    names: Sequence[str],
) -> Columns:
    """Make the columns of tagged words, a line for each word.

    Args:
        answers: Tag numbers of all words by row number; a negative one stands for a word that was not read.
        words: Of every row.
        tags: Their right tag numbers.
        names: Of the tags, in the order of the outputs.

    Returns:
        ``example_id`` (the row number), ``word`` (its number in the row, from 0), ``token`` (the word itself),
        ``label``, ``prediction`` (empty for a word that was not read).
    """
    lines = [
        (row, place, word, names[tag], names[given] if given >= 0 else "")
        for row, (own, right) in enumerate(zip(words, tags, strict=True))
        for place, (word, tag, given) in enumerate(zip(own, right, answers[row], strict=True))
    ]
    columns = zip(*lines, strict=True) if lines else [()] * 5
    return dict(zip(("example_id", "word", "token", "label", "prediction"), columns, strict=True))


def pair_columns(similarity: Float[Tensor, " pairs"], scores: Float[Tensor, " pairs"] | None) -> Columns:
    """Make the columns of pairs of texts.

    Args:
        similarity: Cosine similarities, ordered by row number.
        scores: Of the pairs; None where they have none.

    Returns:
        ``example_id`` (the row number), ``label`` (the score, if there is one), ``prediction`` (the similarity).
    """
    right = {} if scores is None else {"label": _shortest(scores.float().cpu().numpy())}
    return {
        "example_id": range(len(similarity)),
        **right,
        "prediction": _shortest(similarity.float().cpu().numpy()),
    }


def write_predictions(path: Path, splits: Mapping[str, Columns]) -> None:
    """Write a csv file whole or not at all.

    Args:
        path: The file.
        splits: The columns of each split, the same ones; where there are several, ``split`` says which.
    """
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        for number, (split, columns) in enumerate(splits.items()):
            names, rows = list(columns), zip(*columns.values(), strict=True)
            has_split = len(splits) > 1
            if number == 0:
                writer.writerow([names[0], "split", *names[1:]] if has_split else names)
            writer.writerows(([first, split, *rest] for first, *rest in rows) if has_split else rows)


def _shortest(values: np.ndarray) -> list[str]:
    """Write each number with as few digits as tell it from its neighbours."""
    return [str(value) for value in values]


__all__ = [
    "Columns",
    "answer_columns",
    "class_columns",
    "number_columns",
    "pair_columns",
    "set_columns",
    "tag_columns",
    "write_predictions",
]
