from __future__ import annotations

import pytest

from cap.base.errors import InputError
from cap.data.tasks import TASKS, Task, get_task


def test_unknown_task_names_the_nearest_first() -> None:
    with pytest.raises(InputError, match=r"task must be one of qqp, .*; got 'qpq'"):
        get_task("qpq")


@pytest.mark.parametrize(("name", "n_outputs"), [("qqp", 2), ("mnli", 3), ("stsb", 1), ("squad", 2)])
def test_outputs_are_the_classes_one_value_or_a_start_and_an_end(name: str, n_outputs: int) -> None:
    assert get_task(name).head.n_outputs == n_outputs


def test_only_stsb_is_a_regression() -> None:
    assert [name for name, task in TASKS.items() if task.kind == "number"] == ["stsb"]


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("sst2", ("accuracy",)),
        ("qqp", ("accuracy", "f1")),
        ("mrpc", ("accuracy", "f1")),
        ("cola", ("matthews",)),
        ("stsb", ("pearson", "spearman")),
        ("squad", ("f1", "exact_match")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_metrics_are_those_of_glue_and_squad(name: str, metrics: tuple[str, ...]) -> None:
    assert get_task(name).metrics == metrics
    assert get_task(name).monitored == metrics[0]


def test_mnli_is_scored_on_both_of_its_splits() -> None:
    assert get_task("mnli").validation_splits == ("validation_matched", "validation_mismatched")


@pytest.mark.parametrize(
    "wrong",
    [
        {"text_columns": ()},
        {"text_columns": ("a", "b", "c")},
        {"labels": ("only",)},
        {"labels": ("twice", "twice")},
        {"metrics": ()},
        {"validation_splits": ()},
        {"kind": "span", "labels": ()},
    ],
    ids=["no text", "three texts", "one label", "equal labels", "no metric", "no split", "no context"],
)
def test_a_row_that_makes_no_sense_is_refused(wrong: dict) -> None:
    row = {
        "name": "mine",
        "text_columns": ("text",),
        "labels": ("no", "yes"),
        "metrics": ("accuracy",),
        "hub_path": None,
        "hub_config": None,
    }
    with pytest.raises(InputError, match=r"task\."):
        Task(**(row | wrong))
