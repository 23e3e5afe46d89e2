"""Texts without labels beside a task's training rows: from a file, or from the training rows themselves."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pyarrow as pa
from datasets import Dataset

from cap.base.errors import InputError
from cap.data.files import read_columns, require_columns
from cap.data.sources import Rows, Unlabelled, is_published_pair
from cap.data.tasks import Task
from cap.data.texts import checked_texts

log = logging.getLogger(__name__)


def with_unlabelled(
    rows: Rows, task: Task, *, file: Path | None, max_rows: int | None, keep_unlabelled: bool = False
) -> Rows:
    """Add the rows of a file to the training rows without a label.

    Texts that training has already are left out, and those of validation rows, held-out ones among them: what the
    teacher answers to these would be learned, and their score would be none of unseen texts.

    Args:
        rows: Of the task; those without a label that were found among the training rows come first.
        task: Its text columns are read; what else the file holds, labels too, is not.
        file: parquet, jsonl, json, csv or tsv; None adds none.
        max_rows: Take the first so many rows without a label; None takes all.
        keep_unlabelled: Whether training rows without a label were asked for.

    Returns:
        The rows; ``unlabelled`` is None if nothing of it is left.

    Raises:
        InputError: If the file or one of its texts is not what is required, or if it is not clear what has no label.
    """
    if keep_unlabelled:
        _require_clear_marks(rows, task)
    parts = [] if rows.unlabelled is None else [rows.unlabelled]
    if file is not None:
        parts.append(_read(file, task))
    if not parts:
        return rows
    validated = {text for split in task.validation_splits for text in _texts(task, rows.splits[split])}
    known = set(_texts(task, rows.splits["train"]))
    tables, n_repeated, n_validated = [], 0, 0
    for part in parts:
        texts = _texts(task, part.rows)
        is_new = pa.array([text not in known and text not in validated for text in texts], pa.bool_())
        tables.append(part.rows.data.table.filter(is_new))
        n_repeated += sum(text in known for text in texts)
        n_validated += sum(text in validated and text not in known for text in texts)
        known.update(texts)  # the file may hold the training rows again, those without a label too
    found = Dataset(pa.concat_tables(tables).slice(0, max_rows))
    source = " and ".join(part.source for part in parts)
    log.info(
        "rows without a label from %s: %s; left out are %s whose texts training has already, and %s whose texts are "
        "those of validation rows",
        source,
        f"{found.num_rows:,}",
        f"{n_repeated:,}",
        f"{n_validated:,}",
    )
    if found.num_rows == 0:
        log.warning("no row without a label is left: training or validation has the texts of all rows of %s", source)
        return dataclasses.replace(rows, unlabelled=None)
    return dataclasses.replace(rows, unlabelled=Unlabelled(found, source, n_repeated, n_validated))


def _require_clear_marks(rows: Rows, task: Task) -> None:
    """Refuse a class called -1 that only training rows have: it may be the mark of a row without a label."""
    if "-1" not in task.labels:
        return
    mark = task.labels.index("-1")
    # Rows that were held out of training are no witnesses.
    if not rows.has_held_out and any(mark in rows.splits[split].unique("label") for split in task.validation_splits):
        return
    raise InputError(
        f"data.keep_unlabelled=true needs to know what has no label, but the training rows hold the label -1, which "
        f"no validation row has: it may be a class, or mark such rows. Leave {task.label_column} empty where there is "
        f"no label, or give the class another name"
    )


def _read(file: Path, task: Task) -> Unlabelled:
    table, where = read_columns(file, task.text_columns, key="data.unlabelled"), f"data.unlabelled file {file.name}"
    require_columns(task.name, table, task.text_columns, where)
    is_fixed = is_published_pair(task)
    texts = {name: checked_texts(table.column(name), name, where, is_fixed=is_fixed) for name in task.text_columns}
    return Unlabelled(Dataset(pa.table(texts)), f"file {file.name}")


def _texts(task: Task, rows: Dataset) -> list[tuple[str, ...]]:
    return list(zip(*(rows.data.column(name).to_pylist() for name in task.text_columns), strict=True))


__all__ = ["with_unlabelled"]
