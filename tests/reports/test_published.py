from __future__ import annotations

import csv
import re
from itertools import pairwise
from pathlib import Path

import pytest

import cap.reports
from cap.reports.published import COLUMNS, published, published_for

FILE = Path(cap.reports.__path__[0]) / "published.csv"
ROWS = published()


def test_the_file_has_the_columns_that_are_read() -> None:
    with FILE.open(encoding="utf-8", newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS


def test_every_line_of_the_file_is_a_row() -> None:
    assert len(ROWS) == len(FILE.read_text(encoding="utf-8").splitlines()) - 1 > 0


def test_every_row_has_a_source_a_method_and_a_model() -> None:
    assert all(row.source and row.method and row.model == "BERT-base" for row in ROWS)


def test_scores_and_sparsities_are_fractions() -> None:
    assert all(0 < row.score < 1 and 0 <= row.sparsity < 1 for row in ROWS)


def test_tasks_and_metrics_are_those_of_the_task_table() -> None:
    from cap.data.tasks import TASKS

    known = {(task.name, metric) for task in TASKS.values() for metric in task.metrics}
    # MNLI's second split, and a source that gives the mean of both only.
    known |= {("mnli", "accuracy_mismatched"), ("mnli", "accuracy_mean")}
    assert {(row.task, row.metric) for row in ROWS} <= known


def test_no_score_is_given_twice_by_one_source() -> None:
    keys = [(row.task, row.metric, row.method, row.sparsity) for row in ROWS]
    assert len(set(keys)) == len(keys)


def test_the_disputed_score_is_marked_and_not_drawn() -> None:
    disputed = [row for row in ROWS if "disputed" in row.note]
    assert {(row.task, row.method, row.sparsity, row.score) for row in disputed} == {
        ("qqp", "CAP-m", 0.9, 0.916),
        ("qqp", "CAP-m", 0.9, 0.877),
    }
    assert not any(row.drawn for row in disputed)


@pytest.mark.parametrize("task", ["mnli", "qqp", "squad"])
def test_the_strongest_method_at_each_sparsity_is_drawn_beside_cap(task: str) -> None:
    metric = {"squad": "f1"}.get(task, "accuracy")
    drawn = {(row.method, row.sparsity) for row in published_for([(task, metric)]) if row.drawn}
    assert {("CAP", 0.9), ("oBERT, 30 epochs", 0.9), ("oBERT, 30 epochs", 0.97), ("SMP-S", 0.5)} <= drawn


def test_more_pruning_of_one_method_never_scores_higher() -> None:
    # Holds for every published curve, so a slip of the pen would show.
    ordered = sorted(ROWS, key=lambda row: (row.task, row.metric, row.method, row.sparsity))
    pairs = [
        (one, two)
        for one, two in pairwise(ordered)
        if (one.task, one.metric, one.method) == (two.task, two.metric, two.method)
    ]
    assert pairs
    assert all(one.score > two.score for one, two in pairs)


def test_only_rows_of_the_same_task_and_metric_are_given() -> None:
    rows = published_for([("qqp", "f1"), ("sst2", "accuracy")])
    assert {(row.task, row.metric) for row in rows} == {("qqp", "f1"), ("sst2", "accuracy")}
    assert published_for([("docstrings", "accuracy")]) == []


def test_sources_are_names_and_no_addresses() -> None:
    assert not re.search(r"https?://", FILE.read_text(encoding="utf-8"))
