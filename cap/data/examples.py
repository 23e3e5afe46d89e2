"""What the data module asks of a kind of task: how rows become examples, and how answers to them are scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import datasets
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from cap.base.errors import InputError
from cap.base.kinds import Kind, Metrics
from cap.data.encodings import TextExamples
from cap.data.question_answering import QuestionExamples
from cap.data.sentences import SentenceExamples
from cap.data.tasks import Task
from cap.data.words import WordExamples


@runtime_checkable
class Examples(Protocol):
    """Turn the rows of a split into numbered examples: one per row, two per pair of texts, or windows of a question.

    ``rows`` are always those of one split, and ``folder`` is what ``tokenise`` wrote for them.
    """

    @property
    def settings(self) -> Mapping[str, object]:
        """Everything beside the rows and the tokenizer that changes the files; part of the cache key."""

    def tokenise(self, rows: datasets.Dataset, folder: Path, *, where: str) -> None:
        """Write the tokens of every example, and what else cannot be told from the rows alone.

        Args:
            rows: Of one split.
            folder: New folder for the arrays.
            where: What to call the rows in a message.

        Raises:
            InputError: If a row does not fit into examples of this length.
        """

    def labels(self, rows: datasets.Dataset, folder: Path) -> Tensor | None:
        """Return the labels, indexed by ``example_id``; None where ``tokenise`` wrote one for each token, or none."""

    def groups(self, folder: Path) -> Tensor | None:
        """Return the row that each example comes from; None where every row is one example."""

    def metrics(self, rows: datasets.Dataset, folder: Path, *, suffix: str) -> Metrics:
        """Make fresh metrics; ``suffix`` follows the name of every score."""


# Where rows are not cut into windows.
_OF_ROWS: dict[Kind, Callable[..., Examples]] = {
    "classes": SentenceExamples,
    "label_sets": SentenceExamples,
    "number": SentenceExamples,
    "tags": WordExamples,
    "encoding": TextExamples,
}


def examples_of(task: Task, tokenizer: PreTrainedTokenizerBase, *, max_length: int, stride: int | None) -> Examples:
    """Choose what makes a task's rows examples.

    Raises:
        InputError: If the tokenizer cannot make them of that length, or ``stride`` does not fit the task.
    """
    if task.kind == "span":
        return QuestionExamples(task, tokenizer, max_length=max_length, stride=stride)
    if stride is not None:
        raise InputError(
            f"task.stride belongs to tasks whose answers are spans of a context, got {stride} for task={task.name}; "
            "leave it null"
        )
    return _OF_ROWS[task.kind](task, tokenizer, max_length=max_length)


__all__ = ["Examples", "examples_of"]
