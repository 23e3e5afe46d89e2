"""Scores of sentences and pairs as GLUE defines them, as fractions, and never NaN."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics.functional import pearson_corrcoef, spearman_corrcoef
from torchmetrics.functional.classification import (
    binary_f1_score,
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_matthews_corrcoef,
    multilabel_f1_score,
)

from cap.base.errors import InputError, nearest_first
from cap.base.kinds import Kind
from cap.data.tasks import Task


def _accuracy(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    return multiclass_accuracy(predicted, labels, num_classes=n_classes, average="micro")


def _f1(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    # Any other class of a task with more than two counts as "not class 1".
    return binary_f1_score((predicted == 1).long(), (labels == 1).long())


def _macro_f1(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    return multiclass_f1_score(predicted, labels, num_classes=n_classes, average="macro")


def _micro_f1_of_sets(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    return multilabel_f1_score(predicted, labels, num_labels=n_classes, average="micro")


def _macro_f1_of_sets(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    # As for classes: over the labels that occur or are given. torchmetrics counts others as 0 here, not there.
    of_label = multilabel_f1_score(predicted, labels, num_labels=n_classes, average="none")
    counted = of_label[(predicted | labels).bool().any(dim=0)]
    return counted.mean() if len(counted) else torch.zeros(())


def _matthews(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    # torchmetrics answers 0.0256 for a constant prediction on CoLA, where the coefficient is 0 by convention.
    if _is_constant(predicted) or _is_constant(labels):
        return torch.zeros(())
    return multiclass_matthews_corrcoef(predicted, labels, num_classes=n_classes)


def _correlation(score: Callable[[Tensor, Tensor], Tensor], predicted: Tensor, labels: Tensor) -> Tensor:
    # A constant orders nothing, and neither does a model that diverged; torchmetrics answers NaN and warns.
    if not predicted.isfinite().all() or _is_constant(predicted) or _is_constant(labels):
        return torch.zeros(())
    return score(_standardised(predicted), _standardised(labels))


def _pearson(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    return _correlation(pearson_corrcoef, predicted, labels)


def _spearman(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    return _correlation(spearman_corrcoef, predicted, labels)


Score = Callable[[Tensor, Tensor, int], Tensor]
_CLASSIFICATION: dict[str, Score] = {"accuracy": _accuracy, "f1": _f1, "macro_f1": _macro_f1, "matthews": _matthews}
CORRELATIONS: dict[str, Score] = {"pearson": _pearson, "spearman": _spearman}
"""Scores of numbers, by name: each of predicted and right ones, in float64."""
_OF_SETS: dict[str, Score] = {"micro_f1": _micro_f1_of_sets, "macro_f1": _macro_f1_of_sets}
# What such a task is called in a message, and its scores.
_KNOWN: dict[Kind, tuple[str, dict[str, Score]]] = {
    "classes": ("classification", _CLASSIFICATION),
    "label_sets": ("classification with several labels a text", _OF_SETS),
    "number": ("regression", CORRELATIONS),
}


class TaskMetrics:
    """Collect predictions and score them by the task's metrics.

    Args:
        task: Its metrics are the keys of the result.
        suffix: Follows every key, to tell the splits of a task apart.

    Raises:
        InputError: If the task names a metric that does not exist for its kind of label.
    """

    def __init__(self, task: Task, *, suffix: str = "") -> None:
        kind, known = _KNOWN[task.kind]
        check_metrics(task, known, kind=kind)
        self._task = task
        self._scores = {f"{name}{suffix}": known[name] for name in task.metrics}
        self.reset()

    def reset(self) -> None:
        """Forget every row seen so far."""
        self._predicted: list[Tensor] = []
        self._labels: list[Tensor] = []

    def update(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Add one batch.

        Args:
            logits: What the model answered, ``(batch, n_outputs)``, any float type, any device.
            batch: Its ``labels`` are class numbers or values, ``(batch,)``, or mark those of each text,
                ``(batch, labels)``.
        """
        # The rows wait on the CPU: a batch's answers are a few numbers, and all splits together fit easily.
        logits = logits.detach().cpu()
        self._predicted.append(_answers(self._task.kind, logits))
        labels = batch["labels"].detach().cpu()
        self._labels.append(labels if self._task.kind == "label_sets" else labels.reshape(-1))

    def state(self) -> tuple[Tensor, Tensor]:
        """Return the answers and labels of every row since the last reset, of each a number or marks."""
        return self._rows()

    def merge(self, states: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Become the metrics that have seen all rows of several states, in place of their own."""
        self._predicted = [predicted for predicted, _ in states]
        self._labels = [labels for _, labels in states]

    def compute(self) -> dict[str, float]:
        """Score every row since the last reset.

        Returns:
            One fraction per metric of the task, correlations in [-1, 1], the rest in [0, 1]; a correlation
            (``matthews``, ``pearson``, ``spearman``) with a constant is 0.0.

        Raises:
            ValueError: If there was no row.
        """
        predicted, labels = self._rows()
        if len(labels) == 0:
            raise ValueError("metrics need at least one row, got none; call update before compute")
        return {
            name: float(score(predicted, labels, self._task.head.n_outputs)) for name, score in self._scores.items()
        }

    @property
    def is_constant(self) -> bool:
        """Say whether one and the same answer was given to every row since the last reset."""
        return _is_constant(self._rows()[0])

    def _rows(self) -> tuple[Tensor, Tensor]:
        label_type = torch.float64 if self._task.kind == "number" else torch.int64
        if not self._labels:
            return torch.empty(0, dtype=label_type), torch.empty(0, dtype=label_type)
        return torch.cat(self._predicted), torch.cat(self._labels).to(label_type)


def _answers(kind: Kind, logits: Tensor) -> Tensor:
    """Read answers off logits: values, class numbers, or marks of the labels that are more likely than not."""
    if kind == "number":
        return logits.double().reshape(-1)
    return (logits > 0).long() if kind == "label_sets" else logits.argmax(dim=-1)


def check_metrics(task: Task, known: Iterable[str], *, kind: str) -> None:
    """Check that a task asks for scores that exist.

    Args:
        task: Its metrics.
        known: The names there are for its kind of answer.
        kind: What that kind is called in a message.

    Raises:
        InputError: If a metric is not among them.
    """
    for name in task.metrics:
        if name not in known:
            raise InputError(
                f"task.metrics of a {kind} task must be among {', '.join(nearest_first(name, known))}; got {name!r}"
            )


def split_suffixes(task: Task) -> dict[str, str]:
    """Say what follows the names of the scores of every validation split of a task.

    Returns:
        By split. The first split's scores bear the bare names; those of a further one end like its name, so that
        MNLI has ``accuracy`` (matched) and ``accuracy_mismatched``.
    """
    first, *others = task.validation_splits
    return {first: "", **{split: f"_{split.removeprefix('validation_')}" for split in others}}


def majority_scores(
    task: Task, train_labels: Tensor, validation_labels: Tensor, *, suffix: str = ""
) -> dict[str, float]:
    """Score the model that learned nothing: always the commonest training class or set of labels, or the training mean.

    Args:
        task: Whose metrics to compute.
        train_labels: Labels the answer is taken from, ``(n_train,)``; of equally common classes the lowest number. Of
            sets of labels ``(n_train, labels)``: the commonest that is not empty, since the empty one scores 0 always.
        validation_labels: Labels it is scored on, ``(n_validation,)``.
        suffix: Follows the name of every score.

    Returns:
        The same keys as ``TaskMetrics.compute``; correlations are 0.0.
    """
    if task.kind == "number":
        answer = train_labels.double().mean().reshape(1, 1)
    elif task.kind == "label_sets":
        answer = _commonest_set(train_labels) - 0.5
    else:
        counts = torch.bincount(train_labels.long(), minlength=task.head.n_outputs)
        answer = torch.nn.functional.one_hot(counts.argmax(), task.head.n_outputs).reshape(1, -1)
    metrics = TaskMetrics(task, suffix=suffix)
    metrics.update(answer.expand(len(validation_labels), -1), {"labels": validation_labels})
    return metrics.compute()


def _commonest_set(marked: Tensor) -> Tensor:
    sets, counts = marked[marked.any(dim=1)].unique(dim=0, return_counts=True)
    return sets[counts.argmax()].reshape(1, -1) if len(sets) else marked.new_zeros(1, marked.shape[1])


def _is_constant(values: Tensor) -> bool:
    return bool((values == values[:1]).all())


def _standardised(values: Tensor) -> Tensor:
    # torchmetrics warns below a fixed variance; neither correlation changes under shift and scale.
    values = values - values.mean()
    return values / values.abs().max()


__all__ = ["CORRELATIONS", "Score", "TaskMetrics", "check_metrics", "majority_scores", "split_suffixes"]
