from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from cap.runs.record import retention, write_record


def test_retention_is_the_ratio_of_the_scores() -> None:
    assert retention(0.75, 0.9, 0.5)["retention"] == pytest.approx(0.75 / 0.9)


def test_a_model_that_guesses_retains_nothing_above_majority() -> None:
    assert retention(0.7, 0.9, 0.7)["retention_above_majority"] == 0.0


def test_a_model_as_good_as_its_teacher_retains_everything() -> None:
    result = retention(0.9, 0.9, 0.7)
    assert (result["retention"], result["retention_above_majority"]) == (1.0, 1.0)


def test_a_model_worse_than_guessing_retains_less_than_nothing_above_majority() -> None:
    assert retention(0.6, 0.9, 0.7)["retention_above_majority"] == pytest.approx(-0.5)


def test_numbers_need_no_reason() -> None:
    result = retention(0.75, 0.9, 0.5)
    assert (result["retention_reason"], result["retention_above_majority_reason"]) == (None, None)


@pytest.mark.parametrize(
    ("scores", "word"),
    [
        pytest.param((0.8, None, 0.5), "no teacher", id="no teacher"),
        pytest.param((None, 0.8, 0.5), "pruned model", id="pruned model not evaluated"),
        pytest.param((0.1, 0.0, -0.1), "not positive", id="teacher at zero"),
        pytest.param((0.1, -0.2, -0.3), "not positive", id="teacher below zero"),
        pytest.param((math.nan, 0.9, 0.5), "finite", id="score is NaN"),
    ],
)
def test_retention_without_a_meaning_is_null_with_a_reason(scores, word: str) -> None:
    result = retention(*scores)
    assert result["retention"] is None
    assert word in result["retention_reason"]


@pytest.mark.parametrize(
    ("scores", "word"),
    [
        pytest.param((0.8, None, 0.5), "no teacher", id="no teacher"),
        pytest.param((0.8, 0.9, None), "majority class", id="task without classes"),
        pytest.param((0.5, 0.7, 0.7), "does not beat", id="teacher equals majority"),
        pytest.param((0.5, 0.6, 0.7), "does not beat", id="teacher below majority"),
    ],
)
def test_retention_above_majority_without_a_meaning_is_null_with_a_reason(scores, word: str) -> None:
    result = retention(*scores)
    assert result["retention_above_majority"] is None
    assert word in result["retention_above_majority_reason"]


def test_a_teacher_that_knows_nothing_has_nothing_to_retain() -> None:
    found = retention(0.7, 0.65, 0.7)
    assert (found["retention"], found["retention_above_majority"]) == (None, None)
    assert found["retention_reason"] == "The teacher (0.65) does not beat the majority class (0.7): nothing to retain."


def test_retention_does_not_need_a_majority_class() -> None:
    assert retention(0.45, 0.9, None)["retention"] == pytest.approx(0.5)


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    record = {"status": "completed", "levels": [{"step": 1, "scores": {"f1": 0.5}}], "error": None}
    write_record(tmp_path, record)
    assert json.loads((tmp_path / "record.json").read_text()) == record


@pytest.mark.parametrize(
    ("record", "path"),
    [
        pytest.param({"scores": {"pruned": {"f1": math.nan}}}, r"scores\.pruned\.f1 = nan", id="nested NaN"),
        pytest.param({"levels": [{}, {"sparsity": math.inf}]}, r"levels\[1\]\.sparsity = inf", id="infinity in a list"),
        pytest.param({"seconds": {"fit": np.float64("nan")}}, r"seconds\.fit = nan", id="numpy NaN"),
        pytest.param({"data": {"source": Path("x")}}, r"data\.source of type \w*Path", id="path"),
        pytest.param({"steps": np.int64(3)}, r"steps of type int64", id="numpy integer"),
        pytest.param({"matrices": {0: [1, 2]}}, r"matrices has the key 0", id="key that is no string"),
    ],
)
def test_values_that_json_lacks_are_refused_by_their_key(tmp_path: Path, record, path: str) -> None:
    with pytest.raises(ValueError, match=path):
        write_record(tmp_path, record)


def test_all_bad_keys_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a = nan; b = -inf"):
        write_record(tmp_path, {"a": math.nan, "b": -math.inf})


def test_a_refused_record_leaves_the_earlier_one_alone(tmp_path: Path) -> None:
    write_record(tmp_path, {"seed": 1})
    with pytest.raises(ValueError, match="seed"):
        write_record(tmp_path, {"seed": math.nan})
    assert json.loads((tmp_path / "record.json").read_text()) == {"seed": 1}
