"""What a task asks of a model: the kind of its answer, the names of its classes, and how answers are scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor  # takes seconds, and names of tasks are looked up before anything is loaded

Kind = Literal["classes", "number", "span"]


@dataclass(frozen=True)
class Head:
    """Describe the task head on top of an encoder.

    Args:
        kind: ``classes`` picks one of several, ``number`` gives one value, ``span`` points to the first and the last
            token of an answer in the text.
        labels: Class names in the order of the outputs; empty unless ``kind`` is ``classes``.
    """

    kind: Kind
    labels: tuple[str, ...] = ()

    @property
    def n_outputs(self) -> int:
        """Count the outputs: one per class, one value, or the start and end of a span (per token)."""
        return {"classes": len(self.labels), "number": 1, "span": 2}[self.kind]


@runtime_checkable
class Metrics(Protocol):
    """Collect a model's answers to one split and score them."""

    @property
    def is_constant(self) -> bool:
        """Say whether one and the same answer was given to everything since the last reset."""

    def update(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Add what a model answered to one batch, with the ``labels`` and ``example_id`` it belongs to."""

    def compute(self) -> dict[str, float]:
        """Score everything since the last reset, by name."""

    def reset(self) -> None:
        """Forget everything seen so far."""

    def state(self) -> Any:
        """Return what was seen since the last reset: picklable, on the CPU, to be merged elsewhere."""

    def merge(self, states: Sequence[Any]) -> None:
        """Become the metrics that have seen all of several states.

        Args:
            states: Of metrics made like these; what these themselves have seen counts only if it is among them.
        """


__all__ = ["Head", "Kind", "Metrics"]
