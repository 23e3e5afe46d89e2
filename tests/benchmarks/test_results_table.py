"""The README's tables, made in a folder of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.reports.made_records import made_exports, made_record

RATIO = {"plain": 1.0, "cap": 1.2, "ratio": 1.2}
COST = {
    name: RATIO for name in ("step_masks_every_10", "step_masks_every_1", "step_beside_frozen", "run", "peak_memory_gb")
}


@pytest.fixture
def root(tmp_path) -> Path:
    """Make a checkout with one committed record, two exports in it, and a README with two of the markers."""
    from benchmarks.results_table import COST as COST_MARKS
    from benchmarks.results_table import RESULTS

    records, results = tmp_path / "benchmarks" / "records", tmp_path / "benchmarks" / "results"
    records.mkdir(parents=True)
    results.mkdir()
    (records / "one.json").write_text(json.dumps(made_record() | {"exports": made_exports(0.9)}))
    (results / "step_minilm.json").write_text(json.dumps(COST))
    seconds = {"plain": 0.5, "structured": 0.6, "importance": 0.4}
    (results / "importance_minilm.json").write_text(json.dumps({"seconds": seconds}))
    (tmp_path / "README.md").write_text("\n".join(["Before", *RESULTS, "between", *COST_MARKS, "after", ""]))
    (tmp_path / "docs").mkdir()
    for page in ("benchmarks/README.md", "docs/long_runs.md", "docs/method.md"):
        (tmp_path / page).write_text("Nothing to fill in\n")
    return tmp_path


def add_export_markers(root: Path) -> None:
    from benchmarks.results_table import EXPORTS

    readme = root / "README.md"
    readme.write_text("\n".join([readme.read_text(), *EXPORTS, "end", ""]))


def between(root: Path, marks: tuple[str, str]) -> list[str]:
    return (root / "README.md").read_text().partition(marks[0])[2].partition(marks[1])[0].strip().splitlines()


def test_exports_are_written_between_their_markers_and_the_rest_stays(root):
    from benchmarks.results_table import EXPORTS, write

    add_export_markers(root)
    write(root)
    text = (root / "README.md").read_text()
    assert [line.split(" | ")[5] for line in between(root, EXPORTS)[2:]] == ["compact", "int8"]
    assert [word in text for word in ("Before", "between", "after", "end")] == [True] * 4


def test_a_readme_without_their_markers_gets_no_exports(root):
    from benchmarks.results_table import EXPORTS, tables, write

    write(root)
    text = (root / "README.md").read_text()
    assert EXPORTS[0] not in text
    assert "int8" not in text
    assert len(tables(root, "README.md")) == 2
    assert (root / "benchmarks" / "README.md").read_text() == "Nothing to fill in\n"


def test_without_exports_there_is_nothing_between_their_markers(root):
    from benchmarks.results_table import EXPORTS, write

    add_export_markers(root)
    (root / "benchmarks" / "records" / "one.json").write_text(json.dumps(made_record()))
    write(root)
    assert between(root, EXPORTS) == []


def test_writing_twice_changes_nothing(root):
    from benchmarks.results_table import write

    add_export_markers(root)
    write(root)
    once = (root / "README.md").read_text()
    write(root)
    assert (root / "README.md").read_text() == once


MEASURED = {
    "killed": (
        {"trials": [{"phase": "teacher"}, {"phase": "saving"}], "n_equal": 2},
        ["kill -9 at 2 random moments (teacher, saving)", "same weights, scores and curves, 2 of 2"],
    ),
    "killed_2_processes": (
        {"trials": [{"seconds_until_the_rest_ended": 3.4}, {"seconds_until_the_rest_ended": 1.2}], "n_equal": 1},
        ["one of two processes, 2 times", "within 3 s and said why; the same bits, 1 of 2", "benchmarks.killed"],
    ),
    "full_disk": (
        {"exit_code": 1, "last_good_step": 10, "equal": {"weights": False}},
        ["exit code 1", "the checkpoint of step 10 whole; OTHER BITS", "benchmarks.full_disk"],
    ),
}


@pytest.mark.parametrize("name", MEASURED)
def test_reliability_says_what_was_measured(tmp_path, name):
    from benchmarks.results_table import reliability_table

    measured, words = MEASURED[name]
    (tmp_path / f"{name}.json").write_text(json.dumps(measured))
    lines = reliability_table(tmp_path).splitlines()
    assert len(lines) == 3  # what has not been measured has no row
    assert [word in lines[-1] for word in words] == [True] * len(words)
