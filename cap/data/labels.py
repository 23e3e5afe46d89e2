"""Labels of any file as class numbers in the task's order, or as float32 values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features

from cap.base.errors import InputError
from cap.data.tasks import Task
from cap.data.texts import and_more

_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")
_MOST_NAMED = 10
KEEPING = ", or set data.keep_unlabelled=true in cap.train if it is a training row, to learn from its text alone"
"""What ends a message about a missing label."""
_READABLE = (
    pa.types.is_string,
    pa.types.is_large_string,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_null,
)


class LabelColumn:
    """Count the labels of one file.

    Args:
        table: Rows as they were read; the schema may carry ``datasets``' features.
        column: Their label column.
        where: What to call the rows in a message.
        may_be_empty: Whether rows without a label are passed over and not refused.

    Attributes:
        given: Class names of a ``ClassLabel`` in its order; empty where there is none.
        counts: Rows of every label by its name, see ``class_name``; in the order of their first rows.
        is_floating: True if labels are stored as floats, and not only because some are missing.

    Raises:
        InputError: If it holds anything but texts, numbers and booleans, or nothing in a row that must have a label.
    """

    def __init__(self, table: pa.Table, column: str, where: str, *, may_be_empty: bool = False) -> None:
        self.table = table.select([column])
        self.where = where
        self.may_be_empty = may_be_empty
        self.given = _given_names(table, column)
        self._values = _values(table, column, where)
        filled = self._filled(column)
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, Any] = {}
        for entry in filled.value_counts().to_pylist():
            value = entry["values"]
            is_given = bool(self.given) and 0 <= value < len(self.given)
            name = self.given[value] if is_given else class_name(value)
            self.counts[name] += entry["counts"]
            self._examples.setdefault(name, value)
        # A gap makes floats of a column of whole numbers.
        is_only_for_gaps = len(filled) < len(self._values) and all(map(is_whole_number, self.counts))
        self.is_floating = bool(pa.types.is_floating(self._values.type)) and not is_only_for_gaps

    def place(self, name: str) -> str:
        """Show a label as it is written in its first row."""
        value = self._examples[name]
        row = pc.index(self._values, pa.scalar(value, self._values.type)).as_py()
        shown = repr(value) if class_name(value) == name else f"{name} ({value!r})"
        shown = f"{name} (a boolean)" if isinstance(value, bool) else shown
        return f"{shown} in row {row} (counted from 0) of {self.where}"

    def _filled(self, column: str) -> pa.ChunkedArray:
        """Return the labels that are there."""
        is_empty = pc.is_null(self._values, nan_is_null=True)
        if pa.types.is_string(self._values.type) or pa.types.is_large_string(self._values.type):
            is_empty = pc.or_kleene(is_empty, pc.equal(pc.utf8_trim_whitespace(self._values), ""))
        filled = self._values.filter(pc.invert(is_empty))
        row = pc.index(is_empty, True).as_py()
        if row >= 0 and not (self.may_be_empty and len(filled)):
            wanted = "some" if self.may_be_empty else "every"
            raise InputError(
                f"column {column} must hold a label in {wanted} row, got {self._values[row].as_py()!r} in row {row}"
                f"{and_more(is_empty)} (counted from 0) of {self.where}; fill it in or remove the row{KEEPING}"
            )
        return filled


def class_name(value: Any) -> str:
    """Name the class that a label stands for: a stripped text, a number's decimal text, ``false`` or ``true``."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value).strip()


