"""Texts of a folder, to see which words they use."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from cap.base.errors import InputError
from cap.data.files import read_columns, require_columns, suffixes_of
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
        f"*{', *'.join(suffixes_of(task.kind))} with the columns {', '.join(task.text_columns)}"
    )
    if not folder.is_dir():
        raise InputError(f"{required}; got {folder}, which is {'a file' if folder.exists() else 'not there'}")
    has_text = False
    for file in sorted(folder.iterdir()):
        for part in _parts(file, task):
            texts: list[str] = [str(value) for value in part if not isinstance(value, list | None)]
            texts = [text for text in texts if text.strip()]
            words = [value for value in part if isinstance(value, list) and value]
            has_text = has_text or bool(texts or words)
            yield from (some for some in (texts, words) if some)
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
        yield from _sliced(rows.data.column(name))


def _sliced(column: pa.ChunkedArray) -> Iterator[list[Any]]:
    for start in range(0, len(column), _PART):
        yield column.slice(start, _PART).to_pylist()


def _parts(file: Path, task: Task) -> Iterator[list[Any]]:
    if file.suffix == ".txt":
        try:
            with file.open(encoding="utf-8") as lines:
                while part := [line.rstrip("\n") for line in itertools.islice(lines, _PART)]:
                    yield part
        except UnicodeDecodeError as error:
            raise InputError(f"vocabulary needs texts in UTF-8, got {file} ({error}); save it as UTF-8") from error
    elif file.suffix in suffixes_of(task.kind):
        table = read_columns(file, task.text_columns, key="vocabulary")
        found = [name for name in task.text_columns if name in table.column_names]
        # Of an encoder's rows, pairs have columns of their own.
        required = found if found and task.kind == "encoding" else task.text_columns
        require_columns(task.name, table, required, f"vocabulary file {file.name}")
        for name in required:
            yield from _sliced(table.column(name))


__all__ = ["Part", "corpus_texts", "split_texts", "training_texts"]
