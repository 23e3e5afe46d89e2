"""Texts to encode and pairs to score them on, ``task=embed``: no label is learned from."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from cap.base.errors import InputError
from cap.data.files import NAME_YOURS, require_columns
from cap.data.labels import read_labels
from cap.data.metrics import check_metrics
from cap.data.own_files import OwnFiles
from cap.data.tasks import Task
from cap.data.texts import checked_texts

log = logging.getLogger(__name__)

TEXT = "text"
"""What the column of training texts is called, whatever columns of the file they come from."""
PAIR = ("first", "second")
"""What the columns of a pair are called: two texts whose likeness has a score, or a query and its document."""
SCORE = "score"
"""What the column of scores is called."""
SCORES_OF_LIKENESS = ("spearman", "pearson")
SCORES_OF_RETRIEVAL = ("recall_at_10", "ndcg_at_10")
TOP = 10
"""How many documents retrieval looks at."""


def embed_task(own: OwnFiles) -> Task:
    """Describe a task that encodes texts.

    Args:
        own: Columns with texts. Of the training file each that is there is learned from; of the validation file exactly
            two are there: the pairs. The label column, of the validation file, holds the pairs' scores, larger for
            texts that are more alike; without one the second text of a pair is the document that the first one asks
            for. Its scores are spearman where pairs have scores, else recall_at_10 and ndcg_at_10, unless it names
            others. No training text has a label.

    Returns:
        The task ``embed``.

    Raises:
        InputError: If keys are missing or do not go together.
    """
    texts, label_column = tuple(own.text_columns or ()), own.label_column
    if not texts or len({*texts, label_column}) <= len(texts):
        raise InputError(
            f"task=embed reads texts from different columns (task.text_columns), none of which holds the pairs' scores "
            f"(task.label_column), got {list(texts)} and {label_column!r}; set "
            f"task.text_columns=[question1,question2], say"
        )
    own.require_no_label_type("embed", because="where the scores of pairs are numbers")
    own.folder("embed")
    known = SCORES_OF_LIKENESS if label_column else SCORES_OF_RETRIEVAL
    default = SCORES_OF_LIKENESS[:1] if label_column else SCORES_OF_RETRIEVAL
    task = Task(
        name="embed",
        kind="encoding",
        text_columns=texts,
        label_column=label_column or "",
        labels=(),
        metrics=own.metrics_or(default),
        validation_splits=(own.scored,),
    )
    has_scores = "whose pairs have scores" if label_column else "without task.label_column (retrieval)"
    check_metrics(task, known, kind=f"task=embed {has_scores}")
    return task


def read_pairs(
    task: Task, tables: Mapping[str, tuple[pa.Table, str]], limits: Mapping[str, int | None]
) -> dict[str, Dataset]:
    """Read training texts, each once, and the pairs that are held out to score them.

    Args:
        task: Names the columns.
        tables: By split the rows as they were read, and what to call them in a message.
        limits: By split the first so many rows that are taken; None takes all.

    Returns:
        ``train``, if it was read, with ``text``; the validation splits with ``first``, ``second``, and ``score``
        (float32) where the task has one. All have ``example_id``, int64 row numbers. No validation text is among the
        training texts.

    Raises:
        InputError: If columns or texts are missing, scores are no numbers or all equal, or no training text is left.
    """
    pairs = {split: _pairs(task, *tables[split], limits[split]) for split in task.validation_splits}
    validation = {split: _numbered(rows) for split, rows in pairs.items()}
    if "train" not in tables:
        return validation
    held_out = {text for rows in pairs.values() for name in PAIR for text in rows[name].to_pylist()}
    table, where = tables["train"]
    texts = _training_texts(task, table.slice(0, limits["train"]), where, held_out)
    return {"train": _numbered({TEXT: texts}), **validation}


def text_names(rows: Dataset) -> list[str]:
    """Name the columns of ``read_pairs``' rows that hold texts, in order."""
    return [name for name in (TEXT, *PAIR) if name in rows.column_names]


def _training_texts(task: Task, table: pa.Table, where: str, held_out: set[str]) -> pa.Array:
    names = [name for name in task.text_columns if name in table.column_names]
    require_columns(task.name, table, names or task.text_columns, where, advice=NAME_YOURS)
    # An empty text, as QQP has two, teaches nothing: it is left out, and said.
    found = [text for name in names for text in checked_texts(table[name], name, where, is_fixed=True).to_pylist()]
    different = dict.fromkeys(text for text in found if text.strip())
    kept = [text for text in different if text not in held_out]
    n_held_out = len(different) - len(kept)
    log.info(
        "task=embed: %s different texts of the columns %s of %s; %s are left out, which the validation rows have",
        f"{len(different):,}",
        ", ".join(names),
        where,
        f"{n_held_out:,}",
    )
    if not kept:
        raise InputError(
            f"training texts must not be those of the validation pairs, got {n_held_out} different texts in {where}, "
            f"all of them among the validation rows; add other texts"
        )
    return pa.array(kept, pa.string())


def _pairs(task: Task, table: pa.Table, where: str, limit: int | None) -> dict[str, Any]:
    names = [name for name in task.text_columns if name in table.column_names]
    if len(names) != 2:
        raise InputError(
            f"validation rows of task=embed are pairs: two of task.text_columns={list(task.text_columns)} must be "
            f"columns of {where}, got {', '.join(names) or 'none'} of its columns {', '.join(table.column_names)}; "
            f"name two of them with task.text_columns=[A,B], or give a file with pairs"
        )
    label = [task.label_column] if task.label_column else []
    require_columns(task.name, table, [*names, *label], where, advice=NAME_YOURS)
    table = table.slice(0, limit)
    pair = {
        own: checked_texts(table.column(name), name, where, is_fixed=False)
        for own, name in zip(PAIR, names, strict=True)
    }
    if not label:
        _require_documents(pair[PAIR[1]], where)
        return pair
    return {**pair, SCORE: _scores(task, table, where)}


def _scores(task: Task, table: pa.Table, where: str) -> pa.Array:
    # Of classes with names, as the Hub has them, the numbers are the scores.
    plain = table.select([task.label_column]).replace_schema_metadata(None)
    numbers = dataclasses.replace(task, kind="number", text_columns=PAIR)
    scores = read_labels(numbers, plain, where)
    if pc.count_distinct(scores).as_py() < 2:
        raise InputError(
            f"encodings are scored by correlations with the pairs' scores, which need two different ones at least, got "
            f"only {scores[0]} in column {task.label_column} of {where}; give other rows, or leave task.label_column "
            f"out to score retrieval"
        )
    return scores


def _require_documents(documents: pa.ChunkedArray, where: str) -> None:
    n = pc.count_distinct(documents).as_py()
    if n <= TOP:
        raise InputError(
            f"retrieval looks at the best {TOP} documents and needs more than {TOP} different ones, got {n} in the "
            f"second column of {where}; give more rows, or scores of the pairs with task.label_column"
        )


def _numbered(columns: Mapping[str, Any]) -> Dataset:
    table = pa.table(dict(columns))
    return Dataset(table.append_column("example_id", pa.array(np.arange(table.num_rows, dtype=np.int64))))


__all__ = [
    "PAIR",
    "SCORE",
    "SCORES_OF_LIKENESS",
    "SCORES_OF_RETRIEVAL",
    "TEXT",
    "TOP",
    "embed_task",
    "read_pairs",
    "text_names",
]
