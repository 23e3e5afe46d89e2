"""Metrics of rows that several processes have seen a share of each."""

from __future__ import annotations

import pickle
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from cap.base.kinds import Metrics
from cap.data.metrics import TaskMetrics
from cap.data.spans import SpanMetrics
from cap.data.tasks import get_task
from cap.data.windows import Windows

N_ROWS = 11
# Which process sees which rows: all, evenly, unevenly, one of them nothing, every row on a process of its own.
SHARES = {
    "alone": [list(range(11))],
    "evenly": [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9]],
    "unevenly": [[7], [0, 1, 2, 3, 4, 5, 6], [10, 9, 8]],
    "one idle": [[3, 4, 5, 6, 7, 8, 9, 10, 0, 1, 2], []],
    "first idle": [[], list(range(11))],
    "apart": [[row] for row in range(11)],
}
shares = pytest.mark.parametrize("parts", SHARES.values(), ids=SHARES.keys())


def travelled(metrics: Metrics):
    """Send a state as it goes from process to process."""
    return pickle.loads(pickle.dumps(metrics.state()))


def answered(make, parts: list[list[int]], logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> Metrics:
    """Let a process see each part, two rows a batch, and merge what they have seen into the last one's metrics."""
    states = []
    for part in parts:
        metrics = make()
        for first in range(0, len(part), 2):
            rows = part[first : first + 2]
            metrics.update(logits[rows], {name: values[rows] for name, values in batch.items()})
        states.append(travelled(metrics))
    metrics.merge(states)
    return metrics


def rows_of(name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    task = get_task(name)
    logits = torch.randn(N_ROWS, task.head.n_outputs, generator=draw)
    n_classes = max(task.head.n_outputs, 5)
    labels = torch.randint(n_classes if task.kind == "number" else task.head.n_outputs, (N_ROWS,), generator=draw)
    return logits, {"labels": labels.float() if task.kind == "number" else labels}


@shares
@pytest.mark.parametrize("name", ["qqp", "cola", "mnli", "stsb"])
def test_merged_scores_are_those_of_one_process(name: str, parts: list[list[int]]) -> None:
    logits, batch = rows_of(name)
    whole = TaskMetrics(get_task(name))
    whole.update(logits, batch)
    merged = answered(lambda: TaskMetrics(get_task(name)), parts, logits, batch)
    assert merged.compute() == pytest.approx(whole.compute(), abs=1e-12)


@shares
def test_one_answer_on_every_process_is_constant(parts: list[list[int]]) -> None:
    batch = {"labels": torch.arange(N_ROWS) % 2}
    assert answered(lambda: TaskMetrics(get_task("qqp")), parts, torch.ones(N_ROWS, 2), batch).is_constant


def test_answers_that_are_constant_on_each_process_but_differ_are_not_constant() -> None:
    logits = torch.eye(2)[torch.arange(N_ROWS) % 2]
    batch = {"labels": torch.zeros(N_ROWS, dtype=torch.int64)}
    parts = SHARES["evenly"]
    assert not answered(lambda: TaskMetrics(get_task("qqp")), parts, logits, batch).is_constant


def test_what_metrics_have_seen_themselves_counts_once() -> None:
    logits, batch = rows_of("qqp")
    metrics = TaskMetrics(get_task("qqp"))
    metrics.update(logits, batch)
    expected = metrics.compute()
    metrics.merge([travelled(metrics)])
    assert (metrics.compute(), len(metrics.state()[0])) == (expected, N_ROWS)


def test_metrics_of_no_row_at_all_have_no_score() -> None:
    metrics = TaskMetrics(get_task("qqp"))
    metrics.merge([travelled(metrics), travelled(TaskMetrics(get_task("qqp")))])
    with pytest.raises(ValueError, match="at least one row"):
        metrics.compute()


CONTEXTS = ["alpha beta gamma delta epsilon zeta", "one two three four five", "red green blue"]
# Windows of two words each, one token a word: the question they belong to, and their first word.
WINDOWS = [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1)]


@pytest.fixture
def span_metrics(tmp_path: Path):
    offsets = []
    for question, first in WINDOWS:
        words = CONTEXTS[question].split()
        begin = [CONTEXTS[question].index(word) for word in words]
        offsets += [(begin[word], begin[word] + len(words[word])) for word in (first, first + 1)]
    np.save(tmp_path / "lengths.npy", np.full(len(WINDOWS), 2))
    np.save(tmp_path / "questions.npy", np.array([question for question, _ in WINDOWS]))
    np.save(tmp_path / "offsets.npy", np.array(offsets, dtype=np.int32))
    rows = datasets.Dataset.from_dict(
        {"question": ["?"] * 3, "context": CONTEXTS, "answers": [["delta"], ["two three"], ["green"]]}
    )
    return lambda: SpanMetrics(get_task("squad"), rows, Windows(tmp_path))


@pytest.mark.parametrize("seed", range(3))
@shares
def test_windows_of_a_question_are_compared_whatever_process_saw_them(
    span_metrics, parts: list[list[int]], seed: int
) -> None:
    # Of few values, so that windows are equally good and the first of them counts.
    logits = torch.randint(3, (N_ROWS, 2, 2), generator=torch.Generator().manual_seed(seed)).float()
    batch = {"example_id": torch.arange(N_ROWS)}
    whole = span_metrics()
    whole.update(logits, batch)
    merged = answered(span_metrics, parts, logits, batch)
    assert merged.answers() == whole.answers()
    assert merged.compute() == whole.compute()
    assert merged.is_constant == whole.is_constant


def test_best_window_answers_though_another_process_saw_it(span_metrics) -> None:
    logits = torch.zeros(N_ROWS, 2, 2)
    logits[3, 0] = 5.0  # "delta", in the fourth window of question 0
    merged = answered(span_metrics, SHARES["evenly"], logits, {"example_id": torch.arange(N_ROWS)})
    assert merged.answers()[0] == "delta"


def test_windows_that_are_not_among_the_merged_are_forgotten(span_metrics) -> None:
    batch = {"example_id": torch.tensor([0, 1])}
    first, second = span_metrics(), span_metrics()
    first.update(torch.zeros(2, 2, 2), batch)
    second.update(torch.zeros(2, 2, 2), {"example_id": torch.tensor([5, 6])})
    second.merge([travelled(first)])
    assert list(second.answers()) == [0]
