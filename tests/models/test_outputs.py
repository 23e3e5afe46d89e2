"""Which output of a model belongs to which label."""

from __future__ import annotations

import pytest

from cap.models.outputs import are_same, order_by_name


@pytest.mark.parametrize(
    ("found", "wanted", "order"),
    [
        (["a", "b"], ["a", "b"], None),
        (["B", "A"], ["a", "b"], [1, 0]),
        (["A", "B"], ["a", "b"], None),
        (["us", "US", "O"], ["US", "us", "O"], [1, 0, 2]),
        (["O", "US", "us"], ["US", "us", "O"], [1, 2, 0]),
        (["a", "b"], ["a", "c"], None),
        (["us", "US"], ["US", "Us"], None),
    ],
)
def test_labels_are_matched_exactly_and_in_small_letters_only_where_that_tells_them_apart(found, wanted, order):
    assert order_by_name(found, wanted) == order


def test_labels_that_differ_in_capitals_alone_are_not_the_same():
    assert are_same(["us", "US"], ["us", "US"])
    assert not are_same(["us", "US"], ["US", "us"])
    assert are_same(["Yes", "No"], ["yes", "no"])
