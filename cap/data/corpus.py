"""Texts of a folder, to see which words they use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import datasets

from cap.base.errors import InputError
from cap.data.files import SUFFIXES, read_columns, require_columns
from cap.data.pairs import text_names
from cap.data.sources import Rows
from cap.data.tasks import Task

_PART = 1000


def corpus_texts(folder: Path, task: Task) -> Iterator[list[str]]:
    """Yield the texts of a folder, some at a time, empty ones left out.

    Args:
        folder: With files of texts: ``*.txt``, a text a line, and ``*.parquet``, ``*.jsonl``, ``*.json``, ``*.csv`` and
            ``*.tsv`` with the task's text columns. Files of other kinds are passed over.
        task: Says which columns hold text.

    Raises:
        InputError: If there is no such folder, no text in it, or a file of these kinds cannot be read.
    """
    required = (
        f"vocabulary must be auto, for the run's own training rows, or a folder of texts: *.txt (a text a line), or "
        f"*{', *'.join(SUFFIXES)} with the columns {', '.join(task.text_columns)}"
    )
    if not folder.is_dir():
        raise InputError(f"{required}; got {folder}, which is {'a file' if folder.exists() else 'not there'}")
    has_text = False
    for file in sorted(folder.iterdir()):
        for part in _parts(file, task):
            texts = [text for text in part if text is not None and text.strip()]
            has_text = has_text or bool(texts)
            yield texts
    if not has_text:
        raise InputError(f"{required}; got {folder} without text")


def training_texts(rows: Rows, task: Task) -> Iterator[list[str]]:
    """Yield the texts of the training rows, some at a time, those without a label too."""
    given = [rows.splits["train"], *([] if rows.unlabelled is None else [rows.unlabelled.rows])]
    for part in given:
        yield from split_texts(part, task)


def split_texts(rows: datasets.Dataset, task: Task) -> Iterator[list[str]]:
    """Yield the texts of some rows, some at a time, column after column."""
    for name in text_names(rows) if task.kind == "encoding" else task.text_columns:
        column = rows.data.column(name)
        for start in range(0, len(column), _PART):
            yield column.slice(start, _PART).to_pylist()


def _parts(file: Path, task: Task) -> Iterator[list[str | None]]:
    if file.suffix == ".txt":
        try:
            yield [*file.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise InputError(f"vocabulary needs texts in UTF-8, got {file} ({error}); save it as UTF-8") from error
    elif file.suffix in SUFFIXES:
        table = read_columns(file, task.text_columns, key="vocabulary")
        require_columns(task.name, table, task.text_columns, f"vocabulary file {file.name}")
        for column in task.text_columns:
            yield [None if value is None else str(value) for value in table.column(column).to_pylist()]


__all__ = ["corpus_texts", "split_texts", "training_texts"]
