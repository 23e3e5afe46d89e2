"""The pictures of the bake-off: scores above the majority class by arm and over sparsity, and what one change does."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.bake_off.summary import Arm, ablations
from cap.reports.differences import Difference
from cap.reports.run import Run
from cap.reports.style import MARKERS, grid, legend_handles
from cap.runs.reading import number
from cap.runs.style import BLUE, COLOURS, DPI, GREY, ORANGE, STYLE, WIDTH, save

_LINE = 0.26
"""Inches of an arm."""
_LOOKS = {"cap": (BLUE, "o", "contrast"), "none": (ORANGE, "s", "no contrast")}


def plot_arms(arms: Sequence[Arm], path: Path) -> Path | None:
    """Draw the score above the majority class by arm: a dot for each seed, a stroke at the mean, the teacher as a line.

    Args:
        arms: What was measured; ablations are not drawn.
        path: The PNG to write.

    Returns:
        ``path``, or None if nothing was measured.
    """
    measured = [arm for arm in arms if arm.group is not None and arm.first.is_row and _heights(arm)]
    if not measured:
        return None
    panels = list(dict.fromkeys(arm.rows for arm in measured))
    lines = {panel: list(dict.fromkeys(_line(arm) for arm in measured if arm.rows == panel)) for panel in panels}
    with mpl.rc_context(STYLE):
        n_lines = [len(lines[panel]) for panel in panels]
        figure = Figure(figsize=(WIDTH, 1.0 + 0.3 * len(panels) + _LINE * sum(n_lines)), dpi=DPI)
        # One axis for all: a line is as high in every panel, and a point as wide.
        layout = figure.add_gridspec(len(panels), height_ratios=n_lines)
        axes: list[Axes] = []
        for row, panel in enumerate(panels):
            ax = figure.add_subplot(layout[row], sharex=axes[0] if axes else None)
            _draw_arms(ax, [arm for arm in measured if arm.rows == panel], lines[panel])
            ax.set_title(panel, loc="left")
            ax.tick_params(labelbottom=row == len(panels) - 1)
            axes.append(ax)
        axes[0].set_xlim(left=min(0.0, *(height for arm in measured for height in _heights(arm))))
        metrics = {_metric(arm) for arm in measured}
        axes[-1].set_xlabel(f"{metrics.pop() if len(metrics) == 1 else 'score'} above the majority class (points)")
        handles = legend_handles(axes)
        figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=3)
        return save(figure, path)


def plot_ablations(arms: Sequence[Arm], path: Path) -> Path | None:
    """Draw what one change from the recipe does to the score: a bar, a dot for each seed, the standard error.

    Args:
        arms: What was measured.
        path: The PNG to write.

    Returns:
        ``path``, or None if no variant has a seed in common with the recipe.
    """
    found = ablations(arms)
    if not found:
        return None
    panels = list(dict.fromkeys(_ablation_panel(arm) for arm, _ in found))
    n_lines = max(sum(_ablation_panel(arm) == panel for arm, _ in found) for panel in panels)
    with mpl.rc_context(STYLE):
        figure, axes = grid(len(panels), panel_height=0.7 + _LINE * max(3, n_lines), n_legend_lines=1)
        for panel, ax in zip(panels, axes, strict=True):
            _draw_ablations(ax, [pair for pair in found if _ablation_panel(pair[0]) == panel])
            ax.set_title(panel)
        handles = legend_handles(axes)
        figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=2)
        return save(figure, path)


def plot_sparsities(trained: Sequence[Arm], untrained: Sequence[Arm], path: Path) -> Path | None:
    """Draw the score above the majority class against sparsity: a line for each type, with and without training.

    Args:
        trained: The recipe's arms; variants, and those with contrast, are not drawn.
        untrained: Arms of the same teachers, pruned and not trained again; their rows make the panels.
        path: The PNG to write.

    Returns:
        ``path``, or None if nothing was measured without training.
    """
    lines: dict[tuple[str, str, bool], list[Arm]] = defaultdict(list)
    for is_trained, arms in ((True, trained), (False, untrained)):
        for arm in arms:
            is_plain = arm.first.is_row and not arm.first.variant and arm.first.contrast == "none"
            if is_plain and _heights(arm):
                lines[arm.rows, arm.first.pruning, is_trained].append(arm)
    panels = list(dict.fromkeys(rows for rows, _, is_trained in lines if not is_trained))
    if not panels:
        return None
    names = sorted({pruning for rows, pruning, _ in lines if rows in panels})
    with mpl.rc_context(STYLE):
        figure, axes = grid(len(panels), panel_height=3.0, n_legend_lines=len(names) + 2)
        for panel, ax in zip(panels, axes, strict=True):
            for (rows, pruning, is_trained), arms in lines.items():
                if rows == panel:
                    _draw_line(ax, arms, names.index(pruning), is_trained=is_trained)
            _draw_teachers(ax, [arm for (rows, *_), arms in lines.items() if rows == panel for arm in arms])
            ax.set_title(panel, loc="left")
            ax.set_xlabel("sparsity (fraction of prunable weights)")
            ax.set_ylabel("points above the majority class")
            ax.grid(axis="y", color="#E5E5E5", linewidth=0.6)
        handles = legend_handles(axes)
        figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=2)
        return save(figure, path)


def _draw_line(ax: Axes, arms: Sequence[Arm], number: int, *, is_trained: bool) -> None:
    ordered = sorted(arms, key=lambda arm: arm.first.sparsity)
    heights = [_heights(arm) for arm in ordered]
    ax.errorbar(
        [arm.first.sparsity for arm in ordered],
        [statistics.fmean(values) for values in heights],
        yerr=[statistics.stdev(values) if len(values) > 1 else 0.0 for values in heights],
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        markerfacecolor=None if is_trained else "white",
        linestyle="-" if is_trained else "--",
        linewidth=1.4,
        elinewidth=1.0,
        capsize=2.5,
        label=f"{ordered[0].first.pruning}, {'the recipe' if is_trained else 'no training'}",
    )


def _draw_arms(ax: Axes, arms: Sequence[Arm], lines: Sequence[str]) -> None:
    both = {line for line in lines if sum(_line(arm) == line for arm in arms) > 1}
    for arm in arms:
        colour, marker, label = _LOOKS[arm.first.contrast]
        shift = 0.0 if _line(arm) not in both else -0.17 if arm.first.contrast == "cap" else 0.17
        place, heights = lines.index(_line(arm)) + shift, _heights(arm)
        mean = statistics.fmean(heights)
        ax.plot([mean, mean], [place - 0.15, place + 0.15], color="black", linewidth=1.4, zorder=4)
        ax.plot(
            heights,
            [place] * len(heights),
            linestyle="none",
            marker=marker,
            markersize=4.5,
            color=colour,
            alpha=0.75,
            markeredgecolor="white",
            markeredgewidth=0.4,
            label=label,
        )
    _draw_teachers(ax, arms, is_upright=True)
    _dress(ax, lines)


def _draw_teachers(ax: Axes, arms: Sequence[Arm], *, is_upright: bool = False) -> None:
    heights = [height for arm in arms for height in _heights(arm, "teacher")]
    if heights:
        draw = ax.axvline if is_upright else ax.axhline
        draw(statistics.fmean(heights), color=GREY, linestyle="-.", linewidth=1.2, label="teacher (mean)")


def _draw_ablations(ax: Axes, found: Sequence[tuple[Arm, Difference]]) -> None:
    for place, (_, difference) in enumerate(found):
        error = difference.standard_error
        ax.barh(
            place,
            100 * difference.mean,
            0.6,
            xerr=None if error is None else 100 * error,
            color=BLUE,
            alpha=0.55,
            capsize=3,
            error_kw={"linewidth": 1.0},
            label="mean, standard error",
        )
        values = [100 * value for value in difference.by_seed.values()]
        ax.plot(
            values, [place] * len(values), linestyle="none", marker="o", markersize=3.5, color="black", label="a seed"
        )
    ax.axvline(0.0, color="black", linewidth=0.8)
    _dress(ax, [f"{arm.first.variant} ({_seeds(difference)})" for arm, difference in found])
    ax.set_xlabel(f"{_metric(found[0][0])} minus that of the recipe (points)")


def _dress(ax: Axes, names: Sequence[str]) -> None:
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_ylim(len(names) - 0.45, -0.55)  # the first on top
    ax.grid(axis="x", color="#E5E5E5", linewidth=0.6)
    ax.set_axisbelow(True)


def _seeds(difference: Difference) -> str:
    n = len(difference.by_seed)
    return "1 seed" if n == 1 else f"{n} seeds"


def _heights(arm: Arm, whose: str = "score") -> list[float]:
    """Give the scores of an arm above the majority class, in points."""
    runs = arm.group.runs if arm.group is not None else ()
    pairs = [(number(getattr(run, whose)), _majority(run)) for run in runs]
    return [100 * (score - majority) for score, majority in pairs if score is not None and majority is not None]


def _majority(run: Run) -> float | None:
    scores = run.record["scores"].get("majority") or {}
    return number(scores.get(run.metric))


def _metric(arm: Arm) -> str:
    return arm.group.first.metric.replace("_", " ") if arm.group is not None else "score"


def _line(arm: Arm) -> str:
    return arm.setting if arm.first.variant else f"{arm.setting}, {arm.first.sparsity:g}"


def _ablation_panel(arm: Arm) -> str:
    return f"{arm.rows}, {arm.first.pruning} at {arm.first.sparsity:g}"


__all__ = ["plot_ablations", "plot_arms", "plot_sparsities"]
