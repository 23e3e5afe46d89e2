from __future__ import annotations

import pytest

from tests.cases import cases, each_with_the_first


def test_a_case_that_is_not_daily_is_left_to_the_slow_ends():
    first, second = cases({"one": [1], "two": (2, 3)}, daily=["one"])
    assert (first.id, first.values, [mark.name for mark in first.marks]) == ("one", ([1],), [])
    assert (second.id, second.values, [mark.name for mark in second.marks]) == ("two", (2, 3), ["ends"])


def test_a_daily_case_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match=r"\['three'\] are not"):
        cases(["one", "two"], daily=["three"])


def test_independent_choices_are_each_taken_with_the_first_of_the_other():
    assert each_with_the_first("ab", [1, 2, 3]) == [("a", 1), ("b", 1), ("a", 2), ("a", 3)]
