"""What ``python -m cap.probe`` writes: scores of linear heads by model and task, as JSON, a table and a picture.

``probe.json`` is an object with these keys; scores are fractions, and nothing is ever NaN or infinite.

==================  ====================================================================================================
``key``             content key of everything that changes a score
``config``          the resolved configuration
``environment``     see ``cap.runs.environment``
``tasks``           by name: its first ``metric``; ``source``, ``fingerprint`` and ``n_rows`` of its rows; ``majority``,
                    the scores of always predicting the majority class, ``{metric: x}``
``rows``            one per model: ``role`` (``pretrained``, ``teacher``, ``run``), ``name``, ``trained_on`` (a task or
                    null), ``pruning``, ``contrast`` and ``sparsity`` (null for dense models), ``teacher`` (the name of
                    that row, or null), ``weights`` (content key), ``pooling``, ``max_length``, and ``scores`` by task
                    and metric, see ``cap.training.linear_head.summary``
``notes``           list of sentences that a reader of the table must know
==================  ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table
from rich.text import Text

from cap.base.errors import InputError
from cap.base.files import atomic_folder, ensure_writable, is_new_or_empty, read_json, real_folder, write_json
from cap.base.markdown import table
from cap.runs.style import BLUE, DPI, GREEN, GREY, ORANGE, PINK, SKY, STYLE, VERMILLION, WIDTH, save

_JSON, _TABLE, _PICTURE = "probe.json", "table.md", "probe.png"
_NONE = "\N{EN DASH}"

_PANELS_A_LINE = 3
_LONG_LABEL = 34  # from here on a legend has room for one column only
_COLOURS = {"pretrained": ("#C8C8C8",), "teacher": (GREY,), "run": (BLUE, ORANGE, GREEN, VERMILLION, SKY, PINK)}
_HATCHES = ("", "///", "...", "xxx")


def free_folder(output_dir: str | None, key: str) -> Path:
    """Name the folder that a comparison is written to.

    Args:
        output_dir: The one that was asked for; None takes one of the comparison's own.
        key: Of the comparison.

    Raises:
        InputError: If it holds something else, or cannot be written.
    """
    own = Path("outputs") / "probe" / key
    folder = own if output_dir is None else real_folder(Path(output_dir))
    require_free(folder, key)
    ensure_writable(folder.parent, "output_dir")
    return folder


def require_free(folder: Path, key: str) -> None:
    """Check that a folder is new, empty, or holds this very comparison.

    Raises:
        InputError: If it is a file or holds something else.
    """
    if is_new_or_empty(folder):
        return
    try:
        found = read_json(folder / _JSON)["key"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found != key:
        other = "another comparison" if found is not None else "something else"
        raise InputError(
            f"output_dir must be new, empty, or hold this comparison ({key}), got {folder} with {other}; "
            f"choose another output_dir"
        )


def write_probe(folder: Path, result: dict[str, Any]) -> None:
    """Write ``probe.json``, ``table.md`` and ``probe.png`` as one folder, whole or not at all.

    Args:
        folder: Replaced if it exists; see ``require_free``.
        result: What the module's description lists.
    """
    with atomic_folder(folder) as temporary:
        write_json(temporary / _JSON, result)
        (temporary / _TABLE).write_text(_page(result), encoding="utf-8")
        plot_probe(result, temporary / _PICTURE)


def console_table(result: dict[str, Any]) -> Table:
    """Build the table for the terminal, whose 80 columns hold one task below the other."""
    table = Table("model", "sparsity", "score", "gap", caption=_caption(result))
    for column in table.columns:
        column.no_wrap, column.overflow = column.header != "model", "fold"
    for name, task in result["tasks"].items():
        metric = task["metric"]
        table.add_section()
        table.add_row(Text(f"{name} {metric}", style="bold"))
        table.add_row("majority class", _NONE, f"{task['majority'][metric]:.4f}", _NONE)
        for row in result["rows"]:
            # Text and not str: square brackets in a folder's name are no markup.
            table.add_row(Text(row["name"]), _sparsity(row), *_score(row["scores"][name][metric]))
    return table


def plot_probe(result: dict[str, Any], path: Path) -> None:
    """Draw a panel per task with a bar per model, from the majority class's score to the model's mean.

    Args:
        result: What the module's description lists.
        path: The PNG to write.
    """
    n_columns = min(len(result["tasks"]), _PANELS_A_LINE)
    n_lines = -(-len(result["tasks"]) // n_columns)
    long = any(len(row["name"]) > _LONG_LABEL for row in result["rows"])
    n_legend_lines = (len(result["rows"]) + 2) // (1 if long else 2)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.5 + 2.4 * n_lines + 0.17 * n_legend_lines), dpi=DPI)
        panels = [figure.add_subplot(n_lines, n_columns, index + 1) for index in range(len(result["tasks"]))]
        for axes, task in zip(panels, result["tasks"], strict=True):
            _draw_task(axes, result, task)
        figure.supxlabel("bars start at the score of the majority class; error bars: standard error", fontsize=8)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=1 if long else 2)
        save(figure, path)


def _draw_task(axes: Axes, result: dict[str, Any], task: str) -> None:
    metric, majority = result["tasks"][task]["metric"], result["tasks"][task]["majority"]
    floor = majority[metric]
    n_seen: dict[str, int] = {}
    ends = [floor]
    for index, row in enumerate(result["rows"]):
        score, role = row["scores"][task][metric], row["role"]
        rank = n_seen[role] = n_seen.get(role, -1) + 1
        colours = _COLOURS[role]
        error = score["standard_error"]
        axes.bar(
            index,
            score["mean"] - floor,
            bottom=floor,
            width=0.82,
            yerr=error,
            capsize=2,
            error_kw={"linewidth": 1.0},
            color=colours[rank % len(colours)],
            hatch=_HATCHES[rank // len(colours) % len(_HATCHES)],
            edgecolor="black",
            linewidth=0.5,
            label=row["name"],
        )
        ends += [score["mean"] - (error or 0.0), score["mean"] + (error or 0.0)]
    axes.axhline(floor, color="black", linestyle=":", linewidth=1.4, label="majority class")
    margin = max(0.06 * (max(ends) - min(ends)), 0.005)
    axes.set_ylim(min(ends) - margin, max(ends) + margin)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.set_xticks([])
    axes.set_xlabel(f"majority {floor:.3f}")
    axes.set_title(task)
    axes.set_ylabel(metric)


def _cells(result: dict[str, Any]) -> list[list[str]]:
    tasks: Mapping[str, Any] = result["tasks"]
    header = ["model", "trained on", "pruning", "contrast", "sparsity"]
    majority = ["majority class", *[_NONE] * 4]
    for name, task in tasks.items():
        header += [f"{name} {task['metric']}", "gap"]
        majority += [f"{task['majority'][task['metric']]:.4f}", _NONE]
    rows = [header, majority]
    for row in result["rows"]:
        cells = [row["name"], *(row[key] or _NONE for key in ("trained_on", "pruning", "contrast"))]
        cells.append(_sparsity(row))
        for name, task in tasks.items():
            cells += _score(row["scores"][name][task["metric"]])
        rows.append(cells)
    return rows


def _sparsity(row: Mapping[str, Any]) -> str:
    return _NONE if row["sparsity"] is None else f"{row['sparsity']:.4f}"


def _score(score: Mapping[str, Any]) -> tuple[str, str]:
    error, gap = score["standard_error"], score["gap"]
    shown = f"{score['mean']:.4f} \N{PLUS-MINUS SIGN} {_NONE if error is None else format(error, '.4f')}"
    return shown, _NONE if gap is None else f"{gap:+.4f}"


def _caption(result: dict[str, Any]) -> str:
    config = result["config"]
    seeds = ", ".join(map(str, config["seeds"]))
    return (
        f"A linear head on frozen encodings, {config['epochs']} epochs; mean \N{PLUS-MINUS SIGN} standard error over "
        f"seeds {seeds} of the head, which says nothing about other validation rows; gap: mean minus that of the run's "
        f"dense teacher."
    )


def _page(result: dict[str, Any]) -> str:
    header, *rows = _cells(result)
    data = [
        f"{name}: {task['source']}, "
        + ", ".join(f"{split} {n_rows:,} rows" for split, n_rows in task["n_rows"].items())
        for name, task in result["tasks"].items()
    ]
    notes = [f"- {sentence}" for sentence in (*data, *result["notes"])]
    parts = [
        "# Linear probes",
        _caption(result),
        table(header, rows),
        "\n".join(notes),
        f"![Linear probes]({_PICTURE})",
    ]
    return "\n\n".join(parts) + "\n"


__all__ = ["console_table", "free_folder", "plot_probe", "require_free", "write_probe"]
