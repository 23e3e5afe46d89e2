from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cap.reports.collect import collect
from cap.reports.export_table import EXPORT_HEADER, export_rows
from cap.reports.tables import NONE
from tests.reports.made_records import made_record, write_run

MEASURED: dict[str, Any] = {
    "bytes": 45_678_901,
    "size": {"prunable_parameters": 5_310_464},
    "check": {"rows": 64, "largest_difference": 3.14159e-7},
    "speed_up": {"batch=1,tokens=32": 1.254, "batch=32,tokens=128": 1.876},
    "device": "EPYC",
    "threads": 2,
}


def rows(folder: Path, *records: dict[str, Any]) -> list[dict[str, str]]:
    for number, record in enumerate(records):
        write_run(folder / str(number), record)
    return [dict(zip(EXPORT_HEADER, row, strict=True)) for row in export_rows(collect([folder]).runs)]


def test_a_row_says_how_large_how_fast_and_how_far_from_the_run_an_export_is(tmp_path: Path) -> None:
    (row,) = rows(tmp_path, made_record(seed=7) | {"exports": {"compact": MEASURED}})
    assert row == {
        "task": "sst2",
        "pruning": "movement",
        "contrast": "all three",
        "sparsity": "0.9000",
        "seed": "7",
        "format": "compact",
        "MB": "45.7",
        "prunable parameters": "5,310,464",
        "speed-up, 32 × 128": "1.88",  # noqa: RUF001 - as a reader sees it
        "speed-up, 1 × 32": "1.25",  # noqa: RUF001
        "timed on": "EPYC, 2 threads",
        "largest difference": "3.1e-07",
    }


def test_there_is_a_row_for_each_export_of_each_run(tmp_path: Path) -> None:
    both = {"compact": MEASURED, "sparse": MEASURED}
    found = rows(tmp_path, made_record(seed=1) | {"exports": both}, made_record(seed=2) | {"exports": both})
    assert [(row["seed"], row["format"]) for row in found] == [
        ("1", "compact"),
        ("1", "sparse"),
        ("2", "compact"),
        ("2", "sparse"),
    ]


@pytest.mark.parametrize("exports", [None, [], {}, {"compact": None}, {"compact": "x"}], ids=str)
def test_what_is_no_export_has_no_row(tmp_path: Path, exports: object) -> None:
    assert rows(tmp_path, made_record() | {"exports": exports}) == []


@pytest.mark.parametrize(
    ("key", "empty"),
    [
        ("bytes", {"MB"}),
        ("size", {"prunable parameters"}),
        ("check", {"largest difference"}),
        ("speed_up", {"speed-up, 32 × 128", "speed-up, 1 × 32", "timed on"}),  # noqa: RUF001
    ],
)
def test_what_was_not_measured_is_a_dash(tmp_path: Path, key: str, empty: set[str]) -> None:
    (row,) = rows(tmp_path, made_record() | {"exports": {"compact": MEASURED | {key: None}}})
    assert {name for name, cell in row.items() if cell == NONE} == empty
