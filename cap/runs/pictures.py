"""The pictures of a run: each function takes data and a path, and writes one PNG.

Pictures are made to be read at 800 pixels of page width and by colour-blind readers. A series that was not logged is
left out; with nothing to draw no file is written and None comes back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from cap.runs.history import History, Series
from cap.runs.style import BLUE, DPI, GREEN, GREY, ORANGE, STYLE, VERMILLION, WIDTH, save

_METRIC_LABELS = {
    "accuracy": "accuracy (fraction)",
    "f1": "F1 (fraction)",
    "exact_match": "exact match (fraction)",
    "matthews": "Matthews correlation (-1 to 1)",
    "pearson": "Pearson correlation (-1 to 1)",
    "spearman": "Spearman correlation (-1 to 1)",
}
_LOSS_TITLES = {
    "loss/total": "total",
    "loss/ce": "task (CE)",
    "loss/kd": "distillation (KD)",
    "loss/snapshot_kd": "distillation: last snapshot",
    "loss/hidden": "hidden states (no unit)",
    "loss/prc": "contrast: pre-trained (PrC)",
    "loss/snc": "contrast: snapshots (SnC)",
    "loss/fic": "contrast: fine-tuned (FiC)",
    "loss/scores": "score regularizer (no unit)",
}
_MANY_POINTS = 40  # from here on markers would merge, and a running mean has something to smooth
_SMOOTHED_PART = 40  # the running mean spans one part in forty of the points
_SPIKE = 20.0  # a term whose peak is this many times its median is drawn on a log axis
_MIN_SCORE_SPAN = 0.02
_MIN_COLOUR_SPAN = 0.1


def plot_score_and_sparsity(
    history: History,
    *,
    metric: str,
    teacher: float | None,
    majority: float | None,
    path: Path,
    share: float = 1.0,
    final: tuple[int, float] | None = None,
) -> Path | None:
    """Draw the student's score over the run, with the sparsity that it had at the time.

    Args:
        history: Curves of the run; ``val/<metric>``, ``pruning/sparsity`` and ``pruning/target`` are drawn.
        metric: The score's name, e.g. ``accuracy``.
        teacher: The teacher's score, drawn as a level.
        majority: The majority class's score, drawn as a level.
        path: The PNG to write.
        share: Fraction of the validation rows that the curve is of; the levels are of all.
        final: Last step, and the saved model's score on all rows; drawn where the curve is of fewer.

    Returns:
        ``path``, or None if the history has none of the three.
    """
    score = history.get(f"val/{metric}")
    target, sparsity = history.get("pruning/target"), history.get("pruning/sparsity")
    drawn = [series for series in (score, target, sparsity) if series is not None]
    if not drawn:
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.3), dpi=DPI)
        axes = figure.add_subplot()
        label = _METRIC_LABELS.get(metric, metric.replace("_", " "))
        _draw_score(axes, score, teacher, majority, label, share=share, final=final if share < 1 else None)
        _draw_sparsity(axes, target, sparsity)
        _step_axis(axes, drawn, n_intervals=5)
        axes.set_xlabel("optimizer step")
        _legend_once(figure)
        return save(figure, path)


def plot_layer_sparsity(matrices: Mapping[str, Sequence[int]], path: Path, *, kinds: Mapping[str, str]) -> Path | None:
    """Draw the sparsity of every prunable matrix, a row per layer and a column per kind of matrix.

    Args:
        matrices: ``[n_pruned, n]`` by name, layer by layer; columns stand in the order in which their kinds come first.
        path: The PNG to write.
        kinds: What each matrix is, by the same names; one that is not in here is called by the end of its name.

    Returns:
        ``path``, or None if there are no matrices.
    """
    table, layers, columns = _sparsity_table(matrices, kinds)
    if not np.isfinite(table).any():
        return None
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.1 + 0.3 * max(len(layers), 3)), dpi=DPI)
        axes = figure.add_subplot()
        low, high = _colour_range(float(np.nanmin(table)), float(np.nanmax(table)))
        shades = axes.pcolormesh(
            np.ma.masked_invalid(table), cmap="cividis", vmin=low, vmax=high, edgecolors="white", linewidth=1.0
        )
        _write_cells(axes, table, low, high)
        axes.set_xticks(np.arange(len(columns)) + 0.5, [kind.replace(" output", "\noutput") for kind in columns])
        axes.set_yticks(np.arange(len(layers)) + 0.5, [str(layer) for layer in layers])
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_ylabel("encoder layer")
        bar = figure.colorbar(shades, ax=axes, pad=0.02, fraction=0.05, aspect=max(12, 2 * len(layers)))
        bar.set_label("sparsity\n(fraction of weights)")
        bar.locator = MaxNLocator(nbins=5)
        bar.update_ticks()
        return save(figure, path)


def plot_losses(history: History, path: Path) -> Path | None:
    """Draw every logged loss term in a panel of its own, since their sizes differ by orders of magnitude.

    Args:
        history: Curves of the run; those named ``loss/...`` are drawn.
        path: The PNG to write.

    Returns:
        ``path``, or None if no loss was logged.
    """
    names = [name for name in _LOSS_TITLES if name in history.series]
    names += sorted(name for name in history.series if name.startswith("loss/") and name not in _LOSS_TITLES)
    if not names:
        return None
    n_columns = min(len(names), 2)
    n_rows = -(-len(names) // n_columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + 1.25 * max(n_rows, 1.6)), dpi=DPI)
        first: Axes | None = None
        for index, name in enumerate(names):
            axes = figure.add_subplot(n_rows, n_columns, index + 1, sharex=first)
            first = first or axes
            _draw_loss(axes, history.series[name])
            axes.set_title(_LOSS_TITLES.get(name, name.removeprefix("loss/").replace("_", " ")))
            # The lowest panel of a column carries the numbers; with an odd count that is not the lowest row.
            axes.tick_params(labelbottom=index + n_columns >= len(names))
        if first is not None:
            _step_axis(first, [history.series[name] for name in names], n_intervals=3 if n_columns > 1 else 5)
        figure.supxlabel("optimizer step", fontsize=9)
        figure.supylabel("loss (nats)", fontsize=9)
        _legend_once(figure)
        return save(figure, path)


def _draw_score(
    axes: Axes,
    score: Series | None,
    teacher: float | None,
    majority: float | None,
    label: str,
    *,
    share: float,
    final: tuple[int, float] | None,
) -> None:
    levels = []
    if score is not None:
        marker = "o" if len(score) <= _MANY_POINTS else None
        name = "student" if share == 1 else f"student, {share:.0%} of the rows"
        axes.plot(score.steps, score.values, color=BLUE, marker=marker, markersize=4, linewidth=1.6, label=name)
        levels += [float(score.values.min()), float(score.values.max())]
    if final is not None:
        axes.plot(*final, color=BLUE, marker="D", markersize=6, linestyle="", label=f"saved model ({final[1]:.3f})")
        levels.append(final[1])
    if teacher is not None:
        axes.axhline(teacher, color=GREEN, linestyle="-.", linewidth=1.4, label=f"teacher ({teacher:.3f})")
        levels.append(teacher)
    if majority is not None:
        axes.axhline(majority, color=GREY, linestyle=":", linewidth=1.6, label=f"majority class ({majority:.3f})")
        levels.append(majority)
    if not levels:
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        return
    middle, span = (min(levels) + max(levels)) / 2, max(max(levels) - min(levels), _MIN_SCORE_SPAN)
    axes.set_ylim(middle - 0.58 * span, middle + 0.58 * span)
    axes.set_ylabel(label)


def _draw_sparsity(axes: Axes, target: Series | None, reached: Series | None) -> None:
    if target is None and reached is None:
        return
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    # Masks stand still between two updates, hence steps and not slopes. The target is wide, so that it is seen behind.
    if target is not None:
        right.plot(
            target.steps,
            target.values,
            color=ORANGE,
            linestyle=(0, (2, 1)),
            linewidth=3.2,
            alpha=0.75,
            drawstyle="steps-post",
            label="sparsity, target",
        )
    if reached is not None:
        marker = "s" if len(reached) == 1 else None
        right.plot(
            reached.steps,
            reached.values,
            color=VERMILLION,
            marker=marker,
            markersize=4,
            linewidth=1.2,
            drawstyle="steps-post",
            label="sparsity, reached",
        )
    right.set_ylim(-0.03, 1.03)
    right.set_ylabel("sparsity (fraction of\nprunable weights)", color=VERMILLION)
    # The score is what the picture is about: its axes lie above, transparent.
    axes.set_zorder(right.get_zorder() + 1)
    axes.patch.set_visible(False)


def _draw_loss(axes: Axes, series: Series) -> None:
    is_long = len(series) >= _MANY_POINTS
    if is_long:
        axes.plot(series.steps, series.values, color=BLUE, linewidth=0.5, alpha=0.35, label="as logged")
        axes.plot(series.steps, _running_mean(series.values), color=BLUE, linewidth=1.5, label="running mean")
    else:
        axes.plot(series.steps, series.values, color=BLUE, marker="o", markersize=3, linewidth=1.2)
    if series.values.min() > 0 and series.values.max() > _SPIKE * float(np.median(series.values)):
        axes.set_yscale("log")
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))


def _running_mean(values: np.ndarray) -> np.ndarray:
    half = max(1, len(values) // (2 * _SMOOTHED_PART))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    start = np.maximum(np.arange(len(values)) - half, 0)
    stop = np.minimum(np.arange(len(values)) + half + 1, len(values))
    return np.asarray((sums[stop] - sums[start]) / (stop - start))


def _step_axis(axes: Axes, drawn: Sequence[Series], *, n_intervals: int) -> None:
    last = max(int(series.steps[-1]) for series in drawn)
    margin = max(0.02 * last, 0.5)
    axes.set_xlim(-margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=n_intervals, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _legend_once(figure: Figure) -> None:
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if isinstance(handle, Artist):
                handles.setdefault(str(label), handle)
    if handles:
        # A legend fills its columns from top to bottom; this order reads from left to right.
        names = [name for column in range(3) for name in list(handles)[column::3]]
        figure.legend([handles[name] for name in names], names, loc="outside upper center", ncols=3)


def _sparsity_table(
    matrices: Mapping[str, Sequence[int]], kinds: Mapping[str, str]
) -> tuple[np.ndarray, list[int], list[str]]:
    counts: dict[tuple[int, str], np.ndarray] = {}
    for name, (n_pruned, n_weights) in matrices.items():
        layer, own_name = _layer_and_name(name)
        cell = layer, kinds.get(name) or own_name
        counts[cell] = counts.get(cell, np.zeros(2)) + np.array([n_pruned, n_weights])
    layers = sorted({layer for layer, _ in counts})
    columns = list(dict.fromkeys(kind for _, kind in counts))
    table = np.full((len(layers), len(columns)), np.nan)
    for (layer, kind), (n_pruned, n_weights) in counts.items():
        if n_weights > 0:
            table[layers.index(layer), columns.index(kind)] = n_pruned / n_weights
    return table, layers, columns


def _layer_and_name(name: str) -> tuple[int, str]:
    numbered = re.match(r"(?:.*\.)?(\d+)\.(.+)$", name)
    layer, inside = (int(numbered[1]), numbered[2]) if numbered else (0, name)
    return layer, " ".join(inside.split(".")[-2:]).replace("_", " ")


def _colour_range(low: float, high: float) -> tuple[float, float]:
    # Matrices that are (nearly) equal must look equal: the colours span at least a tenth.
    if high - low >= _MIN_COLOUR_SPAN:
        return low, high
    start = min(max((low + high - _MIN_COLOUR_SPAN) / 2, 0.0), 1.0 - _MIN_COLOUR_SPAN)
    return start, start + _MIN_COLOUR_SPAN


def _write_cells(axes: Axes, table: np.ndarray, low: float, high: float) -> None:
    # Two digits, unless they would show a matrix as empty that is not.
    digits = 3 if ((table >= 0.995) & (table < 1)).any() else 2
    for row, column in np.ndindex(*table.shape):
        value = table[row, column]
        text = f"{value:.{digits}f}" if np.isfinite(value) else "\N{EN DASH}"
        is_dark = np.isfinite(value) and value < low + 0.45 * (high - low)
        axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color="white" if is_dark else "black")


__all__ = ["plot_layer_sparsity", "plot_losses", "plot_score_and_sparsity"]
