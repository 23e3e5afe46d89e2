"""Training rows in place of the validation rows: what settings are chosen on, so that the others stay unseen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
from datasets import Dataset

from cap.base.errors import InputError
from cap.base.kinds import KINDS
from cap.data.tasks import Task

_SEED = 20_240_601  # one draw for all runs: scores of two settings are of the same rows


def scored_on_held_out(task: Task) -> Task:
    """Return a task whose only validation split is the first one, which held out rows take the place of.

    Raises:
        InputError: If the task is not scored on rows like those it learns from.
    """
    if not KINDS[task.kind].learns_from_labels:
        raise InputError(
            f"data.held_out_rows takes rows with an answer out of training, and task={task.name} trains on texts "
            f"without one; leave it null, and give pairs for the search as validation.* of another data_dir"
        )
    return dataclasses.replace(task, validation_splits=task.validation_splits[:1])


def hold_out(train: Dataset, n: int, *, max_train_rows: int | None) -> tuple[Dataset, Dataset]:
    """Take rows out of training.

    Args:
        train: Rows with an answer.
        n: How many to take, drawn at random, the same in every run.
        max_train_rows: Keep the first so many of the others; None keeps all. It does not change which are taken.

    Returns:
        The rows to train on, then the rows that were taken. Both keep their order, and ``example_id`` counts from 0.

    Raises:
        InputError: If none would be left.
    """
    if not 0 < n < len(train):
        raise InputError(
            f"data.held_out_rows must be at least 1 and leave some of the {len(train)} training rows, got {n}"
        )
    is_held_out = np.zeros(len(train), dtype=bool)
    is_held_out[np.random.default_rng(_SEED).permutation(len(train))[:n]] = True
    table = train.data.table
    return (
        _numbered(table.filter(pa.array(~is_held_out)).slice(0, max_train_rows)),
        _numbered(table.filter(pa.array(is_held_out))),
    )


def _numbered(table: pa.Table) -> Dataset:
    numbers = pa.array(np.arange(table.num_rows, dtype=np.int64))
    return Dataset(table.set_column(table.column_names.index("example_id"), "example_id", numbers))


__all__ = ["hold_out", "scored_on_held_out"]
