"""One run, many sparsities: the models that ``keep_levels`` kept, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from cap.runs.style import BLUE, DPI, GREEN, GREY, STYLE, WIDTH, save


def plot_kept(
    kept: Sequence[Mapping[str, Any]], *, metric: str, teacher: float | None, majority: float | None, path: Path
) -> Path | None:
    """Draw the scores of the kept models over their sparsity.

    Args:
        kept: As ``record.json`` lists them.
        metric: The score's name.
        teacher: The teacher's score, drawn as a level.
        majority: The majority class's score, drawn as a level.
        path: The PNG to write.

    Returns:
        ``path``, or None if no model was kept.
    """
    points = sorted((line["sparsity"]["prunable"], line["scores"][metric]) for line in kept)
    if not points:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0), dpi=DPI)
        axes = figure.add_subplot()
        axes.plot([x for x, _ in points], [y for _, y in points], marker="o", color=BLUE, label="kept models")
        levels = (("teacher", teacher, GREEN), ("majority class", majority, GREY))
        for label, score, colour in levels:
            if score is not None:
                axes.axhline(score, color=colour, linestyle="--", label=label)
        axes.set_xlabel("sparsity of the prunable weights")
        axes.set_ylabel(metric.replace("_", " "))
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.legend()
        return save(figure, path)


__all__ = ["plot_kept"]
