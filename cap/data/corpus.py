"""Texts of a folder, to see which words they use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from cap.base.errors import InputError
from cap.data.files import SUFFIXES, read_columns, require_columns
from cap.data.pairs import text_names
from cap.data.sources import Rows
from cap.data.tasks import Task

_PART = 1000

Part = list[str] | list[list[str]]
"""Some texts, or some lists of words."""


def corpus_texts(folder: Path, task: Task) -> Iterator[Part]:
    """Yield the texts of a folder, some at a time, empty ones left out; lists of words where a task has such rows.

    Args:
        folder: With files of texts: ``*.txt``, a text a line, and ``*.parquet``, ``*.jsonl``, ``*.json``, ``*.csv`` and
            ``*.tsv`` with the task's text columns; where training rows and pairs have columns of their own, one is
            enough. Files of other kinds are passed over.
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
        for column in _columns(file, task):
            texts: list[str] = [str(value) for value in column if not isinstance(value, list | None)]
            texts = [text for text in texts if text.strip()]
            words = [value for value in column if isinstance(value, list) and value]
            has_text = has_text or bool(texts or words)
            yield from (part for part in (texts, words) if part)
    if not has_text:
        raise InputError(f"{required}; got {folder} without text")


def training_texts(rows: Rows, task: Task) -> Iterator[Part]:
    """Yield the texts, or lists of words, of the training rows, some at a time, those without a label too."""
    given = [rows.splits["train"], *([] if rows.unlabelled is None else [rows.unlabelled.rows])]
    for part in given:
        yield from split_texts(part, task)


def split_texts(rows: datasets.Dataset, task: Task) -> Iterator[Part]:
    """Yield the texts, or lists of words, of some rows, some at a time, column after column."""
    for name in text_names(rows) if task.kind == "encoding" else task.text_columns:
        column = rows.data.column(name)
        for start in range(0, len(column), _PART):
            yield column.slice(start, _PART).to_pylist()


def _columns(file: Path, task: Task) -> Iterator[list[Any]]:
    if file.suffix == ".txt":
        try:
            yield [*file.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError as error:
            raise InputError(f"vocabulary needs texts in UTF-8, got {file} ({error}); save it as UTF-8") from error
    elif file.suffix in SUFFIXES:
        table = read_columns(file, task.text_columns, key="vocabulary")
        found = [name for name in task.text_columns if name in table.column_names]
        # Of an encoder's rows, pairs have columns of their own.
        required = found if found and task.kind == "encoding" else task.text_columns
        require_columns(task.name, table, required, f"vocabulary file {file.name}")
        for name in required:
            yield table.column(name).to_pylist()


__all__ = ["Part", "corpus_texts", "split_texts", "training_texts"]
