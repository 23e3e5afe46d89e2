"""The picture of a run's formats: how large each is, how long it takes, and what it scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cap.runs.style import DPI, GREY, STYLE, save

_WIDTH = 8.0
# Scores that are nearly equal must look equal: the colours span two points at least.
_MIN_SCORE_SPAN = 0.02
# Fraction of an axis within which a name would touch the next point.
_NEAR = 0.15


@dataclass(frozen=True)
class Point:
    """Hold what is drawn of one format.

    Args:
        name: Written beside it.
        megabytes: On disk.
        score: Its colour.
        milliseconds: By shape of input.
    """

    name: str
    megabytes: float
    score: float
    milliseconds: Mapping[str, float]


def plot_formats(points: Sequence[Point], titles: Mapping[str, str], *, metric: str, path: Path) -> Path | None:
    """Draw size against latency, a panel for each shape of input, with the score as colour.

    Args:
        points: What was measured; one that was not timed at a shape has no place in its panel.
        titles: What each panel is called, by shape of input.
        metric: The score's name.
        path: The PNG to write.

    Returns:
        ``path``, or None if nothing was timed.
    """
    timed = [point for point in points if any(shape in point.milliseconds for shape in titles)]
    if not timed:
        return None
    shades: Any = ScalarMappable(_score_range([point.score for point in timed]), cmap="cividis")
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_WIDTH, 3.4), dpi=DPI)
        panels = [figure.add_subplot(1, len(titles), number + 1) for number in range(len(titles))]
        for axes, (shape, title) in zip(panels, titles.items(), strict=True):
            _draw(axes, [point for point in timed if shape in point.milliseconds], shape, shades.to_rgba)
            axes.set_title(title)
        bar = figure.colorbar(shades, ax=panels, pad=0.02, fraction=0.04)
        bar.set_label(metric.replace("_", " "))
        bar.locator = MaxNLocator(nbins=5)
        bar.update_ticks()
        return save(figure, path)


def _score_range(scores: Sequence[float]) -> Normalize:
    middle, span = (min(scores) + max(scores)) / 2, max(max(scores) - min(scores), _MIN_SCORE_SPAN)
    return Normalize(middle - span / 2, middle + span / 2)


def _draw(axes: Axes, points: Sequence[Point], shape: str, colours: Callable[[float], Any]) -> None:
    largest = max((point.megabytes for point in points), default=1.0)
    slowest = max((point.milliseconds[shape] for point in points), default=1.0)
    for point in points:
        place = point.megabytes, point.milliseconds[shape]
        axes.plot(
            *place,
            linestyle="none",
            marker="o",
            markersize=8,
            markerfacecolor=colours(point.score),
            markeredgecolor=GREY,
            markeredgewidth=0.8,
        )
        # A name stands above its point, unless another point is close there.
        is_below = any(
            0 < other.milliseconds[shape] - place[1] < _NEAR * slowest
            and abs(other.megabytes - place[0]) < _NEAR * largest
            for other in points
        )
        axes.annotate(
            point.name,
            place,
            xytext=(0, -7 if is_below else 7),
            textcoords="offset points",
            ha="center",
            va="top" if is_below else "bottom",
            fontsize=8,
        )
    axes.set_xlim(0.0, 1.08 * largest)  # from zero, so that half the cost looks like half
    axes.set_ylim(0.0, 1.15 * slowest)
    axes.set_xlabel("megabytes on disk (10⁶ bytes)")
    axes.set_ylabel("milliseconds a batch")
    axes.grid(color="#E5E5E5", linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))


__all__ = ["Point", "plot_formats"]
