"""Formats side by side: the table, and the sentence that says which to ship."""

from __future__ import annotations

from typing import Any

import pytest

from cap.formats.choice import Side, chosen_shapes, dense_side, recommendation, side_of, table_rows
from tests.runs.made_cards import EXPORT

SMALL, LARGE = "batch=1,tokens=32", "batch=32,tokens=128"


def side(
    name: str, n_bytes: int, score: float = 0.86, *, small: float = 1.0, large: float = 1.0, **changed: Any
) -> Side:
    speed_up = {SMALL: small, LARGE: large}
    given: dict[str, Any] = {
        "milliseconds": {SMALL: 6.0 / small, LARGE: 600.0 / large},
        "speed_up": speed_up,
        "faster": frozenset(shape for shape, value in speed_up.items() if value > 1.1),
        "device": "a CPU",
    }
    return Side(name=name, n_bytes=n_bytes, score=score, **(given | changed))


DENSE = side("dense", 90_000_000)
COMPACT = side("compact", 60_000_000, small=1.5, large=2.0)
ONNX = side("onnx", 61_000_000, small=2.0, large=1.8)


def test_the_smallest_and_the_fastest_of_each_shape_are_named_with_what_they_cost() -> None:
    assert recommendation(DENSE, [COMPACT, ONNX], "accuracy") == (
        "Ship compact for the smallest size (60.0 MB, 67% of the dense model's, accuracy 0.8600), "
        "onnx for the lowest latency at batch 1, tokens 32 (3.00 ms, 2.00 times the dense model's speed, accuracy "
        "0.8600), and compact for the lowest latency at batch 32, tokens 128 (300.00 ms, 2.00 times the dense model's "
        "speed, accuracy 0.8600)."
    )


def test_where_the_best_loses_more_than_half_a_point_the_next_is_named_too() -> None:
    said = recommendation(DENSE, [COMPACT, side("int8", 15_000_000, 0.854, small=3.0)], "accuracy")
    lost = "accuracy 0.8540 where the run has 0.8600; of those that keep it within half a point, compact)"
    assert f"Ship int8 for the smallest size (15.0 MB, 17% of the dense model's, {lost}" in said
    fast = "int8 for the lowest latency at batch 1, tokens 32 (2.00 ms, 3.00 times the dense model's speed"
    assert f"{fast}, {lost}" in said


def test_less_than_half_a_point_is_said_and_no_reason_to_look_further() -> None:
    said = recommendation(DENSE, [side("int8", 15_000_000, 0.856)], "accuracy")
    assert "accuracy 0.8560 where the run has 0.8600)" in said


def test_a_format_that_is_faster_by_chance_is_not_shipped_for_its_speed() -> None:
    by_chance = side("sparse", 40_000_000, small=1.05, large=1.05)
    said = recommendation(DENSE, [by_chance], "accuracy")
    assert "none for latency at batch 1, tokens 32, where none is faster than the dense model" in said


def test_speeds_beside_another_dense_model_do_not_compare() -> None:
    elsewhere = side("semi_structured", 90_000_000, small=9.0, large=9.0, device="a GPU")
    said = recommendation(DENSE, [COMPACT, elsewhere], "accuracy")
    assert "semi_structured" not in said
    assert table_rows(DENSE, [elsewhere], "accuracy")[-1][0] == "semi_structured, on a GPU"


def test_without_latency_there_is_a_smallest_one_all_the_same() -> None:
    untimed = {"milliseconds": {}, "speed_up": {}, "faster": frozenset()}
    said = recommendation(side("dense", 90, **untimed), [side("compact", 60, **untimed)], "accuracy")
    assert said.endswith("67% of the dense model's, accuracy 0.8600); latency was not measured.")


def test_a_side_is_read_off_what_an_export_measured() -> None:
    found = side_of(EXPORT | {"scores": {"accuracy": 0.8}}, "accuracy")
    assert (found.name, found.n_bytes, found.score) == ("compact", 50, 0.8)
    assert found.faster == {SMALL}
    assert side_of(EXPORT, "accuracy").score == 0.81


def test_the_dense_model_has_the_mean_of_what_was_measured_beside_the_formats() -> None:
    results = [EXPORT | {"dense_latency_ms": {SMALL: value}} for value in (2.0, 4.0)]
    elsewhere = EXPORT | {"dense_latency_ms": {SMALL: 99.0}, "device": "a GPU"}
    dense = dense_side([*results, elsewhere], "accuracy")
    assert dense.milliseconds == {SMALL: 3.0}
    assert (dense.n_bytes, dense.score, dense.device) == (100, 0.81, "some CPU")


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([LARGE, SMALL, "batch=1,tokens=128", "batch=32,tokens=32"], [SMALL, LARGE]),
        (["batch=32,tokens=32", SMALL], [SMALL, "batch=32,tokens=32"]),
        ([SMALL], [SMALL]),
        ([], []),
    ],
    ids=["four", "short model", "one", "none"],
)
def test_one_short_row_and_a_batch_of_the_longest_are_chosen(shapes: list[str], expected: list[str]) -> None:
    assert chosen_shapes(side("dense", 1, milliseconds=dict.fromkeys(shapes, 1.0))) == expected


def test_the_table_has_the_dense_model_first() -> None:
    assert table_rows(DENSE, [COMPACT], "accuracy") == [
        [
            *("format", "MB", "of the dense model's", "accuracy"),
            *("ms, batch 1, tokens 32 (speed-up)", "ms, batch 32, tokens 128 (speed-up)"),
        ],
        ["dense; score of the run's model", "90.0", "100.0%", "0.8600", "6.00 (1.00 x)", "600.00 (1.00 x)"],
        ["compact", "60.0", "66.7%", "0.8600", "4.00 (1.50 x)", "300.00 (2.00 x)"],
    ]
