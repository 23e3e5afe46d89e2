"""Words and their tags, row by row, checked before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Features

from cap.base.errors import InputError
from cap.data.labels import class_name
from cap.data.tasks import Task

TAGS = "tags"
"""What the column of tag numbers is called, whatever the file calls its tags."""
OUTSIDE = "O"
_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
_FORMATS = "parquet, jsonl or conll"
_SHOWN = 20
_BARE = {"B", "I"}  # of data with one type of entity, which needs no name
_ENTITY = re.compile(r"[BI]-.*")


def tagged_rows(table: pa.Table, words: str, tags: str, where: str) -> tuple[pa.ListArray, pa.ListArray]:
    """Read words and the names of their tags, one for each.

    Args:
        table: Rows as they were read; the schema may carry ``datasets``' features, which name numbers.
        words: The column with a list of words in every row.
        tags: The column with as many tags: names, or numbers that have names or are names.
        where: What to call the rows in a message.

    Returns:
        Both as lists of strings.

    Raises:
        InputError: If a row has no word, another number of tags, or something else in place of one, naming the row.
    """
    texts = read_lists(table, words, where, what="words", formats=_FORMATS)
    found = read_lists(table, tags, where, what="tags", formats=_FORMATS, numbers=True)
    n_words, n_tags = (pc.fill_null(pc.list_value_length(lists), 0).to_numpy() for lists in (texts, found))
    row = first_true(n_words == 0)
    if row is not None:
        raise InputError(
            f"column {words} must hold at least one word in every row, got none in {row_place(row, where)}; remove the "
            f"row"
        )
    row = first_true(n_words != n_tags)
    if row is not None:
        raise InputError(
            f"column {tags} must hold one tag for each word of column {words}, got {n_tags[row]} for {n_words[row]} "
            f"words in {row_place(row, where)}; correct or remove the row"
        )
    names = named_lists(found, given_names(table, tags))
    rows = np.repeat(np.arange(len(n_words)), n_words)
    for column, values, what in ((words, texts, "word"), (tags, names, "tag")):
        flat = values.flatten()
        is_empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(flat), ""), True)
        place = first_true(is_empty.to_numpy(zero_copy_only=False))
        if place is not None:
            raise InputError(
                f"column {column} must hold a {what} at every place, got {flat[place].as_py()!r} in "
                f"{row_place(int(rows[place]), where)}; correct or remove the row"
            )
    return texts, names


def read_tags(task: Task, table: pa.Table, where: str) -> dict[str, pa.Array]:
    """Read a table's words, and its tags as numbers.

    Args:
        task: Its one text column holds words, its label column their tags.
        table: Rows as they were read.
        where: What to call the rows in a message.

    Returns:
        The words (lists of strings) by the name of their column, and ``tags`` (lists of int64).

    Raises:
        InputError: As ``tagged_rows``, or if a tag is not one of the task's.
    """
    (column,) = task.text_columns
    words, names = tagged_rows(table, column, task.label_column, where)
    numbers = pc.index_in(names.flatten(), value_set=pa.array(task.labels))
    require_known(names, task.labels, where, among=f"the tags of task={task.name}")
    offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(names).to_numpy())])
    tags = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), numbers.cast(pa.int64()))
    return {column: words, TAGS: tags}


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


def entity_types(names: Sequence[str]) -> tuple[str, ...] | None:
    """Find the types of entities that tags mark, each at its begin (B-) and inside (I-).

    Args:
        names: Different tags.

    Returns:
        The types, sorted, the only one of bare ``B`` and ``I`` being the empty text; None where tags mark no entities.

    Raises:
        InputError: If some tags mark entities in this way, and others something else than ``O``.
    """
    marks = [name for name in names if name != OUTSIDE]
    if set(marks) and set(marks) <= _BARE:
        return ("",)
    entities = [name for name in marks if _ENTITY.fullmatch(name)]
    if not entities:
        return None
    others = [name for name in marks if name not in entities]
    if others:
        raise InputError(
            f"entities are scored where every tag is {OUTSIDE}, or begins with B- or I-, got {others[0]!r} beside "
            f"{entities[0]!r}; write tags of other schemes (E-, S-, L-, U-) as B- and I-, or set "
            f"task.metrics=[macro_f1,accuracy] to score each tag on its own"
        )
    return tuple(sorted({name[2:] for name in entities}))


def shown(names: Sequence[str]) -> str:
    """Name the first of some tags, for a message."""
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def begins_without_mark(tags: Sequence[str]) -> int:
    """Count the entities of a row that begin with I-, as in the scheme IOB1, where B- only parts neighbours."""
    before = [OUTSIDE, *tags[:-1]]
    return sum(
        tag[0] == "I" and (last == OUTSIDE or last[1:] != tag[1:]) for last, tag in zip(before, tags, strict=True)
    )


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


def first_true(is_bad: np.ndarray) -> int | None:
    """Return the first place that is marked; None where none is."""
    bad = np.flatnonzero(is_bad)
    return int(bad[0]) if len(bad) else None


def row_place(row: int, where: str) -> str:
    """Name a row for a message."""
    return f"row {row} (counted from 0) of {where}"


__all__ = [
    "OUTSIDE",
    "TAGS",
    "begins_without_mark",
    "entity_types",
    "first_true",
    "given_names",
    "is_list",
    "named_lists",
    "read_lists",
    "read_tags",
    "require_known",
    "row_place",
    "shown",
    "tagged_rows",
]
