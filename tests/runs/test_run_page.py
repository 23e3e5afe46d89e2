from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cap.runs.page import summary_table, write_report


@pytest.fixture
def record() -> dict[str, Any]:
    return {
        "status": "completed",
        "error": None,
        "command": "python -m cap.train task=docstrings sparsity=0.9",
        "config": {"task": "docstrings"},
        "config_hash": "0123456789abcdef",
        "environment": {"python": "3.11.2", "git_commit": None, "device": "A CPU, 2 threads"},
        "seed": 1,
        "data": {"source": "standard library", "fingerprint": "feed", "n_rows": {"train": 7390, "validation": 922}},
        "metric": "accuracy",
        "scores": {
            "majority": {"accuracy": 0.5, "f1": 0.0},
            "teacher": {"accuracy": 0.9, "f1": 0.88},
            "pruned": {"accuracy": 0.81, "f1": 0.79},
        },
        "levels": [{"step": 100, "target": 0.5, "sparsity": 0.5001, "scores": {"accuracy": 0.85}}],
        "retention": 0.9,
        "retention_reason": None,
        "retention_above_majority": 0.775,
        "retention_above_majority_reason": None,
        "sparsity": {"asked": 0.9, "prunable": 0.90004, "encoder": 0.8921, "model": 0.4217},
        "matrices": {},
        "steps": 1386,
        "seconds": {"data": 3.0, "teacher": 200.0, "encode": 30.0, "fit": 900.0, "evaluate": 7.0, "total": 1140.0},
        "seconds_per_step": 0.61234,
        "peak_memory_gb": {"host": 2.345, "device": None},
        "warnings": [],
    }


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture
def drawable(run_dir: Path, record) -> dict[str, Any]:
    """Give the run curves and matrices, which most tests do without to be fast."""
    (run_dir / "logs").mkdir(parents=True)
    rows = "".join(f"{1 / step},{step / 20},{step},{0.8 if step == 10 else ''}\n" for step in range(1, 11))
    (run_dir / "logs" / "metrics.csv").write_text("loss/ce,pruning/sparsity,step,val/accuracy\n" + rows)
    return record | {"matrices": {"encoder.layer.0.attention.self.query": [90, 100]}}


def _page(folder: Path, record: dict[str, Any]) -> str:
    return write_report(folder, record).read_text(encoding="utf-8")


def _rendered(record: dict[str, Any], folder: str = "outputs/run") -> str:
    console = Console(width=100, file=io.StringIO())
    with console.capture() as capture:
        console.print(summary_table(record, folder))
    return capture.get()


def test_report_lies_in_the_run_s_folder(run_dir: Path, record) -> None:
    assert write_report(run_dir, record) == run_dir / "report.md"


@pytest.mark.parametrize(
    "line",
    [
        "python -m cap.train task=docstrings sparsity=0.9",
        "| accuracy | 0.9000 | 0.8100 | 0.5000 |",
        "| f1 | 0.8800 | 0.7900 | 0.0000 |",
        "| retention | 0.900 | pruned / teacher, accuracy |",
        "| retention above majority | 0.775 | (pruned - majority) / (teacher - majority) |",
        "| sparsity asked | 0.9 |",
        "| sparsity reached, prunable | 0.9000 |",
        "| sparsity reached, encoder | 0.8921 |",
        "| sparsity reached, model | 0.4217 |",
        "| rows | 7,390 train, 922 validation |",
        "| optimizer steps | 1,386 | seed 1 |",
        "| minutes | 19.0 |",
        "| seconds per step | 0.612 | median |",
        "| peak memory, host | 2.35 |",
        "| peak memory, device | \N{EN DASH} |",
        "| 100 | 0.5000 | 0.5001 | 0.8500 |",
        "| device | A CPU, 2 threads |",
    ],
)
def test_report_says(run_dir: Path, record, line: str) -> None:
    assert line in _page(run_dir, record)


def test_a_retention_without_meaning_gives_its_reason(run_dir: Path, record) -> None:
    record |= {"retention": None, "retention_reason": "There is no teacher."}
    assert "| retention | \N{EN DASH} | There is no teacher. |" in _page(run_dir, record)


def test_warnings_come_before_the_numbers(run_dir: Path, record) -> None:
    page = _page(run_dir, record | {"warnings": ["The run was too short\nfor a snapshot."]})
    assert page.index("> **Warning:** The run was too short for a snapshot.") < page.index("## Summary")


def test_the_error_of_a_failed_run_stands_on_top(run_dir: Path, record) -> None:
    page = _page(run_dir, record | {"status": "failed", "error": "The loss is no number."})
    assert page.startswith("# Run 0123456789abcdef: failed\n\n> **Error:** The loss is no number.")


def test_every_picture_is_shown_with_a_caption(run_dir: Path, drawable) -> None:
    page = _page(run_dir, drawable)
    shown = [line for line in page.splitlines() if line.startswith("![")]
    assert shown == [
        "![score and sparsity](pictures/score_and_sparsity.png)",
        "![layer sparsity](pictures/layer_sparsity.png)",
        "![losses](pictures/losses.png)",
    ]
    assert page.count("\n*") == len(shown)
    assert len(list((run_dir / "pictures").glob("*.png"))) == len(shown)


