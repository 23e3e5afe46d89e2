"""The table of exports: how large and how fast each is, and how far from the run's own logits."""

from __future__ import annotations

from collections.abc import Iterable

from cap.reports.costs import Machine, by_timing
from cap.reports.run import Run
from cap.reports.tables import NONE
from cap.runs.reading import at, mapping, number

_TIMES = "\N{MULTIPLICATION SIGN}"
_SHAPES = {f"32 {_TIMES} 128": "batch=32,tokens=128", f"1 {_TIMES} 32": "batch=1,tokens=32"}
EXPORT_HEADER = (
    *("task", "pruning", "contrast", "sparsity", "seed", "format", "MB", "prunable parameters"),
    *(f"speed-up, {shape}" for shape in _SHAPES),
    *("timed on", "largest difference"),
)
EXPORT_CAPTION = (
    f"Of each export: 10⁶ bytes of weights on disk; times the dense model's speed (rows {_TIMES} tokens of a batch, "
    f"median of paired calls); the largest difference between its logits and the run's."
)


def export_rows(runs: Iterable[Run]) -> list[list[str]]:
    """Write a row for each export of each run.

    Args:
        runs: Completed runs; those without exports have no row.

    Returns:
        Cells in the order of ``EXPORT_HEADER``; a dash stands for what was not measured.
    """
    return [
        _row(run, name, measured)
        for run in runs
        for name, measured in mapping(run.record.get("exports")).items()
        if mapping(measured)
    ]


def _row(run: Run, name: str, measured: object) -> list[str]:
    speed_up = {timing.setting: value for timing, value in by_timing(measured, "speed_up").items()}
    n_bytes = number(at(measured, "bytes"))
    return [
        *(run.task, run.pruning, run.contrast, _cell(run.reached, "{:.4f}"), _cell(run.seed, "{}")),
        name,
        _cell(None if n_bytes is None else n_bytes / 1e6, "{:.1f}"),
        _cell(number(at(measured, "size", "prunable_parameters")), "{:,.0f}"),
        *(_cell(speed_up.get(setting), "{:.2f}") for setting in _SHAPES.values()),
        (str(Machine.of(measured)) or NONE) if speed_up else NONE,
        _cell(number(at(measured, "check", "largest_difference")), "{:.2g}"),
    ]


def _cell(value: float | int | None, layout: str) -> str:
    return NONE if value is None else layout.format(value)


__all__ = ["EXPORT_CAPTION", "EXPORT_HEADER", "export_rows"]
