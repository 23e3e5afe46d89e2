"""Score against latency and size, for records that hold measured exports."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cap.reports.run import Run
from cap.reports.style import MARKERS, Line, grid, lines_of, panels_of
from cap.reports.tables import Group
from cap.runs.card import place_of
from cap.runs.reading import at, first_number, mapping, number
from cap.runs.style import GREY, STYLE, save

_BYTES_PER_MB = 1e6


class Machine(NamedTuple):
    """Name what a latency was measured on; those of two machines compare with nothing.

    Args:
        device: As the record names it; empty where it does not.
        threads: That torch computed with; None if unknown.
    """

    device: str
    threads: int | None

    @classmethod
    def of(cls, measured: object) -> Machine:
        """Read it from what was measured of an export."""
        device, threads = at(measured, "device"), at(measured, "threads")
        return cls(device if isinstance(device, str) else "", threads if isinstance(threads, int) else None)

    def __str__(self) -> str:
        return place_of(self.device, self.threads)


class Timing(NamedTuple):
    """Name a shape of batch, e.g. ``batch=1,tokens=32``, and what it was timed on."""

    setting: str
    machine: Machine

    def __str__(self) -> str:
        return "\n".join(part for part in (self.setting.replace(",", ", "), str(self.machine)) if part)


_Panel = tuple[str, str, Timing | None]  # task, metric, and what was timed, if anything


@dataclass(frozen=True)
class Export:
    """Hold what was measured of one export of a run.

    Args:
        format: The export's name, e.g. ``compact``.
        score: Its own where it was measured again, else that of the run.
        megabytes: On disk, in 10^6 bytes; None if unknown.
        latency_ms: Milliseconds by what was timed.
    """

    format: str
    score: float
    megabytes: float | None
    latency_ms: dict[Timing, float]


_Cost = Callable[[Export, Timing | None], float | None]


def read_exports(run: Run) -> list[Export]:
    """Read the exports of a run, ``{format: {"bytes", "latency_ms": {setting: x}, "scores": {metric: x}, ...}}``.

    Args:
        run: A completed run; older records have no key ``exports``.

    Returns:
        One for each format in which something was measured, and the dense model that they were measured beside.
    """
    exports, dense = [], []
    for name, measured in mapping(run.record.get("exports")).items():
        n_bytes, score = number(at(measured, "bytes")), number(at(measured, "scores", run.metric))
        latency = by_timing(measured, "latency_ms")
        score = run.score if score is None else score
        if score is not None and (n_bytes is not None or latency):
            megabytes = None if n_bytes is None else n_bytes / _BYTES_PER_MB
            exports.append(Export(name, score, megabytes, latency))
            dense.append(measured)
    return [*exports, *_dense(run, dense)]


def by_timing(measured: object, key: str) -> dict[Timing, float]:
    """Read numbers that were measured by shape of batch.

    Args:
        measured: What a record holds of an export.
        key: ``latency_ms``, ``dense_latency_ms`` or ``speed_up``.

    Returns:
        The numbers; what is none is left out.
    """
    machine = Machine.of(measured)
    found = mapping(at(measured, key)).items()
    return {Timing(setting, machine): value for setting, given in found if (value := number(given)) is not None}


def _dense(run: Run, measured: Sequence[object]) -> list[Export]:
    """Make one of the dense model that every export was measured beside; its zeros are those of the run."""
    times: dict[Timing, list[float]] = {}
    for one in measured:
        for timing, value in by_timing(one, "dense_latency_ms").items():
            times.setdefault(timing, []).append(value)
    latency = {timing: statistics.fmean(values) for timing, values in times.items()}
    n_bytes = first_number(*(at(one, "size", "dense_bytes") for one in measured))
    if run.score is None or (n_bytes is None and not latency):
        return []
    return [Export("dense, with zeros", run.score, None if n_bytes is None else n_bytes / _BYTES_PER_MB, latency)]


def plot_score_against_latency(groups: Sequence[Group], path: Path) -> Path | None:
    """Draw the score of every export against the time of a batch, a panel for each task, shape of batch and machine.

    Args:
        groups: What was measured.
        path: The PNG to write.

    Returns:
        ``path``, or None if no record holds a latency.
    """
    timed = list(
        dict.fromkeys(
            timing
            for group in groups
            for run in group.runs
            for export in read_exports(run)
            for timing in export.latency_ms
        )
    )
    return _plot(groups, timed, _milliseconds, "milliseconds a batch", path)


def plot_score_against_bytes(groups: Sequence[Group], path: Path) -> Path | None:
    """Draw the score of every export against its size on disk, a panel for each task.

    Args:
        groups: What was measured.
        path: The PNG to write.

    Returns:
        ``path``, or None if no record holds a size.
    """
    return _plot(groups, [None], lambda export, _: export.megabytes, "megabytes on disk (10⁶ bytes)", path)


def _milliseconds(export: Export, timing: Timing | None) -> float | None:
    return None if timing is None else export.latency_ms.get(timing)


def _plot(groups: Sequence[Group], timed: Sequence[Timing | None], cost: _Cost, label: str, path: Path) -> Path | None:
    lines = lines_of(groups)
    points: dict[_Panel, list[tuple[Line, str, float, float]]] = {}
    for task, metric in panels_of(groups):
        for timing in timed:
            found = [point for line in lines for point in _points(line, (task, metric), timing, cost)]
            if found:
                points[task, metric, timing] = found
    if not points:
        return None
    formats = sorted({name for found in points.values() for _, name, _, _ in found})
    drawn = [line for line in lines if any(point[0] is line for found in points.values() for point in found)]
    with mpl.rc_context(STYLE):
        figure, axes = grid(len(points), panel_height=2.7, n_legend_lines=len(drawn) // 2 + len(formats) // 4 + 3)
        for panel, ax in zip(points, axes, strict=True):
            _draw(ax, panel, points[panel], formats)
            ax.set_xlabel(label)
        marks = [
            Line2D([], [], linestyle="none", marker=MARKERS[i], color=GREY, label=name)
            for i, name in enumerate(formats)
        ]
        figure.legend(handles=marks, loc="outside upper center", ncols=4)
        strokes = [Line2D([], [], color=line.colour, linestyle=line.dashes, label=line.label) for line in drawn]
        n_columns = 1 if max(len(line.label) for line in drawn) > 60 else 2
        figure.legend(handles=strokes, loc="outside lower center", ncols=n_columns)
        return save(figure, path)


def _points(
    line: Line, panel: tuple[str, str], timing: Timing | None, cost: _Cost
) -> list[tuple[Line, str, float, float]]:
    points = []
    for group in line.within(panel):
        by_format: dict[str, list[tuple[float, float]]] = {}
        for run in group.runs:
            for export in read_exports(run):
                value = cost(export, timing)
                if value is not None:
                    by_format.setdefault(export.format, []).append((value, export.score))
        for name, found in by_format.items():
            values, scores = zip(*found, strict=True)
            points.append((line, name, statistics.fmean(values), statistics.fmean(scores)))
    return points


def _draw(ax: Axes, panel: _Panel, points: Sequence[tuple[Line, str, float, float]], formats: Sequence[str]) -> None:
    task, metric, timing = panel
    for line in dict.fromkeys(line for line, *_ in points):
        for name in formats:
            own = [(cost, score) for other, made, cost, score in points if other is line and made == name]
            if own:
                costs, scores = zip(*own, strict=True)
                marker = MARKERS[formats.index(name) % len(MARKERS)]
                ax.plot(
                    costs, scores, color=line.colour, marker=marker, linestyle=line.dashes, markersize=5, linewidth=1
                )
    ax.set_title(task if timing is None else f"{task}, {timing}")
    ax.set_ylabel(metric.replace("_", " "))
    ax.set_xlim(left=0.0)  # so that half the cost looks like half
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.grid(color="#E5E5E5", linewidth=0.6)


__all__ = [
    "Export",
    "Machine",
    "Timing",
    "by_timing",
    "plot_score_against_bytes",
    "plot_score_against_latency",
    "read_exports",
]
