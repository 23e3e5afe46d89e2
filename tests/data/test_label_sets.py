"""Several labels for each text: read from lists, scored by label, and nothing else taken for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from cap.base.errors import InputError
from cap.data.custom import custom_task
from cap.data.majority import labels_of, majority_of
from cap.data.metrics import TaskMetrics
from cap.data.own_files import OwnFiles
from cap.data.sources import Rows, load_rows
from cap.data.tasks import Task

KEYS: dict[str, Any] = {"text_columns": ["text"], "label_column": "label", "label_type": None, "metrics": None}
GOOD = [["b", "a"], [], ["a", "a"]]


def write(folder: Path, split: str, labels: list, suffix: str = "jsonl") -> None:
    texts = [f"text {row}" for row in range(len(labels))]
    if suffix == "parquet":
        pa.parquet.write_table(pa.table({"text": texts, "label": labels}), folder / f"{split}.parquet")
    elif suffix == "csv":
        lines = [f'{text},"{label}"' for text, label in zip(texts, labels, strict=True)]
        (folder / f"{split}.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    else:
        lines = [json.dumps({"text": text, "label": label}) for text, label in zip(texts, labels, strict=True)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def task_of(folder: Path, train: list, validation: list | None = None, *, suffix: str = "jsonl", **keys: Any) -> Task:
    write(folder, "train", train, suffix)
    write(folder, "validation", train if validation is None else validation, suffix)
    return custom_task(OwnFiles(data_dir=folder, **(KEYS | keys)))


def rows_of(folder: Path, task: Task, **keys: Any) -> Rows:
    return load_rows(task, data_dir=folder, max_train_rows=None, max_eval_rows=None, **keys)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
@pytest.mark.parametrize(
    ("lists", "names", "marks"),
    [
        (GOOD, ("a", "b"), [[1, 1], [0, 0], [1, 0]]),
        ([[10], [9, 10], []], ("9", "10"), [[0, 1], [1, 1], [0, 0]]),
        ([[" x"], ["y ", "x"]], ("x", "y"), [[1, 0], [1, 1]]),
    ],
    ids=["words", "whole numbers", "blanks"],
)
def test_lists_become_marks_of_the_labels_of_the_training_rows(tmp_path, suffix, lists, names, marks):
    task = task_of(tmp_path, lists, suffix=suffix)
    assert (task.kind, task.labels, task.metrics) == ("label_sets", names, ("micro_f1", "macro_f1"))
    assert labels_of(task, rows_of(tmp_path, task).splits["train"]).tolist() == marks


def test_numbers_take_the_names_of_their_file_in_its_order(tmp_path):
    from datasets import ClassLabel, Features, Sequence, Value

    schema = Features(text=Value("string"), label=Sequence(ClassLabel(names=["z", "a", "m"]))).arrow_schema
    for split in ("train", "validation"):
        table = pa.table({"text": ["one", "two"], "label": [[0, 2], [1]]}, schema=schema)
        pa.parquet.write_table(table, tmp_path / f"{split}.parquet")
    task = custom_task(OwnFiles(data_dir=tmp_path, **KEYS))
    assert task.labels == ("z", "a", "m")
    assert labels_of(task, rows_of(tmp_path, task).splits["train"]).tolist() == [[1, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("train", "validation", "keys", "said"),
    [
        ([["a"], "b"], GOOD, {}, "column label must hold one kind of value, got a list in row 0 and text in row 1"),
        (GOOD, ["a", "b"], {}, "or one label in every row, got lists in data_dir file train.jsonl and string in"),
        (GOOD, [["a"], [], ["c"]], {}, r"every label must be among those of .* \(a, b\), got 'c' in row 2"),
        ([["a", "b"], None], GOOD, {}, r"got nothing in row 1 .* write \[\] for a text without any"),
        ([["a", "b"], [None]], GOOD, {}, "got None as a label in row 1"),
        ([["a"], ["a", " "]], GOOD, {}, "got '' as a label in row 1"),
        ([["a"], []], None, {}, "two different ones at least, got a in"),
        ([[], []], None, {}, "two different ones at least, got none in"),
        ([[0.5], [1.5]], None, {}, r"must hold a list of labels \(names or whole numbers\) in every row, got list"),
        (GOOD, None, {"label_type": "classes"}, "task.label_type says what single labels are, got classes"),
        (GOOD, None, {"metrics": ["accuracy"]}, "with several labels a text task must be among m"),
        (["[a]", "['a', 'b']"], None, {"suffix": "csv"}, "got the text .* csv and tsv hold no lists"),
    ],
    ids=[
        "mixed in a file",
        "mixed files",
        "unknown",
        "missing",
        "null",
        "blank",
        "one label",
        "no label",
        "fractions",
        "label_type",
        "metric",
        "csv",
    ],
)
def test_what_is_no_list_of_labels_is_refused(tmp_path, train, validation, keys, said):
    with pytest.raises(InputError, match=said):
        task_of(tmp_path, train, validation, **keys)


@pytest.mark.parametrize("kind", [int, float, bool])
def test_marks_of_every_label_are_refused(tmp_path, kind):
    marks = [[kind(0), kind(1), kind(1)], [kind(1), kind(0), kind(0)]]
    with pytest.raises(InputError, match=r"got 3 marks of 0 and 1 in every row .*; write the names where a mark is 1"):
        task_of(tmp_path, marks, marks)
    assert task_of(tmp_path, [[0, 1], [1]], [[0], [1]]).labels == ("0", "1")  # of different lengths they are labels


def test_rows_without_a_list_are_kept_apart_from_those_with_an_empty_one(tmp_path):
    task = task_of(tmp_path, [*GOOD, None], GOOD, keep_unlabelled=True)
    rows = rows_of(tmp_path, task, keep_unlabelled=True)
    assert labels_of(task, rows.splits["train"]).tolist() == [[1, 1], [0, 0], [1, 0]]
    assert rows.unlabelled is not None
    assert rows.unlabelled.rows["text"][:] == ["text 3"]


@pytest.fixture
def task(tmp_path) -> Task:
    return task_of(tmp_path, [["a"], ["b"], ["c"], ["d"]])


def test_micro_f1_counts_all_labels_together_and_macro_f1_those_that_occur(task):
    # a: 1 right, 1 given wrongly; b: 1 missed; c: 1 right; d neither occurs nor is given.
    logits = torch.tensor([[2.0, -1, -1, -3], [0.1, -1, 3, -3], [-1, -1, -1, -3]])
    labels = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], dtype=torch.int8)
    metrics = TaskMetrics(task)
    for row in range(3):
        metrics.update(logits[row : row + 1], {"labels": labels[row : row + 1]})
    assert metrics.compute() == {
        "micro_f1": pytest.approx(2 * 2 / (2 * 2 + 1 + 1)),
        "macro_f1": pytest.approx((2 / 3 + 0 + 1) / 3),
    }
    assert not metrics.is_constant


def test_texts_without_a_label_that_get_none_score_0(task):
    metrics = TaskMetrics(task)
    metrics.update(torch.full((2, 4), -1.0), {"labels": torch.zeros(2, 4, dtype=torch.int8)})
    assert metrics.compute() == {"micro_f1": 0.0, "macro_f1": 0.0}


def test_knowing_nothing_is_giving_the_commonest_set_that_is_not_empty(tmp_path):
    task = task_of(tmp_path, [[], [], [], ["a", "b"], ["b", "a"], ["a"]], [["a", "b"], ["a"]])
    # a twice right, b once right and once wrong: micro 6/7.
    assert majority_of(task, rows_of(tmp_path, task)) == {
        "micro_f1": pytest.approx(6 / 7),
        "macro_f1": pytest.approx((1 + 2 / 3) / 2),
    }
