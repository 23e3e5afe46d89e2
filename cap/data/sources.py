"""Rows of a task from the Hub, from a folder of files, or built offline; checked before anything is computed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from cap.base.errors import InputError
from cap.base.files import content_key
from cap.base.kinds import KINDS, Kind
from cap.data.answers import read_answers
from cap.data.docstrings import SPLITS, docstring_rows, docstring_source
from cap.data.files import has_split, read_table, require_columns, split_file
from cap.data.held_out import hold_out
from cap.data.hub import read_hub
from cap.data.label_sets import read_label_sets
from cap.data.labels import read_labels
from cap.data.pairs import read_pairs
from cap.data.tags import read_tags
from cap.data.tasks import Task
from cap.data.texts import checked_texts

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unlabelled:
    """Hold training rows that nobody has labelled; they are learned from beside those of the split ``train``.

    Args:
        rows: The text columns.
        source: Where they come from, for the record; never an absolute path.
        n_repeated: Rows that were left out because training has their texts already.
        n_validated: Rows that were left out because their texts are those of validation rows.
    """

    rows: Dataset
    source: str
    n_repeated: int = 0
    n_validated: int = 0

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content, the same for any file format and place."""
        return fingerprint_of(self.rows)

    def describe(self) -> dict[str, str | int]:
        """Say for the record which rows these are."""
        counts = {"n_repeated": self.n_repeated, "n_validated": self.n_validated}
        return {"source": self.source, "fingerprint": self.fingerprint, **counts}


@dataclass(frozen=True)
class Rows:
    """Hold the rows of a task that a run uses.

    Args:
        splits: ``train``, unless a folder lacks it whose rows are only scored, and the task's validation splits, with
            exactly the text columns, the answer and ``example_id`` (int64 row number within the split). The answer is
            ``label`` (int64, lists of int64 where a text has any number, or float32 for regression), or for spans
            ``answers`` (all accepted texts) and ``answer_starts`` (their first characters in the context), or for words
            ``tags`` (int64 lists). All of them have one, but for those of encodings, see ``cap.data.pairs``.
        source: Where the rows come from, for the record; never an absolute path.
        fingerprints: Hash of each split's content, the same for any file format and place.
        unlabelled: Training rows without a label; None if there are none.
        has_held_out: Whether the validation split is training rows that were held out.
    """

    splits: dict[str, Dataset]
    source: str
    fingerprints: dict[str, str]
    unlabelled: Unlabelled | None = None
    has_held_out: bool = False

    @property
    def fingerprint(self) -> str:
        """Hash of the content of all splits; rows without a label have their own."""
        return content_key(self.fingerprints)

    def without_training(self) -> Rows:
        """Return the validation splits alone, for a model that is scored and not trained."""
        splits = {name: rows for name, rows in self.splits.items() if name != "train"}
        return Rows(splits, self.source, {name: self.fingerprints[name] for name in splits})


