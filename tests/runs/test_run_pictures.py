from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from cap.models.families import prunable
from cap.runs import pictures as plots
from cap.runs.history import History, Series
from cap.runs.pictures import plot_layer_sparsity, plot_losses, plot_score_and_sparsity
from tests.models.tiny_models import FAMILY_NAMES, tiny_classifier

KINDS = ["query", "key", "value", "attention output"]
FFN_KINDS = {"modernbert": ["FFN in", "FFN gate", "FFN out"], "gte": ["FFN gate", "FFN in", "FFN out"]}


def _series(*values: float, every: int = 10) -> Series:
    return Series(np.arange(len(values)) * every, np.array(values))


def _history(n_points: int) -> History:
    rng = np.random.default_rng(0)
    sparsity = np.linspace(0, 0.97, n_points)
    names = ("loss/total", "loss/ce", "loss/kd", "loss/prc", "loss/snc", "loss/fic", "loss/scores")
    losses = {name: _series(*rng.gamma(4, size=n_points), every=1) for name in names}
    scores = {"val/accuracy": _series(0.7, 0.8, every=max(1, n_points // 2))}
    moved = {name: _series(*sparsity, every=1) for name in ("pruning/sparsity", "pruning/target")}
    return History({**losses, **scores, **moved})


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Catch the figures in place of writing them, which takes most of a picture's time."""
    caught: list[Figure] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: caught.append(figure) or path)
    return caught


def _legend(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def _score(history: History, path: Path, **levels: float | None) -> Path | None:
    levels = {"teacher": 0.85, "majority": 0.5} | levels
    return plot_score_and_sparsity(history, metric="accuracy", path=path, **levels)


def test_letters_and_colours_of_all_pictures_are_chosen_in_one_place() -> None:
    sources = {file.name: file.read_text(encoding="utf-8") for file in Path(plots.__file__).parent.glob("*.py")}
    assert [name for name, text in sources.items() if '"font.family"' in text] == ["style.py"]
    assert [name for name, text in sources.items() if '"#0072B2"' in text] == ["style.py"]


@pytest.mark.parametrize("n_points", [1, 5, 300, 20_000])
def test_histories_of_any_length_give_pictures(tmp_path: Path, n_points: int) -> None:
    assert imread(_score(_history(n_points), tmp_path / "a.png")).size > 0
    assert imread(plot_losses(_history(n_points), tmp_path / "b.png")).size > 0


def test_a_curve_of_some_rows_says_so_and_has_the_saved_model_beside_it(figures, tmp_path: Path) -> None:
    some = {"share": 0.25, "final": (300, 0.7)}
    _score(_history(300), tmp_path / "a.png", **some)
    assert {"student, 25% of the rows", "saved model (0.700)"} <= set(_legend(figures[0]))
    _score(_history(300), tmp_path / "b.png", **(some | {"share": 1.0}))
    assert not [label for label in _legend(figures[1]) if "saved" in label or "rows" in label]


def test_an_empty_history_gives_no_picture(tmp_path: Path) -> None:
    drawn = (_score(History(), tmp_path / "a.png"), plot_losses(History(), tmp_path / "b.png"))
    assert drawn == (None, None)
    assert list(tmp_path.iterdir()) == []


def test_no_matrices_give_no_picture(tmp_path: Path) -> None:
    assert plot_layer_sparsity({}, tmp_path / "a.png", kinds={}) is None


def test_equal_data_give_equal_bytes(tmp_path: Path) -> None:
    first, second = (_score(_history(20), tmp_path / name) for name in ("a.png", "b.png"))
    assert first.read_bytes() == second.read_bytes()


def test_pictures_are_about_as_wide_as_a_page(tmp_path: Path) -> None:
    width = imread(_score(_history(20), tmp_path / "a.png")).shape[1]
    assert 750 <= width <= 950


def test_score_picture_names_its_axes_with_units(tmp_path: Path, figures: list[Figure]) -> None:
    _score(_history(20), tmp_path / "a.png")
    left, right = figures[0].axes
    assert left.get_xlabel() == "optimizer step"
    assert left.get_ylabel() == "accuracy (fraction)"
    assert right.get_ylabel().replace("\n", " ") == "sparsity (fraction of prunable weights)"


def test_legend_names_each_line_once_and_lies_outside_the_axes(tmp_path: Path, figures: list[Figure]) -> None:
    _score(_history(20), tmp_path / "a.png")
    names = {"student", "teacher (0.850)", "majority class (0.500)", "sparsity, target", "sparsity, reached"}
    assert sorted(_legend(figures[0])) == sorted(names)
    figures[0].draw_without_rendering()
    assert not figures[0].legends[0].get_window_extent().overlaps(figures[0].axes[0].get_window_extent())


def test_levels_that_are_not_known_are_left_out(tmp_path: Path, figures: list[Figure]) -> None:
    _score(_history(20), tmp_path / "a.png", teacher=None, majority=None)
    assert "student" in _legend(figures[0])
    assert not any("teacher" in name or "majority" in name for name in _legend(figures[0]))


def test_a_run_without_pruning_has_no_second_axis(tmp_path: Path, figures: list[Figure]) -> None:
    _score(History({"val/accuracy": _series(0.5, 0.7)}), tmp_path / "a.png")
    assert len(figures[0].axes) == 1


def test_a_run_without_a_validation_shows_its_sparsity(tmp_path: Path, figures: list[Figure]) -> None:
    _score(History({"pruning/sparsity": _series(0.0, 0.5)}), tmp_path / "a.png", teacher=None, majority=None)
    assert _legend(figures[0]) == ["sparsity, reached"]


def test_target_lies_behind_what_was_reached(tmp_path: Path, figures: list[Figure]) -> None:
    _score(_history(20), tmp_path / "a.png")
    assert [line.get_label() for line in figures[0].axes[1].lines] == ["sparsity, target", "sparsity, reached"]


def test_every_loss_has_its_panel(tmp_path: Path, figures: list[Figure]) -> None:
    plot_losses(History({"loss/ce": _series(1, 2), "loss/new_term": _series(1, 2)}), tmp_path / "a.png")
    assert [axes.get_title() for axes in figures[0].axes] == ["task (CE)", "new term"]


def test_a_long_loss_is_drawn_raw_and_smoothed(tmp_path: Path, figures: list[Figure]) -> None:
    plot_losses(History({"loss/ce": _series(*range(1, 200))}), tmp_path / "a.png")
    assert sorted(_legend(figures[0])) == ["as logged", "running mean"]


def test_a_loss_with_a_spike_gets_a_log_axis(tmp_path: Path, figures: list[Figure]) -> None:
    plot_losses(History({"loss/ce": _series(500, 1, 1, 1), "loss/kd": _series(3, 2, 1)}), tmp_path / "a.png")
    assert [axes.get_yscale() for axes in figures[0].axes] == ["log", "linear"]


def test_running_mean_is_the_mean_of_the_window_around_each_point() -> None:
    values = np.random.default_rng(1).normal(size=400)
    half = 5  # a fortieth of 400 points is 10
    slow = [values[max(0, i - half) : i + half + 1].mean() for i in range(400)]
    np.testing.assert_allclose(plots._running_mean(values), slow)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_matrices_of_every_family_get_the_names_of_their_kinds_in_the_order_of_use(family: str) -> None:
    found = prunable(tiny_classifier(family)).matrices
    kinds = {name: matrix.kind for name, matrix in found.items()}
    table, layers, columns = plots._sparsity_table({name: [1, 4] for name in found}, kinds)
    assert (columns, layers) == (KINDS + FFN_KINDS.get(family, ["FFN in", "FFN out"]), [0, 1])
    assert (table == 0.25).all()


def test_a_matrix_whose_kind_is_not_known_keeps_its_own_name() -> None:
    _, layers, columns = plots._sparsity_table({"blocks.3.mixer.token_mix": [1, 4]}, {})
    assert (layers, columns) == ([3], ["mixer token mix"])


def test_layers_are_ordered_by_number_and_not_by_letters() -> None:
    matrices = {f"encoder.layer.{layer}.output.dense": [layer, 100] for layer in (10, 2, 0)}
    assert plots._sparsity_table(matrices, {})[1] == [0, 2, 10]


def test_heat_map_writes_every_value_and_marks_what_is_missing(tmp_path: Path, figures: list[Figure]) -> None:
    matrices = {"layer.0.query": [50, 100], "layer.0.key": [90, 100], "layer.1.key": [70, 100]}
    plot_layer_sparsity(matrices, tmp_path / "a.png", kinds={})
    texts = [text.get_text() for text in figures[0].axes[0].texts]
    assert texts == ["0.50", "0.90", "\N{EN DASH}", "0.70"]


def test_a_matrix_that_is_not_empty_is_not_shown_as_empty(tmp_path: Path, figures: list[Figure]) -> None:
    plot_layer_sparsity({"layer.0.query": [997, 1000], "layer.0.key": [1000, 1000]}, tmp_path / "a.png", kinds={})
    assert [text.get_text() for text in figures[0].axes[0].texts] == ["0.997", "1.000"]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.97, 1.0])
def test_equal_matrices_get_a_colour_range_within_the_fractions(sparsity: float) -> None:
    low, high = plots._colour_range(sparsity, sparsity)
    assert 0 <= low <= sparsity <= high <= 1
    assert high - low == pytest.approx(0.1)


def test_colour_bar_says_what_it_shows(tmp_path: Path, figures: list[Figure]) -> None:
    plot_layer_sparsity({f"layer.{layer}.query": [3, 4] for layer in range(3)}, tmp_path / "a.png", kinds={})
    assert figures[0].axes[1].get_ylabel().replace("\n", " ") == "sparsity (fraction of weights)"
