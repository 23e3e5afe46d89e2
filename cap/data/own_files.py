"""What the keys ``task.*`` say of a user's own files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cap.base.errors import InputError

TABLES = "parquet, jsonl, json, csv or tsv"
"""Files of tables, as a message names them."""


@dataclass(frozen=True, kw_only=True)
class OwnFiles:
    """Describe a folder with ``train.*`` and ``validation.*``.

    Args:
        data_dir: The folder.
        text_columns: Columns with what a model reads.
        label_column: The column with the answers.
        label_type: ``classes`` or ``number``, where a task leaves that open; None infers it.
        metrics: Names of the scores, the monitored one first; None takes those that fit.
        keep_unlabelled: Whether training rows may lack an answer.
    """

    data_dir: Path | None
    text_columns: Sequence[str] | None
    label_column: str | None
    label_type: str | None = None
    metrics: Sequence[str] | None = None
    keep_unlabelled: bool = False

    def folder(self, task: str, *, formats: str = TABLES) -> Path:
        """Return the folder.

        Args:
            task: The task's name, for the message.
            formats: Of the files, likewise.

        Raises:
            InputError: If there is none.
        """
        if self.data_dir is None:
            raise InputError(
                f"task={task} reads your own files and needs data_dir=DIR with train.* and validation.* ({formats}); "
                f"got none"
            )
        return self.data_dir

    def require_no_label_type(self, task: str, *, because: str) -> None:
        """Refuse ``task.label_type`` where only one is possible.

        Args:
            task: The task's name, for the message.
            because: What its labels are.

        Raises:
            InputError: If it was given.
        """
        if self.label_type is not None:
            raise InputError(
                f"task.label_type belongs to task=custom, got {self.label_type!r} with task={task}, {because}; leave "
                f"it out"
            )

    def metrics_or(self, default: tuple[str, ...]) -> tuple[str, ...]:
        """Return the scores that were asked for, or others where none were."""
        return default if self.metrics is None else tuple(self.metrics)


__all__ = ["TABLES", "OwnFiles"]