def load_rows(
    task: Task,
    *,
    data_dir: Path | None,
    max_train_rows: int | None,
    max_eval_rows: int | None,
    keep_unlabelled: bool = False,
    needs_training: bool = True,
    held_out_rows: int | None = None,
) -> Rows:
    """Load and check the rows of a task.

    Args:
        task: Which columns, labels and splits are wanted.
        data_dir: Folder with ``train.*`` and one file per validation split (parquet, jsonl, json, csv, tsv); None
            takes the Hub, or what is built offline. Nothing is ever written there.
        max_train_rows: Take the first so many training rows with a label; None takes all.
        max_eval_rows: Take the first so many rows of each validation split; None takes all.
        keep_unlabelled: Take training rows without a label apart; False refuses them, as is done anyway where answers
            are spans.
        needs_training: Whether a folder without ``train.*`` is refused; else its rows have no split ``train``.
        held_out_rows: Take so many rows out of training, in place of those of the one validation split that the task
            then has, see ``cap.data.held_out``; None takes the validation rows.

    Returns:
        The rows, in their original order.

    Raises:
        InputError: If the data is missing, incomplete or not what the task says, naming the file and the row.
    """
    splits = ("train", *task.validation_splits)
    limits = {split: max_train_rows if split == "train" else max_eval_rows for split in splits}
    for key, limit in (("max_train_rows", max_train_rows), ("max_eval_rows", max_eval_rows)):
        if limit is not None and limit < 1:
            raise InputError(
                f"data.{key} takes the first rows and must be at least 1, got {limit}; leave it null to take all"
            )
    if held_out_rows is not None:
        limits["train"] = None  # what is held out is drawn from all
    tables, source = _read(task, data_dir, needs_training=needs_training)
    is_ours = data_dir is None and task.hub_path is not None
    unlabelled = None
    if task.kind == "encoding":
        datasets = read_pairs(task, tables, limits)
    else:
        datasets, unlabelled = _each_with_answer(
            task, tables, limits, is_fixed=is_ours, keep_unlabelled=keep_unlabelled and KINDS[task.kind].is_of_text
        )
    if held_out_rows is not None:
        (split,) = task.validation_splits
        train, held_out = hold_out(datasets["train"], held_out_rows, max_train_rows=max_train_rows)
        datasets = {"train": train, split: held_out.select(range(min(len(held_out), max_eval_rows or len(held_out))))}
    log.info("rows from %s: %s", source, ", ".join(f"{split} {rows.num_rows:,}" for split, rows in datasets.items()))
    fingerprints = {split: fingerprint_of(rows) for split, rows in datasets.items()}
    return Rows(datasets, source, fingerprints, unlabelled=unlabelled, has_held_out=held_out_rows is not None)


_Tables = dict[str, tuple[pa.Table, str]]  # per split: the rows, and what to call them in a message


def _read(task: Task, data_dir: Path | None, *, needs_training: bool) -> tuple[_Tables, str]:
    splits = ("train", *task.validation_splits)
    if data_dir is not None:
        if not needs_training and not has_split(data_dir, "train", kind=task.kind):
            splits = task.validation_splits
        files = {split: split_file(data_dir, split, kind=task.kind) for split in splits}
        source = f"folder {data_dir.resolve().name}"
        return {split: (read_table(file, task), f"data_dir file {file.name}") for split, file in files.items()}, source
    if task.name == "docstrings":
        missing = [split for split in splits if split not in SPLITS]
        if missing:
            raise InputError(
                f"task=docstrings has the splits {', '.join(SPLITS)}, got {', '.join(missing)}; leave data.split out, "
                f"or give the rows as files, with data_dir=DIR"
            )
        built = docstring_rows()
        return {split: (pa.table(built[split]), split) for split in splits}, docstring_source()
    if task.hub_path is None:
        raise InputError(
            f"task={task.name} has no data set on the Hub and needs data_dir=DIR with "
            f"{', '.join(f'{split}.*' for split in splits)} (parquet, jsonl, json, csv or tsv); got none"
        )
    tables, source = read_hub(task)
    return {split: (table, f"{source}, split {split},") for split, table in tables.items()}, source


def _each_with_answer(
    task: Task, tables: _Tables, limits: Mapping[str, int | None], *, is_fixed: bool, keep_unlabelled: bool
) -> tuple[dict[str, Dataset], Unlabelled | None]:
    """Check the rows of every split, each of which has its answer; training rows without one are taken apart."""
    datasets: dict[str, Dataset] = {}
    unlabelled = None
    for split, (table, where) in tables.items():
        require_columns(task.name, table, (*task.text_columns, task.label_column), where)
        if split == "train" and keep_unlabelled:
            rows = _checked(task, table, where, is_fixed=is_fixed, may_be_empty=True)
            datasets[split], unlabelled = _told_apart(task, rows, where, limit=limits[split])
        else:
            datasets[split] = _checked(task, table.slice(0, limits[split]), where, is_fixed=is_fixed)
    return datasets, unlabelled


def _checked(task: Task, table: pa.Table, where: str, *, is_fixed: bool, may_be_empty: bool = False) -> Dataset:
    columns = _COLUMNS[task.kind](task, table, where, is_fixed=is_fixed, may_be_empty=may_be_empty)
    columns["example_id"] = pa.array(np.arange(table.num_rows, dtype=np.int64))
    return Dataset(pa.table(columns))