def test_a_run_that_logged_nothing_has_no_curves(run_dir: Path, drawable) -> None:
    (run_dir / "logs" / "metrics.csv").unlink()
    page = _page(run_dir, drawable)
    assert "losses.png" not in page
    assert "layer_sparsity.png" in page


def test_a_run_without_anything_to_draw_has_no_pictures(run_dir: Path, record) -> None:
    assert "## Pictures" not in _page(run_dir, record)


def test_pictures_of_an_earlier_attempt_do_not_stay(run_dir: Path, drawable) -> None:
    write_report(run_dir, drawable)
    assert "layer_sparsity.png" not in _page(run_dir, drawable | {"matrices": {}})
    assert not (run_dir / "pictures" / "layer_sparsity.png").exists()


def test_many_levels_are_thinned_with_both_ends_kept(run_dir: Path, record) -> None:
    levels = [{"step": step, "target": 0.1, "sparsity": 0.1, "scores": {"accuracy": 0.5}} for step in range(1, 31)]
    section = _page(run_dir, record | {"levels": levels}).split("## Levels")[1].split("##")[0]
    steps = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| ")][2:]
    assert (len(steps), steps[0], steps[-1]) == (12, "1", "30")
    assert "12 of 30 levels" in section


def test_a_run_without_levels_has_no_level_table(run_dir: Path, record) -> None:
    assert "## Levels" not in _page(run_dir, record | {"levels": []})


@pytest.mark.parametrize(
    ("config", "loader"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, "AutoModelForSequenceClassification"),
        ({"architectures": ["DistilBertForQuestionAnswering"]}, "AutoModelForQuestionAnswering"),
        ({"architectures": None}, "AutoModelForSequenceClassification"),
    ],
    ids=["classifier", "question answering", "unknown"],
)
def test_report_says_how_to_load_the_model_that_was_saved(run_dir: Path, record, config, loader: str) -> None:
    (run_dir / "model").mkdir(parents=True)
    (run_dir / "model" / "config.json").write_text(json.dumps(config))
    code = _page(run_dir, record).split("```python\n")[1].split("\n```")[0]
    assert len(code.splitlines()) == 3
    assert f'{loader}.from_pretrained("model")' in code
    compile(code, "report", "exec")


def test_a_run_without_a_model_does_not_say_how_to_load_it(run_dir: Path, record) -> None:
    assert "Load the model" not in _page(run_dir, record)


def test_a_record_that_knows_almost_nothing_still_gives_a_page(tmp_path: Path) -> None:
    page = _page(tmp_path, {"status": "failed", "error": "No data.", "scores": None, "seconds": None, "levels": None})
    assert "> **Error:** No data." in page


def test_summary_table_shows_sensible_digits(record) -> None:
    text = _rendered(record)
    shown = ("0.9000", "0.8100", "0.5000", "0.900", "0.775", "0.9000 (0.9)", "19.0", "outputs/run", "accuracy")
    assert [number for number in shown if number not in text] == []


def test_summary_table_shows_a_dash_where_there_is_nothing(record) -> None:
    record |= {"retention": None, "scores": {"majority": None, "teacher": None, "pruned": {"accuracy": 0.81}}}
    record["retention_above_majority"] = None
    assert _rendered(record).count("\N{EN DASH}") == 4


def test_summary_table_claims_no_retention_of_a_teacher_that_learned_nothing(record) -> None:
    record["scores"] = {who: {"accuracy": 0.5} for who in ("majority", "teacher", "pruned")}
    record |= {"retention": 1.0, "retention_above_majority": None}
    text = _rendered(record)
    assert "1.000" not in text
    assert text.count("\N{EN DASH}") == 2
    assert "the teacher does not beat the majority class" in text


def test_summary_table_shows_the_retention_of_a_teacher_that_beats_the_majority(record) -> None:
    record |= {"retention": 1.0, "retention_above_majority": 1.0}
    assert _rendered(record).count("1.000") == 2


def test_square_brackets_in_a_folder_are_shown_as_they_are(record) -> None:
    assert "runs/[bold]x" in _rendered(record, "runs/[bold]x")


def test_units_without_effect_are_counted_and_those_left_listed_by_layer(run_dir: Path, record) -> None:
    units = {"heads": {"layer.0": [3, 12], "layer.1": [7, 12]}, "ffn": {"layer.0": [0, 1536], "layer.1": [600, 1536]}}
    page = _page(run_dir, record | {"units": units})
    assert "| attention heads without effect | 10 of 24 | left, by layer: 9, 5 |" in page
    assert "| FFN units without effect | 600 of 3,072 | left, by layer: 1,536, 936 |" in page


def test_a_record_without_units_says_nothing_of_them(run_dir: Path, record) -> None:
    assert "without effect" not in _page(run_dir, record)
