"""The table of a report: a row per configuration, over its seeds, as markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cap.base.files import content_key
from cap.base.markdown import table
from cap.reports.run import Run
from cap.runs.reading import number

NONE = "\N{EN DASH}"
_MAX_DIFFERENCES = 3


@dataclass(frozen=True)
class Column:
    """Describe a column.

    Args:
        key: The attribute of a run or a group.
        title: What stands in the table's head.
        digits: Behind the decimal point of a number that every run has; None for what is the same for all runs.
    """

    key: str
    title: str
    digits: int | None = None


COLUMNS = (
    Column("task", "task"),
    Column("model", "model"),
    Column("pruning", "pruning"),
    Column("contrast", "contrast"),
    Column("asked", "sparsity asked"),
    Column("reached", "sparsity reached", 4),
    Column("metric", "metric"),
    Column("teacher", "teacher", 3),
    Column("score", "pruned", 3),
    Column("best", "best", 3),
    Column("retention", "retention", 3),
    Column("above_majority", "above majority", 3),
    Column("path_after_target", "P", 4),
    Column("seconds_per_step", "s/step", 2),
    Column("minutes_per_epoch", "min/epoch", 1),
    Column("seeds", "seeds"),
    Column("note", "note"),
)
CAPTION = (
    "Mean \N{PLUS-MINUS SIGN} sample standard deviation over seeds, where there are several. Sparsity is the fraction "
    "of prunable weights that are zero; retention is pruned / teacher, and above majority counts both from the "
    "majority class. Pruned is the score of the model that was saved, the last; best is the highest validation at the "
    "final sparsity, chosen on the very rows it is scored on. P is the sum of the learning rate over the steps after "
    "the final sparsity; min/epoch holds training, validation, importance and snapshots."
)


@dataclass(frozen=True, eq=False)
class Group:
    """Hold the runs that differ in their seed only.

    Args:
        runs: At least one, by seed.
        note: What a reader of the row must know.
    """

    runs: tuple[Run, ...]
    note: str = ""

    @property
    def first(self) -> Run:
        """The run that speaks for what all have in common."""
        return self.runs[0]

    @property
    def seeds(self) -> int:
        """How many runs there are."""
        return len(self.runs)

    def values(self, key: str) -> list[float]:
        """Return a number of every run; empty unless all have it, since a mean over some would mislead."""
        found = [value for run in self.runs if (value := number(getattr(run, key))) is not None]
        return found if len(found) == len(self.runs) else []

    def mean(self, key: str) -> float | None:
        """Average a number over the runs; None where one of them lacks it."""
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def deviation(self, key: str) -> float | None:
        """Return the sample standard deviation; None for a single run."""
        values = self.values(key)
        return statistics.stdev(values) if len(values) > 1 else None


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Put runs that differ in their seed only into one group.

    Args:
        runs: Completed runs, each once.

    Returns:
        Groups by task, model, pruning type, sparsity and contrast. Rows that would look alike say in their note which
        settings differ.
    """
    found: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[content_key(run.identity)].append(run)
    # What else tells a group from others, by its first run: most of them nothing.
    beside: dict[Run, dict[str, Any]] = {}
    groups = []
    for alike in found.values():
        parts = _by_weights(alike)
        for part in parts:
            group = sorted(part, key=lambda run: (run.seed is None, run.seed or 0, run.shown))
            beside[group[0]] = {"weights": content_key(group[0].weights)[:8]} if len(parts) > 1 else {}
            groups.append(group)
    groups.sort(key=lambda group: (*map(str, _visible(group[0])[:3]), group[0].asked or 0.0, group[0].contrast))
    looks: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for group in groups:
        looks[_visible(group[0])].append(group[0])
    names: dict[Run, str] = {}
    for firsts in looks.values():
        names |= zip(firsts, distinguish([{**run.identity, **beside[run]} for run in firsts]), strict=True)
    return [Group(tuple(group), _note(group[0], names[group[0]])) for group in groups]


def _by_weights(runs: Sequence[Run]) -> list[list[Run]]:
    """Part runs of one configuration whose model had other weights, under the same name; old records do not tell."""
    if len({content_key(run.weights) for run in runs if run.weights}) < 2:
        return [[*runs]]
    parts: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        parts[content_key(run.weights)].append(run)
    return [*parts.values()]


