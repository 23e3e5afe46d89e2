"""What the keys ``task.*`` say of a user's own files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cap.base.errors import InputError
from cap.base.kinds import KINDS, Kind
from cap.data.files import has_split

TABLES = "parquet, jsonl, json, csv or tsv"
"""Files of tables, as a message names them."""


@dataclass(frozen=True)
class Learned:
    """Say what a model has learned to answer: what the labels are where no training rows tell.

    Args:
        name: How to call the model.
        labels: Names of its outputs, in order.
        problem: How its configuration calls the problem; None if it does not say.
        has_names: Whether somebody has named the outputs; transformers numbers them otherwise.
    """

    name: str
    labels: tuple[str, ...]
    problem: str | None
    has_names: bool

    def require_labels(self) -> None:
        """Refuse a model that does not tell its outputs apart.

        Raises:
            InputError: If it has fewer than two, or two of one name.
        """
        if not len(set(self.labels)) == len(self.labels) > 1:
            raise InputError(
                f"where no training rows say what the labels are, model_dir must hold a model whose id2label does: two "
                f"or more different ones, got {self.name} with {list(self.labels)}; give a folder with train.*"
            )

    @property
    def kind(self) -> Kind:
        """Say what an answer to a text as a whole is."""
        said: list[Kind] = [kind for kind, row in KINDS.items() if row.problem_type == self.problem is not None]
        return said[0] if said else "number" if len(self.labels) == 1 else "classes"


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
        scored: Name of the file, without its suffix, whose rows are held out.
        learned: What the model at hand answers, where it is scored and not trained; None requires training rows.
    """

    data_dir: Path | None
    text_columns: Sequence[str] | None
    label_column: str | None
    label_type: str | None = None
    metrics: Sequence[str] | None = None
    keep_unlabelled: bool = False
    scored: str = "validation"
    learned: Learned | None = None

    def told_by(self, kind: Kind | None = None) -> Learned | None:
        """Return what the labels are, where it is the model that tells; None where training rows do.

        Args:
            kind: What an answer is, as for ``split_file``.
        """
        has_training = self.data_dir is not None and has_split(self.data_dir, "train", kind=kind)
        return None if has_training else self.learned

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
                f"task={task} reads your own files and needs data_dir=DIR with "
                f"{'' if self.learned is not None else 'train.* and '}{self.scored}.* ({formats}); got none"
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


__all__ = ["TABLES", "Learned", "OwnFiles"]
