from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from cap.runs import formats_picture
from cap.runs.formats_picture import Point, plot_formats

SHAPES = {"batch=1,tokens=32": "one row", "batch=32,tokens=128": "many rows"}
BOTH = dict(zip(SHAPES, (2.0, 300.0), strict=True))
POINTS = [Point("dense", 90.0, 0.86, BOTH), Point("int8", 18.0, 0.80, {"batch=1,tokens=32": 1.0})]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Catch the figures in place of writing them."""
    caught: list[Figure] = []
    monkeypatch.setattr(formats_picture, "save", lambda figure, path: caught.append(figure) or path)
    return caught


def draw(points: list[Point]) -> Path | None:
    return plot_formats(points, SHAPES, metric="exact_match", path=Path("formats.png"))


def test_every_shape_has_a_panel_with_the_formats_that_were_timed_at_it(figures: list[Figure]) -> None:
    draw(POINTS)
    *panels, bar = figures[0].axes
    assert [panel.get_title() for panel in panels] == ["one row", "many rows"]
    assert [[text.get_text() for text in panel.texts] for panel in panels] == [["dense", "int8"], ["dense"]]
    assert [line.get_xydata().tolist() for line in panels[0].lines] == [[[90.0, 2.0]], [[18.0, 1.0]]]
    assert bar.get_ylabel() == "exact match"


def test_sizes_and_times_begin_at_nothing(figures: list[Figure]) -> None:
    draw(POINTS)
    assert [(panel.get_xlim()[0], panel.get_ylim()[0]) for panel in figures[0].axes[:2]] == [(0.0, 0.0)] * 2


@pytest.mark.parametrize(("score", "is_alike"), [(0.859, True), (0.80, False)], ids=["nearly equal", "lower"])
def test_scores_that_are_nearly_equal_look_alike(figures: list[Figure], score: float, is_alike: bool) -> None:
    draw([POINTS[0], Point("onnx", 60.0, score, BOTH)])
    first, second = (sum(line.get_markerfacecolor()[:3]) for line in figures[0].axes[0].lines)
    assert (abs(first - second) < 0.15) == is_alike


def test_without_latency_there_is_no_picture(figures: list[Figure]) -> None:
    assert draw([Point("dense", 90.0, 0.86, {})]) is None
    assert figures == []
