"""Rows of a data set on the Hub, or of a copy of it in the local cache."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
import pyarrow as pa

from cap.base.errors import InputError
from cap.base.network import HUB_ERROR, hub_is_reachable
from cap.data.tasks import Task

log = logging.getLogger(__name__)


def read_hub(task: Task) -> tuple[dict[str, pa.Table], str]:
    """Load a task's data set through ``datasets``, from its cache where there is no network.

    Args:
        task: One with a ``hub_path``.

    Returns:
        The table of each split, and the source with its revision.

    Raises:
        InputError: If neither the Hub nor the cache has it; the message says both ways forward.
    """
    assert task.hub_path is not None
    log.info("loading %s from the Hub or its cache", _named(task))
    try:
        with _quiet(), _without_waiting_for_the_network():
            loaded = datasets.load_dataset(task.hub_path, task.hub_config)
    except (OSError, ValueError, HUB_ERROR, datasets.exceptions.DatasetsError) as error:
        raise InputError(_unreachable(task, error)) from error
    splits = ("train", *task.validation_splits)
    missing = [split for split in splits if split not in loaded]
    if missing:
        raise InputError(
            f"task={task.name} needs the splits {', '.join(splits)}, got {', '.join(loaded)} from {_named(task)}; "
            "give the rows as files instead, with data_dir=DIR"
        )
    tables = {split: _table(loaded[split]) for split in splits}
    return tables, f"hub {_named(task)} at {_revision(loaded['train'])}"


def _table(rows: datasets.Dataset) -> pa.Table:
    # The features ride along in the schema: they hold the names of a ClassLabel.
    return rows.with_format("arrow")[:].replace_schema_metadata(rows.features.arrow_schema.metadata)


def _named(task: Task) -> str:
    return f"{task.hub_path} {task.hub_config}" if task.hub_config else str(task.hub_path)


def _revision(rows: datasets.Dataset) -> str:
    # The cache keeps a data set in <config>/<version>/<commit>/; the loaded object says it nowhere else offline.
    return Path(rows.cache_files[0]["filename"]).parent.name if rows.cache_files else "an unknown revision"


def _unreachable(task: Task, error: Exception) -> str:
    files = ", ".join(f"{split}.parquet" for split in ("train", *task.validation_splits))
    call = ", ".join(repr(name) for name in (task.hub_path, task.hub_config) if name)
    reason = str(error).splitlines()[0] if str(error) else ""
    return (
        f"task={task.name} needs the data set {_named(task)}, and neither the Hub nor the local cache has it "
        f"({type(error).__name__}: {reason}). Either give data_dir=DIR with {files} (or jsonl, json, and, where no "
        f"column holds lists, csv, tsv) and the columns {', '.join((*task.text_columns, task.label_column))}; or run "
        "on a machine with network\n"
        f'    HF_HOME=DIR python -c "from datasets import load_dataset; load_dataset({call})"\n'
        "copy DIR here, and set HF_HOME=DIR HF_HUB_OFFLINE=1"
    )


@contextmanager
def _without_waiting_for_the_network() -> Iterator[None]:
    """Look into the cache at once where the Hub does not answer; the library would try for half a minute first."""
    was_offline = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = was_offline or not hub_is_reachable()
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's bars and its notes about its cache out of the log, and only here."""
    had_bars = datasets.are_progress_bars_disabled() is False
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if had_bars:
            datasets.enable_progress_bars()


__all__ = ["read_hub"]