def is_published_pair(task: Task) -> bool:
    """Say whether rows are those that the Hub has, wherever they were read: QQP's have two empty questions."""
    return task.hub_path is not None and len(task.text_columns) == 2 and task.kind in ("classes", "number")


def _texts(task: Task, table: pa.Table, where: str, *, is_fixed: bool) -> dict[str, Any]:
    is_fixed = is_fixed or is_published_pair(task)
    return {name: checked_texts(table.column(name), name, where, is_fixed=is_fixed) for name in task.text_columns}


def _with_label(task: Task, table: pa.Table, where: str, *, is_fixed: bool, may_be_empty: bool) -> dict[str, Any]:
    texts = _texts(task, table, where, is_fixed=is_fixed)
    return {**texts, "label": read_labels(task, table, where, may_be_empty=may_be_empty)}


def _with_label_set(task: Task, table: pa.Table, where: str, *, is_fixed: bool, may_be_empty: bool) -> dict[str, Any]:
    texts = _texts(task, table, where, is_fixed=is_fixed)
    return {**texts, "label": read_label_sets(task, table, where, may_be_empty=may_be_empty)}


def _with_answers(task: Task, table: pa.Table, where: str, *, is_fixed: bool, may_be_empty: bool) -> dict[str, Any]:
    texts = _texts(task, table, where, is_fixed=is_fixed)
    return texts | read_answers(task, table, where, contexts=texts[task.text_columns[1]], is_fixed=is_fixed)


def _with_tags(task: Task, table: pa.Table, where: str, *, is_fixed: bool, may_be_empty: bool) -> dict[str, Any]:
    return read_tags(task, table, where)


_COLUMNS: dict[Kind, Callable[..., dict[str, Any]]] = {
    "classes": _with_label,
    "label_sets": _with_label_set,
    "number": _with_label,
    "span": _with_answers,
    "tags": _with_tags,
}


def _told_apart(task: Task, rows: Dataset, where: str, *, limit: int | None) -> tuple[Dataset, Unlabelled | None]:
    """Part rows that have a label, and the first of these, from those that have none."""
    table = rows.data.table
    has_label = pc.is_valid(table.column("label"))
    labelled, rest = table.filter(has_label).slice(0, limit), table.filter(pc.invert(has_label))
    if labelled.num_rows == 0:
        raise InputError(
            f"training needs rows with a label, got {table.num_rows} without one in {where}; give labels to some, or "
            f"name the file with data.unlabelled beside a data_dir whose training rows have labels"
        )
    numbers = pa.array(np.arange(labelled.num_rows, dtype=np.int64))
    labelled = labelled.set_column(labelled.column_names.index("example_id"), "example_id", numbers)
    if rest.num_rows == 0:
        return Dataset(labelled), None
    return Dataset(labelled), Unlabelled(Dataset(rest.select(list(task.text_columns))), "the training rows")


def fingerprint_of(rows: Dataset) -> str:
    """Hash the content column by column; neither the chunks of a table nor its file format show."""
    digest = hashlib.sha256(f"{rows.num_rows}\0".encode())
    for name in rows.column_names:
        digest.update(f"{name}\0".encode())
        _update_with_values(digest, rows.data.column(name))
    return digest.hexdigest()[:16]


def _update_with_values(digest: hashlib._Hash, column: pa.ChunkedArray) -> None:
    if pa.types.is_list(column.type):
        digest.update(pc.list_value_length(column).to_numpy().tobytes())
        _update_with_values(digest, pc.list_flatten(column))
    elif pa.types.is_string(column.type):
        digest.update(pc.binary_length(column).to_numpy().tobytes())
        for chunk in column.chunks:
            _update_with_bytes(digest, chunk)
    else:
        digest.update(column.to_numpy().tobytes())


def _update_with_bytes(digest: hashlib._Hash, chunk: pa.Array) -> None:
    _, offsets, data = chunk.buffers()
    if len(chunk) and data is not None:
        ends = np.frombuffer(offsets, dtype=np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        digest.update(memoryview(data)[int(ends[0]) : int(ends[-1])])


__all__ = ["Rows", "Unlabelled", "fingerprint_of", "load_rows"]
