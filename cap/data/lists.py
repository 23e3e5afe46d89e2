"""Columns of lists: of words, of tags, of labels; and how messages name what is in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features

from cap.base.errors import InputError
from cap.data.labels import class_name

_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
_SHOWN = 20


def is_list(kind: pa.DataType) -> bool:
    """Say whether a column of a type holds lists."""
    return any(is_kind(kind) for is_kind in _LISTS)


def read_lists(table: pa.Table, column: str, where: str, *, what: str, formats: str, numbers: bool = False) -> pa.Array:
    """Read a column of lists of texts, or of whole numbers too.

    Args:
        table: Rows as they were read.
        column: Its name.
        where: What to call the rows in a message.
        what: What the lists hold, for a message.
        formats: Of files that hold lists, likewise.
        numbers: Whether whole numbers will do.

    Returns:
        Lists of strings or int64, null where a row has none.

    Raises:
        InputError: If it holds anything else.
    """
    values = table.column(column)
    inner = values.type.value_type if is_list(values.type) else None
    is_text = inner is not None and any(is_kind(inner) for is_kind in _TEXTS)
    is_number = inner is not None and numbers and pa.types.is_integer(inner)
    if not (is_text or is_number):
        hint = "csv and tsv hold no lists: " if pa.types.is_string(values.type) else ""
        kinds = " (names or whole numbers)" if numbers else ""
        raise InputError(
            f"column {column} must hold a list of {what}{kinds} in every row, got {values.type} in {where}; "
            f"{hint}write it as {formats}"
        )
    wanted = pa.int64() if is_number else pa.string()
    return values.cast(pa.list_(wanted)).combine_chunks()


def given_names(table: pa.Table, column: str) -> tuple[str, ...]:
    """Return the names that a ``ClassLabel`` gives to the numbers of a column of lists, in its order; none without."""
    feature: Any = getattr(Features.from_arrow_schema(table.schema)[column], "feature", None)
    return tuple(feature.names) if isinstance(feature, ClassLabel) else ()


def named_lists(lists: pa.Array, given: tuple[str, ...]) -> pa.ListArray:
    """Give everything in lists its name; null where a number has none. A row without a list gets an empty one."""
    flat = lists.flatten()
    if not pa.types.is_integer(flat.type):
        names = pc.utf8_trim_whitespace(flat)
    elif given:
        is_named = pc.and_(pc.greater_equal(flat, 0), pc.less(flat, len(given)))
        names = pa.array(given).take(pc.if_else(is_named, flat, None))
    else:
        names = pa.array([None if value is None else class_name(value) for value in flat.to_pylist()], pa.string())
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)), names)


def require_known(
    names: pa.ListArray, known: Sequence[str], where: str, *, among: str, what: str = "tag", may_add: bool = True
) -> None:
    """Refuse tags, or other names in lists, that no training row has.

    Args:
        names: Row by row.
        known: Those that may occur.
        where: What to call the rows in a message.
        among: Whose the known ones are, likewise.
        what: What one of them is, likewise.
        may_add: Whether other training rows would help.

    Raises:
        InputError: If there is one; the message names the first.
    """
    flat = names.flatten()
    place = first_true(pc.invert(pc.is_in(flat, value_set=pa.array(known))).to_numpy(zero_copy_only=False))
    if place is None:
        return
    counts = pc.fill_null(pc.list_value_length(names), 0).to_numpy()
    row = int(np.searchsorted(np.cumsum(counts), place, side="right"))
    raise InputError(
        f"every {what} must be among {among} ({shown(known)}), got {flat[place].as_py()!r} in {row_place(row, where)}; "
        f"correct or remove such rows{f', or add training rows with that {what}' if may_add else ''}"
    )


def shown(names: Sequence[str]) -> str:
    """Name the first of some tags, for a message."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def first_true(is_bad: np.ndarray) -> int | None:
    """Return the first place that is marked; None where none is."""
    bad = np.flatnonzero(is_bad)
    return int(bad[0]) if len(bad) else None


def row_place(row: int, where: str) -> str:
    """Name a row for a message."""
    return f"row {row} (counted from 0) of {where}"


__all__ = ["first_true", "given_names", "is_list", "named_lists", "read_lists", "require_known", "row_place", "shown"]
