"""What a task asks of a model: the kind of its answer, the names of its classes, and how answers are scored.

What differs by kind is a row of ``KINDS``; rooms that need functions by kind have a table of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor  # takes seconds, and names of tasks are looked up before anything is loaded

Kind = Literal["classes", "label_sets", "number", "span", "tags", "encoding"]


@dataclass(frozen=True, kw_only=True)
class KindOfAnswer:
    """Say what differs between kinds of answers, in words and numbers.

    Args:
        answers: What answers are, for messages.
        head: What the names of transformers' classes with such a head end with.
        model: What such a model is called in messages.
        problem_type: How transformers calls the problem, where its head solves several.
        n_outputs: Outputs of the head; None is one for each label.
        is_of_text: Whether a row has one answer to its text as a whole. Such rows may lack a label, and a linear head
            on an encoding can give the answer.
        has_majority: Whether scores are counted from what the commonest label reaches.
        knowing_nothing: What a model does that has learned nothing.
        learns_from_labels: Whether a teacher is fine-tuned on labels; else the pre-trained model itself is the teacher.
    """

    answers: str
    head: str
    model: str
    problem_type: str | None = None
    n_outputs: int | None = None
    is_of_text: bool
    has_majority: bool
    knowing_nothing: str
    learns_from_labels: bool = True

    @property
    def has_labels(self) -> bool:
        """Say whether answers have names."""
        return self.n_outputs is None


KINDS: dict[Kind, KindOfAnswer] = {
    "classes": KindOfAnswer(
        answers="classes",
        head="ForSequenceClassification",
        model="classifier of texts",
        problem_type="single_label_classification",
        is_of_text=True,
        has_majority=True,
        knowing_nothing="always the majority class",
    ),
    "label_sets": KindOfAnswer(
        answers="sets of labels",
        head="ForSequenceClassification",
        model="classifier of texts",
        problem_type="multi_label_classification",
        is_of_text=True,
        has_majority=True,
        knowing_nothing="always the commonest set of labels",
    ),
    "number": KindOfAnswer(
        answers="numbers",
        head="ForSequenceClassification",
        model="classifier of texts",
        problem_type="regression",
        n_outputs=1,
        is_of_text=True,
        has_majority=False,
        knowing_nothing="always the mean",
    ),
    "span": KindOfAnswer(
        answers="spans",
        head="ForQuestionAnswering",
        model="question-answering model",
        n_outputs=2,
        is_of_text=False,
        has_majority=False,
        knowing_nothing="pointing to nothing",
    ),
    "tags": KindOfAnswer(
        answers="tags of words",
        head="ForTokenClassification",
        model="classifier of tokens",
        is_of_text=False,
        has_majority=True,
        knowing_nothing="always the commonest tag",
    ),
    "encoding": KindOfAnswer(
        answers="encodings",
        head="Model",
        model="encoder without a head",
        n_outputs=0,
        is_of_text=False,
        has_majority=False,
        knowing_nothing="texts in random order",
        learns_from_labels=False,
    ),
}
"""What differs by kind."""


@dataclass(frozen=True)
class Head:
    """Describe the task head on top of an encoder.

    Args:
        kind: ``classes`` picks one of several, ``label_sets`` any number of them, ``number`` gives one value, ``span``
            points to the first and the last token of an answer in the text, ``tags`` picks one of several for every
            word, ``encoding`` is no head.
        labels: Class names in the order of the outputs; empty where answers of the kind have none.
    """

    kind: Kind
    labels: tuple[str, ...] = ()

    @property
    def n_outputs(self) -> int:
        """Count the outputs: one value or one per class; of each token one per tag, or the start and end of a span."""
        fixed = KINDS[self.kind].n_outputs
        return len(self.labels) if fixed is None else fixed


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


__all__ = ["KINDS", "Head", "Kind", "KindOfAnswer", "Metrics"]
