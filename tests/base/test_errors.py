from __future__ import annotations

import pytest

from cap.base.errors import InputError, RunError, nearest_first, some_of


@pytest.mark.parametrize(("given", "best"), [("qpq", "qqp"), ("sst", "sst2"), ("squad_v2", "squad"), ("mnli", "mnli")])
def test_the_name_most_like_the_given_one_comes_first(given: str, best: str) -> None:
    assert nearest_first(given, ["mnli", "qqp", "squad", "sst2", "stsb"])[0] == best


def test_every_known_name_is_kept() -> None:
    assert sorted(nearest_first("x", ["b", "a", "xylophone"])) == ["a", "b", "xylophone"]


def test_equally_alike_names_come_in_alphabetical_order() -> None:
    assert nearest_first("zzz", iter(["c", "a", "b"])) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("names", "said"), [(["a"], "a"), (["a", "b", "c"], "a, b, c"), (["a", "b", "c", "d", "e"], "a, b, c and 2 more")]
)
def test_the_first_three_are_named_and_the_others_counted(names: list[str], said: str) -> None:
    assert some_of(names) == said


def test_nothing_is_near_where_nothing_is_known() -> None:
    assert nearest_first("qqp", []) == []


@pytest.mark.parametrize(("error", "base"), [(InputError, ValueError), (RunError, RuntimeError)], ids=["input", "run"])
def test_a_known_error_is_also_python_s_own_kind(error: type[Exception], base: type[Exception]) -> None:
    with pytest.raises(base, match="said once"):
        raise error("said once")


@pytest.mark.parametrize(("error", "other"), [(InputError, RunError), (RunError, InputError)], ids=["input", "run"])
def test_bad_input_and_a_stopped_run_are_told_apart(error: type[Exception], other: type[Exception]) -> None:
    assert not issubclass(error, other)
