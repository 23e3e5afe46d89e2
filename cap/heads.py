"""What a task asks of a model: the kind of its answer, and the names of its classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


__all__ = ["Head", "Kind"]
