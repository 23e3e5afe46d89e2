"""What the data module asks of a kind of task: how rows become examples, and how answers to them are scored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import datasets
from torch import Tensor

from cap.base.kinds import Metrics


@runtime_checkable
class Examples(Protocol):
    """Turn the rows of a split into numbered examples: one per sentence or pair, or several windows per question.

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

    def labels(self, rows: datasets.Dataset, folder: Path) -> Tensor:
        """Return the examples' labels, indexed by ``example_id``."""

    def groups(self, folder: Path) -> Tensor | None:
        """Return the row that each example comes from; None where every row is one example."""

    def metrics(self, rows: datasets.Dataset, folder: Path, *, suffix: str) -> Metrics:
        """Make fresh metrics; ``suffix`` follows the name of every score."""


__all__ = ["Examples"]
