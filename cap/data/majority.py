"""The scores of a model that learned nothing but what its training labels alone tell."""

from __future__ import annotations

from collections.abc import Callable

import datasets
import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cap.base.kinds import Kind
from cap.data.entities import majority_tags
from cap.data.likeness import PairMetrics
from cap.data.metrics import majority_scores, split_suffixes
from cap.data.sources import Rows
from cap.data.tasks import Task


def majority_of(task: Task, rows: Rows) -> dict[str, float]:
    """Score the model that learned nothing on every validation split, by the names that the metrics give.

    Args:
        task: Whose metrics to compute.
        rows: Training rows with a label say what is answered, validation rows how well that does. Where there are no
            training rows, the validation rows say both.
    """
    scores: dict[str, float] = {}
    for split, suffix in split_suffixes(task).items():
        answers = rows.splits.get("train", rows.splits[split])
        scores |= _MAJORITIES[task.kind](task, answers, rows.splits[split], suffix)
    return scores


def labels_of(task: Task, rows: datasets.Dataset) -> Tensor:
    """Return the labels of rows with an answer to the text as a whole.

    Returns:
        int64 classes or float32 values, ``(rows,)``; of sets of labels int8, ``(rows, labels)``, 1 for those it holds.
    """
    if task.kind == "label_sets":
        return _marked(rows.data.column("label").combine_chunks(), len(task.labels))
    values = rows.data.column("label").to_numpy()
    return torch.from_numpy(np.array(values, dtype=np.float32 if task.kind == "number" else np.int64))


def _marked(sets: pa.ListArray, n_labels: int) -> Tensor:
    counts = sets.value_lengths().to_numpy()
    marked = np.zeros((len(sets), n_labels), dtype=np.int8)
    marked[np.repeat(np.arange(len(sets)), counts), sets.flatten().to_numpy()] = 1
    return torch.from_numpy(marked)


def _of_texts(task: Task, train: datasets.Dataset, rows: datasets.Dataset, suffix: str) -> dict[str, float]:
    """Answer with the commonest class, the commonest set of labels, or the mean."""
    return majority_scores(task, labels_of(task, train), labels_of(task, rows), suffix=suffix)


def _of_spans(task: Task, train: datasets.Dataset, rows: datasets.Dataset, suffix: str) -> dict[str, float]:
    """Point to nothing."""
    return {f"{name}{suffix}": 0.0 for name in task.metrics}


def _of_tags(task: Task, train: datasets.Dataset, rows: datasets.Dataset, suffix: str) -> dict[str, float]:
    """Give every word the commonest tag; where tags mark entities that is one outside of all, and finds none."""
    return majority_tags(task, train, rows, suffix=suffix)


def _of_pairs(task: Task, train: datasets.Dataset, rows: datasets.Dataset, suffix: str) -> dict[str, float]:
    """Put texts in random order."""
    return PairMetrics(task, rows, suffix=suffix).by_chance()


_MAJORITIES: dict[Kind, Callable[[Task, datasets.Dataset, datasets.Dataset, str], dict[str, float]]] = {
    "classes": _of_texts,
    "label_sets": _of_texts,
    "number": _of_texts,
    "span": _of_spans,
    "tags": _of_tags,
    "encoding": _of_pairs,
}

__all__ = ["labels_of", "majority_of"]
