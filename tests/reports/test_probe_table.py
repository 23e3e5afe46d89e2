from __future__ import annotations

import io
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from cap.base.errors import InputError
from cap.reports.probe_table import console_table, plot_probe, require_free, write_probe
from cap.training.linear_head import summary

DASH = "\N{EN DASH}"
SCORES = {"pretrained": [0.70, 0.71], "teacher": [0.80, 0.82], "run": [0.74, 0.78]}


def row(role: str, name: str, **about: Any) -> dict[str, Any]:
    teacher = SCORES["teacher"] if role == "run" else None
    known = {"trained_on": None, "pruning": None, "contrast": None, "sparsity": None, "teacher": None}
    scores = {name: {"accuracy": summary(SCORES[role], teacher)} for name in ("mrpc", "sst2")}
    return {"role": role, "name": name, **known, **about, "scores": scores}


def result(n_runs: int = 1) -> dict[str, Any]:
    task = {"metric": "accuracy", "source": "folder x", "fingerprint": "f", "n_rows": {"train": 9, "validation": 4}}
    runs = [row("run", f"run-[{i}]", sparsity=0.9, trained_on="qqp", pruning="movement") for i in range(n_runs)]
    return {
        "key": "0123",
        "config": {"seeds": [1, 2], "epochs": 20},
        "environment": {},
        "tasks": {name: {**task, "majority": {"accuracy": 0.5}} for name in ("mrpc", "sst2")},
        "rows": [row("pretrained", "pre-trained X"), row("teacher", "teacher Y", trained_on="qqp"), *runs],
        "notes": ["A note."],
    }


def printed(table: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(table)
    return out.getvalue()


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Catch the figures in place of writing them."""
    caught: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: caught.append(figure))
    return caught


@pytest.mark.parametrize("values", [[0.5, 0.7], [0.1, 0.4, 0.2, 0.9, 0.9]], ids=["two", "five"])
def test_standard_error_is_the_sample_deviation_by_the_root_of_the_number(values: list[float]) -> None:
    assert summary(values, None)["standard_error"] == pytest.approx(statistics.stdev(values) / len(values) ** 0.5)


def test_one_seed_has_no_standard_error() -> None:
    assert summary([0.5], None) == {"seeds": [0.5], "mean": 0.5, "standard_error": None, "gap": None}


def test_gap_is_the_mean_minus_the_teachers_mean() -> None:
    assert summary([0.5, 0.7], [0.9, 0.9, 0.6])["gap"] == pytest.approx(0.6 - 0.8)


def test_equal_scores_have_a_standard_error_and_a_gap_of_zero() -> None:
    score = summary([0.5, 0.5], [0.5, 0.5])
    assert (score["standard_error"], score["gap"]) == (0.0, 0.0)


def test_folder_holds_the_scores_the_table_and_the_picture(tmp_path: Path) -> None:
    write_probe(tmp_path / "probe", result())
    assert {path.name for path in (tmp_path / "probe").iterdir()} == {"probe.json", "table.md", "probe.png"}
    assert json.loads((tmp_path / "probe" / "probe.json").read_text()) == result()


def test_page_shows_every_model_beside_the_majority_class(tmp_path: Path) -> None:
    write_probe(tmp_path / "probe", result())
    page = (tmp_path / "probe" / "table.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| majority class",
        "| pre-trained X",
        "| teacher Y",
        "| run-[0]",
    ]
    assert "0.7600 ± 0.0200 | -0.0500" in lines[-1]
    assert "- A note." in page


@pytest.mark.parametrize("part", ["mean", "gap"])
def test_nothing_is_written_of_a_result_that_is_not_finite(tmp_path: Path, part: str) -> None:
    broken = result()
    broken["rows"][0]["scores"]["mrpc"]["accuracy"][part] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_probe(tmp_path / "probe", broken)
    assert list(tmp_path.iterdir()) == []


def test_terminal_of_80_columns_shows_every_number_and_names_with_brackets() -> None:
    shown = printed(console_table(result()))
    assert "0.7600 ± 0.0200" in shown
    assert "run-[0]" in shown
    assert "majority class" in shown


def test_missing_standard_error_and_gap_are_dashes() -> None:
    alone = result()
    alone["rows"] = [row("pretrained", "only")]
    alone["rows"][0]["scores"]["mrpc"]["accuracy"] = summary([0.65], None)
    (line,) = (line for line in printed(console_table(alone)).splitlines() if "0.6500" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")][2:] == [f"0.6500 ± {DASH}", DASH]


def test_picture_has_a_panel_per_task_with_a_bar_per_model_and_the_majority_line(
    tmp_path: Path, figures: list[Figure]
) -> None:
    plot_probe(result(n_runs=5), tmp_path / "probe.png")
    assert [axes.get_title() for axes in figures[0].axes] == ["mrpc", "sst2"]
    assert [len(axes.patches) for axes in figures[0].axes] == [7, 7]
    names = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert names == ["majority class", "pre-trained X", "teacher Y", *(f"run-[{i}]" for i in range(5))]


def test_bars_end_at_the_mean_and_start_at_the_majority_class(tmp_path: Path, figures: list[Figure]) -> None:
    plot_probe(result(), tmp_path / "probe.png")
    bar: Any = figures[0].axes[0].patches[-1]
    assert (bar.get_y(), bar.get_y() + bar.get_height()) == pytest.approx((0.5, 0.76))


def test_no_two_runs_look_alike(tmp_path: Path, figures: list[Figure]) -> None:
    plot_probe(result(n_runs=14), tmp_path / "probe.png")
    bars: list[Any] = list(figures[0].axes[0].patches)
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == 16


@pytest.mark.parametrize("n_runs", [1, 5])
def test_picture_is_about_as_wide_as_a_page(tmp_path: Path, n_runs: int) -> None:
    plot_probe(result(n_runs), tmp_path / "probe.png")
    assert 750 <= imread(tmp_path / "probe.png").shape[1] <= 950


@pytest.mark.parametrize("state", ["missing", "empty", "same"])
def test_folder_that_is_new_or_holds_this_comparison_is_free(tmp_path: Path, state: str) -> None:
    folder = tmp_path / "probe"
    {"missing": lambda: None, "empty": folder.mkdir, "same": lambda: write_probe(folder, result())}[state]()
    require_free(folder, "0123")


@pytest.mark.parametrize("content", ['{"key": "4567"}', "{}", "[]", "no json"])
def test_folder_with_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "probe.json").write_text(content)
    with pytest.raises(InputError, match="choose another output_dir"):
        require_free(tmp_path, "0123")


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another output_dir"):
        require_free(tmp_path / "file", "0123")
