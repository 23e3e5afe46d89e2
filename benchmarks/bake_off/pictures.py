"""The pictures of the bake-off: scores above the majority class by arm and over sparsity, and what one change does."""

from __future__ import annotations

import math
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
        figure = Figure(figsize=(WIDTH, 1.0 + 0.5 * len(panels) + _LINE * sum(n_lines)), dpi=DPI)
        # A line is as high in every panel; each task has its own axis, since its lead is.
        layout = figure.add_gridspec(len(panels), height_ratios=n_lines)
        axes: list[Axes] = []
        for row, panel in enumerate(panels):
            ax = figure.add_subplot(layout[row])
            _draw_arms(ax, [arm for arm in measured if arm.rows == panel], lines[panel])
            ax.set_title(panel, loc="left")
            axes.append(ax)
        metrics = {_metric(arm) for arm in measured}
        axes[-1].set_xlabel(
            f"{metrics.pop() if len(metrics) == 1 else 'score'} above the majority class (points)", loc="right"
        )
        handles = legend_handles(axes)
        figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=3)
        return save(figure, path)


def plot_ablations(arms: Sequence[Arm], path: Path) -> Path | None:
    """Draw what one change from the recipe does to the score: a bar for the mean, a dot for each seed.

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
            ax.set_title(panel, loc="right")  # beside long names the axis is narrow
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
    # A type that is only drawn trained, at one sparsity, hides others and compares with nothing.
    both = {(rows, pruning) for rows, pruning, is_trained in lines if not is_trained}
    lines = {key: arms for key, arms in lines.items() if key[:2] in both}
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
        yerr=[statistics.stdev(values) if len(values) > 1 else math.nan for values in heights],
        color=COLOURS[number % len(COLOURS)],
        marker=MARKERS[number % len(MARKERS)],
        markerfacecolor=None if is_trained else "white",
        linestyle="-" if is_trained else "--",
        linewidth=1.4,
        elinewidth=1.0,
        capsize=2.5,
        label=f"{ordered[0].first.pruning}, {'the recipe' if is_trained else 'no training'}",
    )


def _limits(arms: Sequence[Arm]) -> tuple[float, float]:
    """Choose what the axis shows: all seeds of the arms half as high as the highest; others get an arrow."""
    means = {arm: statistics.fmean(_heights(arm)) for arm in arms}
    drawn = [arm for arm in arms if means[arm] >= max(means.values()) / 2]
    shown = [height for arm in drawn or arms for whose in ("score", "teacher") for height in _heights(arm, whose)]
    margin = 0.04 * (max(shown) - min(shown)) or 1.0
    return min(shown) - margin, max(shown) + margin


def _draw_arms(ax: Axes, arms: Sequence[Arm], lines: Sequence[str]) -> None:
    limits = _limits(arms)
    both = {line for line in lines if sum(_line(arm) == line for arm in arms) > 1}
    for arm in arms:
        colour, marker, label = _LOOKS[arm.first.contrast]
        shift = 0.0 if _line(arm) not in both else -0.17 if arm.first.contrast == "cap" else 0.17
        place, heights = lines.index(_line(arm)) + shift, _heights(arm)
        mean = statistics.fmean(heights)
        if mean < limits[0]:
            ax.annotate(f"\N{LEFTWARDS ARROW} {mean:.1f}", (limits[0], place), va="center", fontsize=8, color=colour)
            continue
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
    ax.set_xlim(*limits)


def _draw_teachers(ax: Axes, arms: Sequence[Arm], *, is_upright: bool = False) -> None:
    # Arms share their teachers, a seed each: one that many learned from counts once.
    heights = [*dict.fromkeys(pair for arm in arms for pair in _teachers(arm))]
    if heights:
        draw = ax.axvline if is_upright else ax.axhline
        draw(
            statistics.fmean(height for _, height in heights),
            color=GREY,
            linestyle="-.",
            linewidth=1.2,
            label="teacher (mean)",
        )


def _draw_ablations(ax: Axes, found: Sequence[tuple[Arm, Difference]]) -> None:
    for place, (_, difference) in enumerate(found):
        ax.barh(place, 100 * difference.mean, 0.6, color=BLUE, alpha=0.55, label="mean")
        values = [100 * value for value in difference.by_seed.values()]
        ax.plot(
            values, [place] * len(values), linestyle="none", marker="o", markersize=3.5, color="black", label="a seed"
        )
    ax.axvline(0.0, color="black", linewidth=0.8)
    _dress(ax, [f"{arm.change} ({_seeds(difference)})" for arm, difference in found])
    ax.set_xlabel(f"{_metric(found[0][0])} minus that of the recipe (points)", loc="right")


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
    return [height for run in runs if (height := _height(run, whose)) is not None]


def _teachers(arm: Arm) -> list[tuple[int | None, float]]:
    """Give the seed of each teacher of an arm, and its height."""
    runs = arm.group.runs if arm.group is not None else ()
    return [(run.seed, height) for run in runs if (height := _height(run, "teacher")) is not None]


def _height(run: Run, whose: str) -> float | None:
    score, majority = number(getattr(run, whose)), _majority(run)
    return None if score is None or majority is None else 100 * (score - majority)


def _majority(run: Run) -> float | None:
    scores = run.record["scores"].get("majority") or {}
    return number(scores.get(run.metric))


def _metric(arm: Arm) -> str:
    return arm.group.first.metric.replace("_", " ") if arm.group is not None else "score"


def _line(arm: Arm) -> str:
    # A control's words say what its sparsity, all or none, stands for.
    is_said = arm.is_control and arm.first.variant
    return arm.setting if is_said else f"{arm.setting}, {arm.first.sparsity:g}"


def _ablation_panel(arm: Arm) -> str:
    return f"{arm.rows}, {arm.first.pruning} at {arm.first.sparsity:g}"


__all__ = ["plot_ablations", "plot_arms", "plot_sparsities"]
