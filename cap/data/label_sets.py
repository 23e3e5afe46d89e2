"""Several labels for each text, in a user's own files: a column of lists, which may be empty."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cap.base.errors import InputError
from cap.data.labels import KEEPING, in_order
from cap.data.lists import first_true, given_names, is_list, named_lists, read_lists, require_known, row_place, shown
from cap.data.metrics import TaskMetrics
from cap.data.own_files import OwnFiles
from cap.data.tasks import Task

log = logging.getLogger(__name__)

SCORES_OF_SETS = ("micro_f1", "macro_f1")
_FORMATS = "parquet or jsonl"


def holds_lists(tables: Mapping[str, pa.Table], column: str) -> bool:
    """Say whether the labels of a user's files are lists.

    Args:
        tables: What was read, by what a message calls it.
        column: The column with the labels.

    Raises:
        InputError: If those of one file are lists, and those of another are not.
    """
    lists = [where for where, table in tables.items() if is_list(table.column(column).type)]
    others = [where for where in tables if where not in lists]
    if lists and others:
        raise InputError(
            f"column {column} must hold a list of labels in every row of all files, or one label in every row, got "
            f"lists in {lists[0]} and {tables[others[0]].column(column).type} in {others[0]}; write both in one way"
        )
    return bool(lists)


def label_sets_task(tables: Mapping[str, pa.Table], own: OwnFiles, *, texts: tuple[str, ...], label: str) -> Task:
    """Describe a task whose texts have any number of labels each, none included.

    Args:
        tables: Of training and of validation, by what a message calls them.
        own: Its scores are micro_f1 and macro_f1 unless it names others; its label type must be None: that labels are
            lists is seen. Training rows may lack a list where it says so; an empty one is always a row without any of
            the labels.
        texts: The columns with texts.
        label: The column with lists of labels: names or whole numbers.

    Returns:
        The task ``custom``; its labels are those of the training rows, whole numbers in their own order, words in
        alphabetical order, those of a ``ClassLabel`` in its order.

    Raises:
        InputError: If the labels are not what is required.
    """
    if own.label_type is not None:
        raise InputError(
            f"task.label_type says what single labels are, got {own.label_type} where column {label} holds a list in "
            f"every row; leave it out, or write one label a row"
        )
    for where, table in tables.items():
        _refuse_marks(table, label, where)
    (trained, train), (validated, validation) = tables.items()
    names = read_sets(train, label, trained, may_be_empty=own.keep_unlabelled)
    labels = given_names(train, label) or in_order(names.flatten().unique().to_pylist())
    if len(labels) < 2:
        raise InputError(
            f"labels are learned where there are two different ones at least, got {shown(labels) or 'none'} in "
            f"{trained}; give rows with others, or another task.label_column"
        )
    found = read_sets(validation, label, validated)
    require_known(found, labels, validated, among=f"those of {trained}", what="label")
    task = Task(
        name="custom",
        kind="label_sets",
        text_columns=texts,
        label_column=label,
        labels=labels,
        metrics=own.metrics_or(SCORES_OF_SETS),
        validation_splits=(own.scored,),
    )
    TaskMetrics(task)
    log.info(
        "task=custom: column %s holds any number of %d labels (%s), %.2f in a row on average; scored by %s",
        label,
        len(labels),
        shown(labels),
        len(names.flatten()) / max(1, len(names) - names.null_count),
        ", ".join(task.metrics),
    )
    return task


def _refuse_marks(table: pa.Table, column: str, where: str) -> None:
    """Refuse 0 and 1 for each label in place of the labels that a text has: 0 and 1 would be the labels.

    Raises:
        InputError: If all rows have equally many of them, two at least.
    """
    lists = table.column(column)
    if given_names(table, column) or pa.types.is_string(lists.type.value_type):
        return
    flat = pc.list_flatten(lists).drop_null()
    lengths = pc.unique(pc.list_value_length(lists).drop_null()).to_pylist()
    if len(lengths) == 1 and lengths[0] > 1 and {float(value) for value in flat.unique().to_pylist()} <= {0.0, 1.0}:
        raise InputError(
            f"column {column} must hold a list of the labels that a text has, got {lengths[0]} marks of 0 and 1 in "
            f"every row of {where}, one for each label; write the names where a mark is 1, or their numbers: [1, 2] "
            f"for [0, 1, 1]"
        )


def read_sets(table: pa.Table, column: str, where: str, *, may_be_empty: bool = False) -> pa.ListArray:
    """Read the labels of every row by name.

    Args:
        table: Rows as they were read; the schema may carry ``datasets``' features, which name numbers.
        column: The column with lists of names, or of numbers that have names or are names.
        where: What to call the rows in a message.
        may_be_empty: Whether a row may lack a list.

    Returns:
        Lists of strings, in the order of the file; null where there is none.

    Raises:
        InputError: If a row lacks its list, or a list holds something that is no label, naming the row.
    """
    lists = read_lists(table, column, where, what="labels", formats=_FORMATS, numbers=True)
    is_missing = lists.is_null().to_numpy(zero_copy_only=False)
    row = first_true(is_missing)
    if row is not None and (not may_be_empty or is_missing.all()):
        raise InputError(
            f"column {column} must hold a list of labels in {'some' if may_be_empty else 'every'} row, got nothing in "
            f"{row_place(row, where)}; write [] for a text without any of the labels, or remove the row{KEEPING}"
        )
    names = named_lists(lists, given_names(table, column))
    flat = names.flatten()
    place = first_true(pc.fill_null(pc.equal(flat, ""), True).to_numpy(zero_copy_only=False))
    if place is not None:
        rows = np.repeat(np.arange(len(names)), names.value_lengths().to_numpy())
        raise InputError(
            f"column {column} must hold lists of labels, got {flat[place].as_py()!r} as a label in "
            f"{row_place(int(rows[place]), where)}; correct or remove the row"
        )
    return pa.ListArray.from_arrays(names.offsets, flat, mask=pa.array(is_missing))


def read_label_sets(task: Task, table: pa.Table, where: str, *, may_be_empty: bool = False) -> pa.ListArray:
    """Read the labels of every row as numbers in the task's order.

    Args:
        task: Its label column, and its labels in order.
        table: Rows as they were read.
        where: What to call the rows in a message.
        may_be_empty: Whether a row may lack a list.

    Returns:
        Lists of int64; null where there is none.

    Raises:
        InputError: As ``read_sets``, or if a label is not one of the task's.
    """
    names = read_sets(table, task.label_column, where, may_be_empty=may_be_empty)
    require_known(names, task.labels, where, among=f"those of task={task.name}", what="label", may_add=False)
    numbers = pc.index_in(names.flatten(), value_set=pa.array(task.labels)).cast(pa.int64())
    return pa.ListArray.from_arrays(names.offsets, numbers, mask=names.is_null())


__all__ = ["SCORES_OF_SETS", "holds_lists", "label_sets_task", "read_label_sets", "read_sets"]
