from __future__ import annotations

import csv
import io
import math
from pathlib import Path

import pytest
import torch

from cap.runs.predictions import Columns, answer_columns, class_columns, number_columns, tag_columns, write_predictions


def written(path: Path, splits: dict[str, Columns]) -> list[dict[str, str]]:
    write_predictions(path / "predictions.csv", splits)
    return list(csv.DictReader(io.StringIO((path / "predictions.csv").read_text(encoding="utf-8"), newline="")))


def test_classes_get_a_probability_each_in_the_order_of_the_outputs(tmp_path):
    logits = torch.tensor([[0.0, math.log(3.0)], [1.0, 1.0]])
    rows = written(tmp_path, {"validation": class_columns(logits, torch.tensor([1, 0]), ["bad", "good"])})
    assert list(rows[0]) == ["example_id", "label", "prediction", "p_bad", "p_good"]
    assert [list(row.values())[:3] for row in rows] == [["0", "good", "good"], ["1", "bad", "bad"]]
    assert [float(rows[0][name]) for name in ("p_bad", "p_good")] == pytest.approx([0.25, 0.75])


def test_probabilities_of_a_row_add_up_to_one_and_small_ones_do_not_vanish(tmp_path):
    logits = 20 * torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    rows = written(tmp_path, {"v": class_columns(logits, torch.zeros(40, dtype=torch.int64), ["a", "b", "c"])})
    sums = [sum(float(row[f"p_{name}"]) for name in "abc") for row in rows]
    assert sums == pytest.approx([1.0] * 40, abs=1e-6)
    assert min(float(row[f"p_{name}"]) for row in rows for name in "abc") > 0


def test_numbers_are_read_back_to_the_last_bit(tmp_path):
    values, labels = torch.tensor([0.1, 1 / 3, -2e-9]), torch.tensor([3.8, 5.0, 0.0])
    rows = written(tmp_path, {"validation": number_columns(values, labels)})
    assert list(rows[0]) == ["example_id", "label", "prediction"]
    assert rows[0]["label"] == "3.8"
    assert torch.equal(torch.tensor([float(row["prediction"]) for row in rows]), values)


def test_questions_show_the_different_right_answers_and_the_one_that_was_given(tmp_path):
    accepted = [["slate", "local slate", "slate"], ["Tom, the keeper"], ["€3.50"]]
    rows = written(tmp_path, {"validation": answer_columns({0: "slate\nor so", 2: '"blue"'}, accepted)})
    assert [list(row.values()) for row in rows] == [
        ["0", "slate | local slate", "slate\nor so"],
        ["1", "Tom, the keeper", ""],
        ["2", "€3.50", '"blue"'],
    ]


def test_several_splits_are_told_apart_by_a_column(tmp_path):
    one, two = (number_columns(torch.zeros(n), torch.ones(n)) for n in (2, 1))
    rows = written(tmp_path, {"matched": one, "mismatched": two})
    assert list(rows[0]) == ["example_id", "split", "label", "prediction"]
    assert [(row["split"], row["example_id"]) for row in rows] == [
        ("matched", "0"),
        ("matched", "1"),
        ("mismatched", "0"),
    ]


def test_failure_on_the_way_leaves_the_file_as_it_was(tmp_path):
    written(tmp_path, {"validation": number_columns(torch.zeros(1), torch.ones(1))})
    before = (tmp_path / "predictions.csv").read_bytes()
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        written(tmp_path, {"validation": {"example_id": [0, 1], "label": [1]}})
    assert (tmp_path / "predictions.csv").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]


def test_a_word_that_was_not_read_has_a_line_without_a_prediction():
    columns = tag_columns({0: [1, -1], 1: [0]}, [["New", "York"], ["ran"]], [[1, 2], [0]], ["O", "B-loc", "I-loc"])
    assert list(zip(*columns.values(), strict=True)) == [
        (0, 0, "New", "B-loc", "B-loc"),
        (0, 1, "York", "I-loc", ""),
        (1, 0, "ran", "O", "O"),
    ]