def distinguish(alike: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name what tells each of several configurations from the others, as ``key=value``.

    Values that more of them have than any other one are usual, and are not named: where nearly all differ from one in a
    single key, that one has an empty name. Of many keys the rarest values are named, a few, or as many as no other has
    together; dots stand for the rest.

    Args:
        alike: The settings of each, no two the same.

    Returns:
        A name each, no two the same.
    """
    keys = dict.fromkeys(key for settings in alike for key in settings)
    values = {key: Counter(repr(settings.get(key)) for settings in alike) for key in keys}
    unusual: list[dict[str, int]] = []
    for settings in alike:
        counts = {key: values[key][repr(settings.get(key))] for key in keys if len(values[key]) > 1}
        unusual.append({key: count for key, count in counts.items() if not _is_usual(count, values[key])})
    names = []
    for settings, own in zip(alike, unusual, strict=True):
        by_rarity = sorted(own, key=lambda key: own[key])
        others = [other for other in alike if other is not settings]
        named = by_rarity[:_MAX_DIFFERENCES]
        while len(named) < len(own) and any(_shares(settings, other, named) for other in others):
            named = by_rarity[: len(named) + 1]
        words = [f"{key}={settings.get(key)}" for key in own if key in named]
        names.append(", ".join([*words, "..."] if len(named) < len(own) else words))
    return names


def _is_usual(count: int, counts: Counter[str]) -> bool:
    """Say whether a value that so many have is the one that most have, alone."""
    (_, most), (_, second) = counts.most_common(2)
    return count == most > second


def _shares(settings: Mapping[str, Any], other: Mapping[str, Any], keys: Iterable[str]) -> bool:
    return all(settings.get(key) == other.get(key) for key in keys)


def cells(group: Group, columns: Sequence[Column] = COLUMNS) -> list[str]:
    """Write a row; a dash stands for what has no value."""
    return [_cell(group, column) for column in columns]


def commands(groups: Iterable[Group]) -> list[tuple[str, str]]:
    """List what was typed, once a configuration: its name in words, and the command of its first seed."""
    found = []
    for group in groups:
        run = group.first
        words = [
            run.task,
            run.model,
            run.pruning,
            f"contrast {run.contrast}",
            "" if run.asked is None else f"{run.asked:g}",
        ]
        command = run.record.get("command")
        if isinstance(command, str):
            found.append((", ".join(filter(None, [*words, group.note])), command))
    return found


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in markdown, its cells escaped."""
    return table([*map(escape_markdown, header)], ([*map(escape_markdown, row)] for row in rows))


def csv_text(groups: Iterable[Group]) -> str:
    """Write the rows with all digits: mean and standard deviation apart, the seeds by name, the records' paths."""
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    names = [name for c in COLUMNS for name in ([c.key] if c.digits is None else [c.key, f"{c.key}_std"])]
    writer.writerow([*names, "seed_list", "records"])
    for group in groups:
        row: list[Any] = []
        for column in COLUMNS:
            row += [_text(group, column.key)] if column.digits is None else _mean_and_deviation(group, column.key)
        seeds = " ".join(str(run.seed) for run in group.runs if run.seed is not None)
        writer.writerow([*row, seeds, " ".join(run.shown for run in group.runs)])
    return lines.getvalue()


def latex(groups: Iterable[Group]) -> str:
    r"""Write the rows as a ``tabular`` that a paper takes with ``\input``."""
    layout = "".join("l" if column.digits is None else "r" for column in COLUMNS)
    rows = [[column.title for column in COLUMNS], *map(cells, groups)]
    head, *body = (f"{' & '.join(map(escape_latex, row))} \\\\" for row in rows)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            f"\\begin{{tabular}}{{{layout}}}",
            "\\toprule",
            head,
            "\\midrule",
            *body,
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    )


def escape_markdown(text: str) -> str:
    """Keep a text from ending its cell or becoming markup; underscores within words are none."""
    text = re.sub(r"([\\`*|\[\]])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text).replace("<", "&lt;")


_LATEX = {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "\N{PLUS-MINUS SIGN}": "$\\pm$",
    NONE: "--",
} | {sign: f"\\{sign}" for sign in "&%$#_{}"}


def escape_latex(text: str) -> str:
    """Write a text so that LaTeX prints it as it is."""
    return "".join(_LATEX.get(sign, sign) for sign in " ".join(text.split()))


def _visible(run: Run) -> tuple[str, str, str, str, float | None]:
    return run.task, run.model, run.pruning, run.contrast, run.asked


def _note(run: Run, name: str) -> str:
    rows, held_out = (run.settings.get(f"data.{key}") for key in ("max_eval_rows", "held_out_rows"))
    parts = [
        "smoke" if run.is_smoke else "",
        f"scored on the first {rows} rows" if rows is not None and held_out is None else "",
        f"scored on {min(held_out, rows or held_out)} training rows held out" if held_out is not None else "",
        name,
    ]
    return "; ".join(part for part in parts if part)


def _cell(group: Group, column: Column) -> str:
    if column.digits is None:
        return _text(group, column.key) or ("" if column.key == "note" else NONE)
    mean, deviation = group.mean(column.key), group.deviation(column.key)
    if mean is None:
        return NONE
    spread = "" if deviation is None else f" \N{PLUS-MINUS SIGN} {deviation:.{column.digits}f}"
    return f"{mean:.{column.digits}f}{spread}"


def _text(group: Group, key: str) -> str:
    value = getattr(group if key in ("seeds", "note") else group.first, key)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _mean_and_deviation(group: Group, key: str) -> list[Any]:
    return ["" if value is None else value for value in (group.mean(key), group.deviation(key))]


__all__ = [
    "CAPTION",
    "COLUMNS",
    "NONE",
    "Column",
    "Group",
    "cells",
    "commands",
    "csv_text",
    "distinguish",
    "escape_latex",
    "escape_markdown",
    "group_runs",
    "latex",
    "markdown",
]
