"""One table row per task: which columns hold the text, what the labels are called, how it is scored."""

from __future__ import annotations

from dataclasses import dataclass

from cap.base.errors import InputError, nearest_first
from cap.base.kinds import KINDS, Head, Kind

_GLUE = "nyu-mll/glue"


@dataclass(frozen=True, kw_only=True)
class Task:
    """Describe a task on sentences, pairs of texts, or questions about contexts.

    Args:
        name: The word that follows ``task=``.
        kind: What an answer is, see ``cap.base.kinds``.
        text_columns: The columns a model reads, one or two, in the order in which it reads them; for spans the
            question, then the context; for encodings any number, see ``cap.data.pairs``.
        label_column: The column with the answer, or with the accepted answers and where they begin; empty where there
            is none.
        labels: Class names in the Hub's order, which is the order of the outputs; empty where the kind has none.
        metrics: Names of the scores, see ``cap.data.metrics`` and ``cap.data.spans``; the first is the one monitored.
        hub_path: Name of the data set on the Hub; None where there is none.
        hub_config: Configuration of that data set; None for its only one.
        validation_splits: Splits that are scored, each on its own.
        terms: Under which the data may be used, for model cards.
    """

    name: str
    kind: Kind = "classes"
    text_columns: tuple[str, ...]
    label_column: str = "label"
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    hub_path: str | None = None
    hub_config: str | None = None
    validation_splits: tuple[str, ...] = ("validation",)
    terms: str = "those of the makers of the data"

    def __post_init__(self) -> None:
        if self.kind != "encoding" and not 1 <= len(self.text_columns) <= 2:
            raise InputError(
                f"task.text_columns names the one or two columns a model reads, got {list(self.text_columns)}; "
                "give one column for single sentences, two for pairs"
            )
        if self.kind == "span" and len(self.text_columns) != 2:
            raise InputError(
                f"task.text_columns names the question and its context where answers are spans, got "
                f"{list(self.text_columns)}; give both"
            )
        has_classes = len(set(self.labels)) == len(self.labels) > 1
        if has_classes != KINDS[self.kind].has_labels or (self.labels and not has_classes):
            raise InputError(
                f"task.labels are two or more different class names, or empty where answers are no classes, "
                f"got {list(self.labels)} for kind {self.kind!r}"
            )
        if not self.metrics or not self.validation_splits:
            raise InputError(
                "task.metrics and task.validation_splits each need one name at least, "
                f"got {list(self.metrics)} and {list(self.validation_splits)}"
            )

    @property
    def head(self) -> Head:
        """Describe the head that a model needs for this task."""
        return Head(self.kind, self.labels)

    @property
    def monitored(self) -> str:
        """Name the score that is monitored and that ``retention`` compares."""
        return self.metrics[0]


def _glue(
    name: str,
    text_columns: tuple[str, ...],
    labels: tuple[str, ...],
    metrics: tuple[str, ...] = ("accuracy",),
    validation_splits: tuple[str, ...] = ("validation",),
    kind: Kind = "classes",
    terms: str = "those of the data set's own page",
) -> Task:
    return Task(
        name=name,
        kind=kind,
        text_columns=text_columns,
        labels=labels,
        metrics=metrics,
        hub_path=_GLUE,
        hub_config=name,
        validation_splits=validation_splits,
        terms=terms,
    )


_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

_ROWS = (
    _glue("sst2", ("sentence",), ("negative", "positive"), terms="those of the Stanford Sentiment Treebank and GLUE"),
    _glue(
        "qqp",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("accuracy", "f1"),
        terms="Quora's, non-commercial",
    ),
    _glue(
        "mnli",
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        validation_splits=("validation_matched", "validation_mismatched"),
        terms="OANC, CC BY-SA 3.0 and CC BY 3.0, by genre",
    ),
    _glue(
        "mrpc",
        _SENTENCES,
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        terms="Microsoft Research's",
    ),
    _glue("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    _glue("rte", _SENTENCES, _ENTAILMENT),
    _glue("qnli", ("question", "sentence"), _ENTAILMENT),
    _glue("stsb", _SENTENCES, (), ("pearson", "spearman"), kind="number"),
    # The Hub keeps WNLI's two classes the other way round from RTE's and QNLI's.
    _glue("wnli", _SENTENCES, ("not_entailment", "entailment")),
    Task(
        name="squad",
        kind="span",
        text_columns=("question", "context"),
        label_column="answers",
        labels=(),
        metrics=("f1", "exact_match"),
        hub_path="rajpurkar/squad",
        terms="CC BY-SA 4.0",
    ),
    Task(
        name="docstrings",
        text_columns=("name", "description"),
        labels=("does_not_belong", "belongs"),
        metrics=("accuracy",),
        terms="those of Python's documentation, PSF licence version 2",
    ),
)

TASKS: dict[str, Task] = {task.name: task for task in _ROWS}
"""Every task of the table by its name. Label order and columns are those of the Hub's data sets."""


_OWN: dict[str, Kind] = {"tokens": "tags", "embed": "encoding"}


def known_kind(name: str) -> Kind | None:
    """Return what an answer of a task is; None where only a user's own files tell."""
    return TASKS[name].kind if name in TASKS else _OWN.get(name)


def get_task(name: str) -> Task:
    """Look a task up by its name.

    Args:
        name: What the user wrote after ``task=``.

    Returns:
        Its row of the table.

    Raises:
        InputError: If the table has no such row; the message lists the names, the nearest first.
    """
    if name not in TASKS:
        raise InputError(f"task must be one of {', '.join(nearest_first(name, TASKS))}; got {name!r}")
    return TASKS[name]


def data_terms(task: Task, data_dir: str | None) -> str:
    """Say under which terms the rows may be used: a task's own hold for its own rows, not for those of a folder."""
    return task.terms if data_dir is None else Task.terms


__all__ = ["TASKS", "Task", "data_terms", "get_task", "known_kind"]