def is_whole_number(name: str) -> bool:
    """Say whether a class name, or the text of a label, is a whole number."""
    return _WHOLE_NUMBER.fullmatch(name) is not None


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Order class names: whole numbers by their value where all are, else all as words."""
    given = list(names)
    if all(map(is_whole_number, given)):
        return tuple(sorted(given, key=lambda name: (int(name), name)))
    return tuple(sorted(given))


def read_labels(task: Task, table: pa.Table, where: str, *, may_be_empty: bool = False) -> pa.Array:
    """Convert a table's label column.

    Names, and numbers that a ``ClassLabel`` names in another order, are mapped by name. Other numbers are class
    numbers, unless the task's class names are numbers themselves: then those are names, too.

    Args:
        task: Its label column, and its class names in order.
        table: Rows as they were read; the schema may carry ``datasets``' features.
        where: What to call the rows in a message.
        may_be_empty: Whether a label may be missing or hidden (-1).

    Returns:
        int64 class numbers, or float32 values for regression; null where there is none.

    Raises:
        InputError: If a label is not one of the task's, or missing or hidden where it may not be, naming the row.
    """
    column = _values(table, task.label_column, where)
    named = _given_names(table, task.label_column)
    # Few distinct values stand for all rows of a classification: each is looked up once.
    encoded = column.combine_chunks().dictionary_encode()
    values: list[Any] = encoded.dictionary.to_pylist()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    codes = encoded.indices.fill_null(len(values)).to_numpy(zero_copy_only=False)
    numbers = np.full(len(values) + 1, np.nan)
    numbers[: len(values)] = [_number(task, value, named) for value in values]
    labels = numbers[codes]
    is_empty = np.array([may_be_empty and _is_empty(task, value) for value in [*values, None]])[codes]
    labels[is_empty] = 0  # whatever; NaN would not do
    bad = np.flatnonzero(~np.isfinite(labels))
    if len(bad):
        row = int(bad[0])
        raise InputError(_complaint(task, column[row].as_py(), named, row, where))
    return pa.array(labels.astype(np.float32 if task.kind == "number" else np.int64), mask=is_empty)


def _values(table: pa.Table, column: str, where: str) -> pa.ChunkedArray:
    values = table.column(column)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not any(is_kind(values.type) for is_kind in _READABLE):
        raise InputError(
            f"column {column} of {where} must hold a class name or a number in every row, got {values.type}; "
            "convert it to strings or numbers"
        )
    return values.cast(pa.float64()) if pa.types.is_decimal(values.type) else values


def _given_names(table: pa.Table, column: str) -> tuple[str, ...]:
    feature = Features.from_arrow_schema(table.schema)[column]
    return tuple(feature.names) if isinstance(feature, ClassLabel) else ()


def _number(task: Task, value: Any, named: tuple[str, ...]) -> float:
    """Map one value to its class number or value; NaN where it has none."""
    if named and isinstance(value, int):
        value = named[value] if 0 <= value < len(named) else None
    if task.kind == "number":
        number = _as_float(value)
        return number if abs(number) <= float(np.finfo(np.float32).max) else np.nan
    name = class_name(value)
    if name in task.labels:
        return float(task.labels.index(name))
    if any(is_whole_number(label) for label in task.labels):
        return np.nan
    number = _as_float(value)
    return number if number in range(len(task.labels)) else np.nan


def _is_empty(task: Task, value: Any) -> bool:
    """Say whether a value is no label: nothing, or the -1 by which the Hub hides one."""
    if value is None or value != value or class_name(value) == "":
        return True
    # -1 may well be a value, or the name of a class, of a user's own.
    is_own = task.kind == "number" and task.hub_path is None
    return _as_float(value) == -1 and not is_own and "-1" not in task.labels


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return np.nan


def _complaint(task: Task, value: Any, named: tuple[str, ...], row: int, where: str) -> str:
    place = f"row {row} (counted from 0) of {where}"
    is_hidden = value in (-1, "-1")
    hint = KEEPING if _is_empty(task, value) else ""
    value = f"{value} ({named[value]})" if named and isinstance(value, int) and 0 <= value < len(named) else value
    if task.kind == "number":
        return (
            f"labels of task={task.name} must be finite numbers, got {value!r} in {place}; correct or remove the "
            f"row{hint}"
        )
    names_are_numbers = any(map(is_whole_number, task.labels))
    choices = [name if names_are_numbers else f"{number} ({name})" for number, name in enumerate(task.labels)]
    wanted = ", ".join(choices[:_MOST_NAMED]) + (", ..." if len(choices) > _MOST_NAMED else "")
    if is_hidden:
        return (
            f"labels of task={task.name} must be {wanted}, got -1 in {place}: -1 marks the hidden labels of a test "
            f"split; give a split whose labels are known{KEEPING}"
        )
    return f"labels of task={task.name} must be {wanted}, got {value!r} in {place}; correct the row{hint}"


__all__ = ["KEEPING", "LabelColumn", "class_name", "in_order", "is_whole_number", "read_labels"]
