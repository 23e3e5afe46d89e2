"""Words and their tags, row by row, checked before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cap.base.errors import InputError
from cap.data.lists import first_true, given_names, named_lists, read_lists, require_known, row_place
from cap.data.tasks import Task

TAGS = "tags"
"""What the column of tag numbers is called, whatever the file calls its tags."""
OUTSIDE = "O"
_FORMATS = "parquet, jsonl or conll"
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


def begins_without_mark(tags: Sequence[str]) -> int:
    """Count the entities of a row that begin with I-, as in the scheme IOB1, where B- only parts neighbours."""
    before = [OUTSIDE, *tags[:-1]]
    return sum(
        tag[0] == "I" and (last == OUTSIDE or last[1:] != tag[1:]) for last, tag in zip(before, tags, strict=True)
    )


__all__ = ["OUTSIDE", "TAGS", "begins_without_mark", "entity_types", "read_tags", "tagged_rows"]
