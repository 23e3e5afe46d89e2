"""What stands out in a task's rows, said before anything is trained on them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from cap.data.sources import Rows
from cap.data.tasks import Task

log = logging.getLogger(__name__)

# From this fraction of a split on, a reader of a score must know; fewer are said in the log.
_MANY = 0.01
_BETWEEN = "\x1f"  # of two texts of a row


def notes_on_rows(task: Task, rows: Rows, n_full: Mapping[str, tuple[int, int]], *, max_length: int) -> list[str]:
    """Look for texts that are cut and for validation rows that are trained on, and count the classes.

    Args:
        task: Which columns are texts, and what the classes are.
        rows: All splits.
        n_full: By split, how many examples have as many tokens as there may be, of how many; empty where nothing is
            cut.
        max_length: So many tokens.

    Returns:
        Sentences for the record, of what concerns many rows; all that was found is logged.
    """
    full = f"have {max_length} tokens or more: what is longer is cut there (max_length)."
    seen = "have the texts of a training row: a score on them says less."
    found = [(n, n_all, split, full) for split, (n, n_all) in n_full.items()]
    found += [(n, len(rows.splits[split]), split, seen) for split, n in _n_seen(task, rows).items()]
    notes = []
    for n, n_all, split, what in found:
        if n > 0:
            note = f"{n:,} of {n_all:,} examples of {split} {what}"
            log.warning(note)
            notes += [note] if n >= _MANY * n_all else []
    if task.kind == "classes":
        _log_classes(task, rows.splits["train"])
    return notes


def _n_seen(task: Task, rows: Rows) -> dict[str, int]:
    """Count the rows of each validation split whose texts are all those of one training row."""
    if task.kind in ("tags", "encoding"):  # lists of words; texts that are trained on have been left out of the others
        return {}
    trained_on = _texts(task, rows.splits["train"])
    return {
        split: int(pc.sum(pc.is_in(_texts(task, rows.splits[split]), value_set=trained_on)).as_py() or 0)
        for split in task.validation_splits
    }


def _texts(task: Task, rows: Dataset) -> pa.ChunkedArray:
    columns = [rows.with_format("arrow")[name][:].cast(pa.string()) for name in task.text_columns]
    return pc.binary_join_element_wise(*columns, _BETWEEN)


def _log_classes(task: Task, rows: Dataset) -> None:
    counts = np.bincount(np.asarray(rows["label"][:]), minlength=len(task.labels))
    log.info("classes of train: %s", ", ".join(f"{name} {n:,}" for name, n in zip(task.labels, counts, strict=True)))


__all__ = ["notes_on_rows"]
