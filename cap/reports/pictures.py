"""The pictures of a report: score against sparsity, and what each contrastive term adds.

Each function takes groups and a path and writes one PNG; with nothing to show no file is written and None comes back.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cap.base.files import content_key
from cap.reports.differences import paired
from cap.reports.published import Published
from cap.reports.style import MARKERS, Line, grid, legend_handles, lines_of, panel_of, panels_of
from cap.reports.tables import Group
from cap.runs.reading import TERMS
from cap.runs.style import COLOURS, GREY, STYLE, save

_SWITCHES = {f"contrast.{switch}" for switch in TERMS}
# Every set of terms keeps its looks in all reports.
_BARS = {
    ("PrC",): (COLOURS[1], "///"),
    ("SnC",): (COLOURS[2], "..."),
    ("FiC",): (COLOURS[3], "xxx"),
    ("PrC", "SnC"): (COLOURS[4], "\\\\\\"),
    ("PrC", "FiC"): (COLOURS[5], "+++"),
    ("SnC", "FiC"): ("#999999", "oo"),
    ("PrC", "SnC", "FiC"): (COLOURS[0], ""),
}


def plot_score_against_sparsity(groups: Sequence[Group], published: Iterable[Published], path: Path) -> Path | None:
    """Draw a panel for each task with a line for each pruning type and contrast, and published scores beside them.

    Args:
        groups: What was measured.
        published: Drawn as hollow markers in the panel of the same task and metric, those marked ``drawn`` only.
        path: The PNG to write.

    Returns:
        ``path``, or None without groups.
    """
    if not groups:
        return None
    panels, lines = panels_of(groups), lines_of(groups)
    shown = [row for row in published if row.drawn and (row.task, row.metric) in panels]
    methods = list(dict.fromkeys(row.method for row in shown))
    with mpl.rc_context(STYLE):
        n_legend_lines = len(lines) // 2 + len(methods) // 3 + 4
        figure, axes = grid(len(panels), panel_height=2.9, n_legend_lines=n_legend_lines)
        for panel, ax in zip(panels, axes, strict=True):
            _draw_lines(ax, panel, lines)
            _draw_published(ax, [row for row in shown if (row.task, row.metric) == panel], methods)
            _draw_teacher(ax, [group for group in groups if panel_of(group) == panel])
            _dress(ax, panel)
        handles = legend_handles(axes)
        _legend(figure, {name: h for name, h in handles.items() if name not in methods}, "outside lower center", 2)
        hollow = {name: h for name, h in handles.items() if name in methods}
        _legend(figure, hollow, "outside upper center", 3, title="BERT-base, published (hollow)")
        return save(figure, path)


def plot_ablation(groups: Sequence[Group], path: Path) -> Path | None:
    """Draw what the contrastive terms add, for configurations that differ in nothing else.

    A bar is the score minus that of the configuration without contrast (of the one with the fewest terms, where there
    is none), averaged over the seeds that both have; the error bar is the standard deviation of those differences.

    Args:
        groups: What was measured.
        path: The PNG to write.

    Returns:
        ``path``, or None if no two configurations differ in their contrastive terms only.
    """
    families = _families(groups)
    if not families:
        return None
    panels = panels_of(family[0] for family in families)
    kinds = sorted({group.first.terms for family in families for group in family[1:]}, key=_terms_order)
    with mpl.rc_context(STYLE):
        n_rows = max(sum(panel_of(family[0]) == panel for family in families) for panel in panels)
        height = 0.9 + n_rows * (0.12 + 0.13 * len(kinds))
        figure, axes = grid(len(panels), panel_height=height, n_legend_lines=len(kinds) // 3 + 1)
        for panel, ax in zip(panels, axes, strict=True):
            _draw_bars(ax, [family for family in families if panel_of(family[0]) == panel], kinds)
            ax.set_title(f"{panel[0]}, {panel[1].replace('_', ' ')}")
            ax.set_xlabel("difference in score (points)")
        _legend(figure, legend_handles(axes), "outside upper center", 3)
        return save(figure, path)


def _draw_lines(ax: Axes, panel: tuple[str, str], lines: Sequence[Line]) -> None:
    for line in lines:
        groups = line.within(panel)
        if groups:
            ax.errorbar(
                [group.mean("reached") or 0.0 for group in groups],
                [group.mean("score") or 0.0 for group in groups],
                yerr=[math.nan if (spread := group.deviation("score")) is None else spread for group in groups],
                color=line.colour,
                marker=line.marker,
                markersize=6.5,
                markeredgecolor="white",
                markeredgewidth=0.4,
                linestyle=line.dashes,
                linewidth=1.4,
                elinewidth=1.0,
                capsize=2.5,
                label=line.label,
            )


def _draw_teacher(ax: Axes, groups: Sequence[Group]) -> None:
    scores = [score for group in groups for score in group.values("teacher")]
    if scores and len({group.first.model for group in groups}) == 1:
        ax.axhline(statistics.fmean(scores), color=GREY, linestyle="-.", linewidth=1.2, label="teacher (mean)")


def _draw_published(ax: Axes, rows: Sequence[Published], methods: Sequence[str]) -> None:
    by_method: dict[str, list[Published]] = defaultdict(list)
    for row in rows:
        by_method[row.method].append(row)
    for method, own in by_method.items():
        ax.plot(
            [row.sparsity for row in own],
            [row.score for row in own],
            linestyle="none",
            marker=MARKERS[methods.index(method) % len(MARKERS)],
            markersize=5.5,
            markerfacecolor="none",
            markeredgecolor=GREY,
            markeredgewidth=0.9,
            zorder=3,
            label=method,
        )


def _dress(ax: Axes, panel: tuple[str, str]) -> None:
    ax.set_title(panel[0])
    ax.set_xlabel("sparsity reached (fraction of prunable weights)")
    ax.set_ylabel(panel[1].replace("_", " "))
    ax.grid(axis="y", color="#E5E5E5", linewidth=0.6)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.margins(x=0.06, y=0.08)


def _legend(figure: Figure, handles: Mapping[str, Artist], place: Any, n_columns: int, title: str = "") -> None:
    if handles:
        columns = 1 if max(map(len, handles)) > 60 else n_columns
        # A legend fills its columns from top to bottom; this order reads from left to right.
        names = [name for column in range(columns) for name in list(handles)[column::columns]]
        figure.legend([handles[name] for name in names], names, loc=place, ncols=columns, title=title)


def _families(groups: Sequence[Group]) -> list[list[Group]]:
    found: dict[str, list[Group]] = defaultdict(list)
    for group in groups:
        rest = {key: value for key, value in group.first.identity.items() if key not in _SWITCHES}
        found[content_key(rest)].append(group)
    families = [sorted(family, key=lambda group: _terms_order(group.first.terms)) for family in found.values()]
    return [family for family in families if len(family) > 1]


def _terms_order(terms: tuple[str, ...]) -> tuple[int, list[int]]:
    names = list(TERMS.values())
    return len(terms), [names.index(term) for term in terms]


def _draw_bars(ax: Axes, families: Sequence[Sequence[Group]], kinds: Sequence[tuple[str, ...]]) -> None:
    width = 0.8 / len(kinds)
    for number, (base, *others) in enumerate(families):
        for group in others:
            place = kinds.index(group.first.terms)
            mean, deviation = difference(group, base)
            is_paired = paired(group, base) is not None
            colour, hatch = _BARS[group.first.terms]
            ax.barh(
                number + (place - (len(kinds) - 1) / 2) * width,
                100 * mean,
                width,
                xerr=None if deviation is None else 100 * deviation,
                capsize=2,
                error_kw={"linewidth": 1.0},
                color=colour,
                hatch=hatch,
                edgecolor="white",
                linewidth=0.5,
                # No seed in common: the seeds' own differences are in it.
                alpha=1.0 if is_paired else 0.4,
                label=f"{group.first.contrast} minus {base.first.contrast}{'' if is_paired else ' (other seeds)'}",
            )
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(families)), [_family_name(family[0]) for family in families], fontsize=8)
    ax.invert_yaxis()


def difference(group: Group, base: Group) -> tuple[float, float | None]:
    """Compare the scores of two groups.

    Args:
        group: The one that is measured.
        base: The one that it is measured against.

    Returns:
        Mean and standard deviation of the differences between runs of the same seed; where no seed is in both, the
        difference of the means, and None.
    """
    found = paired(group, base)
    if found is None:
        return (group.mean("score") or 0.0) - (base.mean("score") or 0.0), None
    values = list(found.by_seed.values())
    return found.mean, statistics.stdev(values) if len(values) > 1 else None


def _family_name(group: Group) -> str:
    asked = "" if group.first.asked is None else f"{group.first.asked:g}"
    return ", ".join(words for words in (group.first.pruning, asked, group.note) if words)


__all__ = ["difference", "plot_ablation", "plot_score_against_sparsity"]
