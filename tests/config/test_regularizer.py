from __future__ import annotations

import pytest

from cap.config.regularizer import weight_for

TABLE = {"qqp": {0.9: 190.0, 0.97: 550.0}, "mnli": {0.9: 290.0, 0.97: 680.0}}


@pytest.mark.parametrize(
    ("task", "sparsity", "expected"),
    [("qqp", 0.9, 190.0), ("qqp", 0.97, 550.0), ("mnli", 0.9, 290.0), ("mnli", 0.97, 680.0)],
)
def test_weight_that_is_known_for_a_task_and_target_is_taken_without_a_word(task, sparsity, expected) -> None:
    assert weight_for(TABLE, task=task, sparsity=sparsity) == (expected, None)


def test_weight_between_two_known_ones_lies_on_a_power_of_the_kept_fraction() -> None:
    weight, _ = weight_for({"a": {0.9: 100.0, 0.99: 1000.0}}, task="a", sparsity=0.95)
    assert weight == pytest.approx(200.0)


def test_weight_beyond_the_known_ones_lies_on_the_same_power() -> None:
    weight, _ = weight_for({"a": {0.9: 100.0, 0.99: 1000.0}}, task="a", sparsity=0.5)
    assert weight == pytest.approx(20.0)


@pytest.mark.parametrize(
    ("task", "sparsity", "expected"),
    [
        ("sst2", 0.97, "=550 is known for task=qqp and not for task=sst2 at sparsity=0.97, which may be missed"),
        ("qqp", 0.95, "follows a power law through {0.9: 190.0, 0.97: 550.0}, known for task=qqp and not for task=qqp"),
    ],
    ids=["another task", "another target"],
)
def test_weight_that_is_not_known_is_said(task, sparsity, expected) -> None:
    _, note = weight_for(TABLE, task=task, sparsity=sparsity)
    assert expected in note


@pytest.mark.parametrize("table", [5, {}, {"qqp": {}}, {"qqp": {0.9: 0.0}}, {"qqp": {1.0: 5.0}}], ids=str)
def test_table_that_gives_no_weights_is_refused(table) -> None:
    with pytest.raises(ValueError, match=r"must give weights > 0 by task and sparsity"):
        weight_for(table, task="qqp", sparsity=0.9)
