"""Columns of texts, checked before anything is computed."""

from __future__ import annotations

import logging

import pyarrow as pa
import pyarrow.compute as pc

from cap.base.errors import InputError

log = logging.getLogger(__name__)

_SHOWN = 5


def checked_texts(column: pa.ChunkedArray, name: str, where: str, *, is_fixed: bool) -> pa.ChunkedArray:
    """Convert a column of texts to strings.

    Args:
        column: As it was read.
        name: What it is called.
        where: What to call its rows in a message.
        is_fixed: Whether the rows cannot be mended: of those with an empty text there is a warning then.

    Raises:
        InputError: If it holds anything else, or nothing in some row.
    """
    if pa.types.is_dictionary(column.type):  # pandas calls it a category
        column = column.cast(column.type.value_type)
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    is_text = any(is_of_kind(column.type) for is_of_kind in kinds)
    if not is_text and not pa.types.is_null(column.type):
        raise InputError(f"column {name} of {where} must hold text, got {column.type}; convert it to strings")
    column = column.cast(pa.string())
    is_empty = pc.fill_null(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0), True)
    if is_fixed and not column.null_count:
        # A published row stays as it is, and one half of a pair may well be empty.
        n_empty = pc.sum(is_empty).as_py()
        if n_empty:
            log.warning("%s has %d rows with an empty %s", where, n_empty, name)
        return column
    row = pc.index(is_empty, True).as_py()
    if row >= 0:
        found = "nothing (null)" if column[row].as_py() is None else f"the empty text {column[row].as_py()!r}"
        raise InputError(
            f"column {name} must hold text in every row, got {found} in row {row}{and_more(is_empty)} (counted from 0) "
            f"of {where}; fill it in or remove the row"
        )
    return column


def and_more(is_bad: pa.ChunkedArray) -> str:
    """Name the rows behind the first that is bad, the next few by number; empty where it is the only one."""
    rows = pc.indices_nonzero(is_bad).to_pylist()[1:]
    shown = ", ".join(map(str, rows[:_SHOWN]))
    return f" and {len(rows):,} more ({shown}{', ...' if len(rows) > _SHOWN else ''})" if rows else ""


__all__ = ["and_more", "checked_texts"]
