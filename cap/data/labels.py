"""Labels of any file as class numbers in the task's order, or as float32 values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Features

from cap.data.tasks import Task
from cap.errors import InputError


def read_labels(task: Task, table: pa.Table, where: str) -> pa.Array:
    """Convert a table's label column.

    Class numbers are kept; names, and numbers that a ``ClassLabel`` names in another order, are mapped by name.

    Args:
        task: Its label column, and its class names in order.
        table: Rows as they were read; the schema may carry ``datasets``' features.
        where: What to call the rows in a message.

    Returns:
        int64 class numbers, or float32 values for regression.

    Raises:
        InputError: If a label is missing, hidden (-1) or not one of the task's, naming the row.
    """
    column = table.column(task.label_column)
    feature = Features.from_arrow_schema(table.schema)[task.label_column]
    named = list(feature.names) if isinstance(feature, ClassLabel) else []
    # Few distinct values stand for all rows of a classification: each is looked up once.
    encoded = column.combine_chunks().dictionary_encode()
    values: list[Any] = encoded.dictionary.to_pylist()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    codes = encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    numbers = np.full(len(values) + 1, np.nan)
    numbers[: len(values)] = [_number(task, value, named) for value in values]
    labels = numbers[codes]
    bad = np.flatnonzero(~np.isfinite(labels))
    if len(bad):
        row = int(bad[0])
        raise InputError(_complaint(task, column[row].as_py(), named, row, where))
    if task.kind == "number":
        return pa.array(labels.astype(np.float32))
    return pa.array(labels.astype(np.int64))


def _number(task: Task, value: Any, named: list[str]) -> float:
    """Map one value to its class number or value; NaN where it has none."""
    if named and isinstance(value, int):
        value = named[value] if 0 <= value < len(named) else None
    if isinstance(value, str) and value.strip() in task.labels:
        return float(task.labels.index(value.strip()))
    try:
        number = float(value)
    except (TypeError, ValueError):
        return np.nan
    if task.kind == "number":
        return number
    return number if number in range(len(task.labels)) else np.nan


def _complaint(task: Task, value: Any, named: list[str], row: int, where: str) -> str:
    place = f"row {row} (counted from 0) of {where}"
    if task.kind == "number":
        return f"labels of task={task.name} must be finite numbers, got {value!r} in {place}; correct or remove the row"
    wanted = ", ".join(f"{number} ({name})" for number, name in enumerate(task.labels))
    if value in (-1, "-1"):
        return (
            f"labels of task={task.name} must be {wanted}, got -1 in {place}: -1 marks the hidden labels of a test "
            "split; give a split whose labels are known"
        )
    if named and isinstance(value, int) and 0 <= value < len(named):
        value = f"{value} ({named[value]})"
    return f"labels of task={task.name} must be {wanted}, got {value!r} in {place}; correct the row"


__all__ = ["read_labels"]
