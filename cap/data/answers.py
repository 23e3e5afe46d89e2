"""The accepted answers to questions, and whether each stands in its context where it says."""

from __future__ import annotations

import logging

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cap.base.errors import InputError
from cap.data.tasks import Task

log = logging.getLogger(__name__)

_FIELDS = {"text": pa.list_(pa.string()), "answer_start": pa.list_(pa.int64())}
_SHOWN = 60  # characters of a text in a message


def read_answers(
    task: Task, table: pa.Table, where: str, *, contexts: pa.ChunkedArray, is_fixed: bool
) -> dict[str, pa.Array]:
    """Read a table's answers and hold them against their contexts.

    Args:
        task: Its label column holds, per row, a list ``text`` and a list ``answer_start``, in characters.
        table: Rows as they were read.
        where: What to call the rows in a message.
        contexts: The texts that the answers point into.
        is_fixed: Whether nobody can mend the rows: those whose answer stands elsewhere are then kept and said.

    Returns:
        ``answers`` (lists of strings) and ``answer_starts`` (lists of int64; -1 where a kept answer points wrongly).

    Raises:
        InputError: If a row has no answer, or one that is not at its place in the context, naming the row.
    """
    name = task.label_column
    texts, starts = (_lists(table.column(name), name, field, where) for field in _FIELDS)
    n_texts, n_starts = (pc.fill_null(pc.list_value_length(lists), 0).to_numpy() for lists in (texts, starts))
    _require(n_texts > 0, name, "needs at least one answer (a text and its start)", "none", where)
    _require(n_texts == n_starts, name, "needs as many texts as starts", "another number of each", where)
    rows = np.repeat(np.arange(len(n_texts)), n_texts)
    flat_texts, flat_starts = texts.flatten(), starts.flatten()
    is_blank = pc.fill_null(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(flat_texts)), 0), True)
    is_missing = pc.or_(is_blank, pc.is_null(flat_starts)).to_numpy(zero_copy_only=False)
    _require(~_any(is_missing, rows, len(n_texts)), name, "needs at least one answer", "an empty one", where)
    moved = _not_in_place(name, contexts, flat_texts, flat_starts.to_numpy(), rows, where, is_fixed=is_fixed)
    kept = pa.ListArray.from_arrays(_offsets(n_texts), pa.array(np.where(moved, -1, flat_starts.to_numpy())))
    return {"answers": pa.ListArray.from_arrays(_offsets(n_texts), flat_texts), "answer_starts": kept}


def _lists(column: pa.ChunkedArray, name: str, field: str, where: str) -> pa.Array:
    is_struct = pa.types.is_struct(column.type)
    fields = {part.name for part in column.type} if is_struct else set()
    if not set(_FIELDS) <= fields:
        hint = "; csv and tsv cannot hold lists" if pa.types.is_string(column.type) else ""
        raise InputError(
            f'column {name} must hold {{"text": [...], "answer_start": [...]}} in every row, got {column.type} in '
            f"{where}{hint}; write it as parquet or jsonl"
        )
    try:
        lists = pc.struct_field(column, field).cast(_FIELDS[field]).combine_chunks()
    except pa.ArrowException as error:
        raise InputError(
            f"column {name} must hold lists of texts and lists of whole numbers, got another {field} in {where} "
            f"({error}); correct the file"
        ) from error
    return lists


def _require(is_good: np.ndarray, name: str, wanted: str, given: str, where: str) -> None:
    bad = np.flatnonzero(~is_good)
    if len(bad):
        raise InputError(
            f"column {name} {wanted} in every row, got {given} in row {bad[0]} (counted from 0) of {where}; "
            "correct or remove the row"
        )


def _not_in_place(
    name: str,
    contexts: pa.ChunkedArray,
    texts: pa.Array,
    starts: np.ndarray,
    rows: np.ndarray,
    where: str,
    *,
    is_fixed: bool,
) -> np.ndarray:
    """Say which answers do not stand where they begin."""
    read = contexts.to_pylist()
    answers = zip(texts.to_pylist(), starts.tolist(), rows.tolist(), strict=True)
    moved = np.array([start < 0 or not read[row].startswith(text, start) for text, start, row in answers])
    bad = np.flatnonzero(moved)
    if len(bad) and not is_fixed:
        first = int(bad[0])
        row = int(rows[first])
        complaint = _complaint(read[row], texts[first].as_py(), int(starts[first]))
        raise InputError(
            f"column {name} {complaint} in row {row} (counted from 0) of {where}; correct or remove the row"
        )
    if len(bad):
        log.warning(
            "%s has %d rows with an answer that does not stand where it says; they are kept and scored, and their "
            "answer counts as lying in no window",
            where,
            len(np.unique(rows[bad])),
        )
    return moved


def _complaint(context: str, text: str, start: int) -> str:
    found = context.find(text)
    shown = repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
    if found < 0:
        return f"must hold answers that stand in their context, got {shown}, which its context does not contain,"
    elsewhere = f"though it stands at {found}"
    if start < 0 or start + len(text) > len(context):
        return (
            f"must hold answers inside their context of {len(context)} characters, got {shown} from {start} to "
            f"{start + len(text)}, {elsewhere},"
        )
    there = repr(context[start : start + min(len(text), _SHOWN)])
    return f"must hold answers that stand where they begin, got {shown} at {start}, where {there} stands, {elsewhere},"


def _any(flags: np.ndarray, rows: np.ndarray, n_rows: int) -> np.ndarray:
    found = np.zeros(n_rows, dtype=bool)
    found[rows[flags]] = True
    return found


def _offsets(counts: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))


__all__ = ["read_answers"]
