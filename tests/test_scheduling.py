from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tests/base/test_errors.py::test_a[x::y]", "tests/base/test_errors.py::test_a"),
        ("tests/base/test_errors.py::test_a", "tests/base/test_errors.py::test_a"),
        ("tests/data/test_docstrings.py::test_a[x]", "tests/data/test_docstrings.py"),
    ],
    ids=["a case", "a test", "a module with a fixture of its own scope"],
)
def test_what_is_made_once_is_made_in_one_worker(name: str, expected: str) -> None:
    from tests.scheduling import TogetherScheduling

    assert object.__new__(TogetherScheduling)._split_scope(name) == expected
