"""What the pictures of a report share: lines, and the colour and marker that each keeps in all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cap.base.files import content_key
from cap.reports.run import Run
from cap.reports.tables import Group, distinguish
from cap.runs.reading import at
from cap.runs.style import COLOURS, DPI, WIDTH

WIDTHS = {1: WIDTH, 2: 8.0}
"""Inches, by the number of columns."""
# The second way to tell lines apart, after their colours; in the order of how little they resemble each other.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", "*", ">", "h")

# A line runs over sparsities, so these may differ along it; the schedule's levels set the epochs.
_ALONG_A_LINE = {"sparsity", "schedule.levels", "pruning.regularizer_weight"}


@dataclass(frozen=True, eq=False)
class Line:
    """Hold configurations that differ in their sparsity only.

    Args:
        label: Pruning type, contrast, and what else tells it from other lines.
        groups: By sparsity, of any number of tasks.
        colour: One for each pruning type.
        marker: One for each line.
        dashes: Solid with all terms of contrast, dashed without any, dotted with some.
    """

    label: str
    groups: tuple[Group, ...]
    colour: str
    marker: str
    dashes: Literal["-", "--", ":"]

    def within(self, panel: tuple[str, str]) -> list[Group]:
        """Return the groups of one task and metric."""
        return [group for group in self.groups if panel_of(group) == panel]


def panel_of(group: Group) -> tuple[str, str]:
    """Say what a group's score can be compared within: the task and the metric."""
    return group.first.task, group.first.metric


def panels_of(groups: Iterable[Group]) -> list[tuple[str, str]]:
    """List tasks and metrics, each once, in alphabetical order."""
    return sorted({panel_of(group) for group in groups})


def lines_of(groups: Sequence[Group]) -> list[Line]:
    """Put groups that differ in task and sparsity only on one line, and give every line its looks."""
    has_models = len({group.first.model for group in groups}) > 1
    rows = _rows_of(groups)
    by_label: dict[str, dict[str, list[Group]]] = defaultdict(lambda: defaultdict(list))
    for group in groups:
        run = group.first
        words = [run.model] if has_models else []
        words += [run.pruning, "no contrast" if not run.terms else f"contrast {run.contrast}"]
        words += ["smoke"] if run.is_smoke else []
        by_label[", ".join(words)][content_key(_line_settings(run, rows))].append(group)
    prunings = sorted({group.first.pruning for group in groups})
    lines: list[Line] = []
    for label, variants in sorted(by_label.items()):
        differences = distinguish([_line_settings(members[0].first, rows) for members in variants.values()])
        for members, difference in zip(variants.values(), differences, strict=True):
            run = members[0].first
            lines.append(
                Line(
                    label=f"{label} ({difference})" if difference else label,
                    groups=tuple(sorted(members, key=lambda group: group.mean("reached") or 0.0)),
                    colour=COLOURS[prunings.index(run.pruning) % len(COLOURS)],
                    marker=MARKERS[len(lines) % len(MARKERS)],
                    dashes="-" if run.contrast == "all three" else "--" if not run.terms else ":",
                )
            )
    return lines


def grid(n_panels: int, *, panel_height: float, n_legend_lines: int) -> tuple[Figure, list[Axes]]:
    """Make a figure of panels in one or two columns, with room for legends above and below."""
    n_columns = min(n_panels, 2)
    n_rows = -(-n_panels // n_columns)
    height = 0.6 + panel_height * n_rows + 0.19 * n_legend_lines
    figure = Figure(figsize=(WIDTHS[n_columns], height), dpi=DPI)
    return figure, [figure.add_subplot(n_rows, n_columns, index + 1) for index in range(n_panels)]


def legend_handles(panels: Iterable[Axes]) -> dict[str, Artist]:
    """Collect what the panels' legends would show, each label once, lines with error bars first."""
    bars: dict[str, Artist] = {}
    others: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if isinstance(handle, Artist):
                others.setdefault(str(label), handle)
            else:  # error bars come as a container of artists
                bars.setdefault(str(label), handle[0])
    return bars | others


def _rows_of(groups: Iterable[Group]) -> dict[tuple[str, str], str]:
    """Name the rows of runs by task and fingerprint, where those of one task were not all the same."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for group in groups:
        run = group.first
        found[run.task][_fingerprint(run)] = str(at(run.record, "data", "source") or "others")
    return {
        (task, fingerprint): name if [*names.values()].count(name) == 1 else f"{name} {fingerprint[:8]}"
        for task, names in found.items()
        if len(names) > 1
        for fingerprint, name in names.items()
    }


def _fingerprint(run: Run) -> str:
    return str(at(run.record, "data", "fingerprint") or "")


def _line_settings(run: Run, rows: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    # Tasks bring their own length, and each has its own data: lines of one label look alike in all panels.
    left_out = _ALONG_A_LINE | {key for key in run.settings if key == "task" or key.startswith("task.")}
    left_out |= {"data_dir", "max_length"}
    if "schedule.epochs_per_level" in run.settings:
        left_out.add("trainer.max_epochs")
    settings = {key: value for key, value in run.settings.items() if key not in left_out}
    name = rows.get((run.task, _fingerprint(run)))
    return settings if name is None else {"data": name, **settings}


__all__ = ["MARKERS", "Line", "grid", "legend_handles", "lines_of", "panel_of", "panels_of"]
