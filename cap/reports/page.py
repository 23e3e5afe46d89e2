"""The page of a report: one file that needs no other, and no network."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any
from urllib.parse import quote

from cap.reports.collect import Collection
from cap.reports.differences import COMPARISON_CAPTION, COMPARISON_HEADER, comparison_rows
from cap.reports.published import Published
from cap.reports.run import Run
from cap.reports.style import MARKERS, lines_of, panels_of
from cap.reports.tables import CAPTION, COLUMNS, Column, Group, cells, commands

_FILTERS = ("task", "pruning", "contrast")
_REPORT = "report.md"


def build_page(
    *,
    title: str,
    groups: Sequence[Group],
    collection: Collection,
    published: Sequence[Published],
    pictures: Mapping[str, tuple[str, Path | None]],
    folder: Path,
) -> str:
    """Make the page.

    Args:
        title: Its heading.
        groups: The table's rows.
        collection: What was read, for all that is in no row.
        published: Scores of others on the same tasks.
        pictures: By title: the caption, and the PNG; where that is None, the caption says why.
        folder: Where the page will lie; links to runs start there.

    Returns:
        HTML with everything inside: styles, script, data, pictures.
    """
    parts = {
        "title": escape(title),
        "summary": escape(summary(groups, collection)),
        "caption": escape(CAPTION),
        "differences": _differences(groups),
        "head": "".join(f'<th scope="col"><button type="button">{escape(c.title)}</button></th>' for c in COLUMNS),
        "rows": "\n".join(_row(index, group, folder) for index, group in enumerate(groups)),
        "pictures": "\n".join(_picture(name, *picture) for name, picture in pictures.items()),
        "published": _published(published),
        "left_out": _table(
            ("run", "reason"),
            ([_link(left.path, left.shown, folder), escape(left.reason)] for left in collection.left_out),
        ),
        "commands": _commands(groups),
        "notes": _list(collection.notes),
        "data": _data(groups, published, folder),
        "style": _asset("page.css"),
        "script": _asset("page.js"),
    }
    parts |= {f"{key}s": _options(groups, key) for key in _FILTERS}
    return Template(_asset("page.html")).substitute(parts)


def summary(groups: Sequence[Group], collection: Collection) -> str:
    """Say in one sentence how much there is."""
    n_runs, n_out = len(collection.runs), len(collection.left_out)
    left_out = f"; {n_out} more {'is' if n_out == 1 else 'are'} not in the table" if n_out else ""
    return f"{_plural(n_runs, 'completed run')} of {_plural(len(groups), 'configuration')}{left_out}."


def run_link(record: Path, folder: Path) -> str:
    """Give the address of a run's page relative to a folder: its report, else its folder, else the bare record."""
    target = record
    if record.name == "record.json":
        target = record.parent / _REPORT if (record.parent / _REPORT).is_file() else record.parent
    relative = Path(os.path.relpath(target.resolve(), folder.resolve())).as_posix()
    return quote(relative) + ("/" if target.is_dir() else "")


def _row(index: int, group: Group, folder: Path) -> str:
    run = group.first
    filters = "".join(f' data-{key}="{escape(getattr(run, key))}"' for key in _FILTERS)
    row = "".join(_cell(group, column, text, folder) for column, text in zip(COLUMNS, cells(group), strict=True))
    return f'<tr data-row="{index}"{filters}>{row}</tr>'


def _cell(group: Group, column: Column, text: str, folder: Path) -> str:
    if column.key == "seeds":
        links = ", ".join(_link(run.path, _seed(run), folder) for run in group.runs)
        return f'<td data-value="{group.seeds}">{group.seeds} ({links})</td>'
    if column.digits is None:
        return f"<td>{escape(text)}</td>"
    mean = group.mean(column.key)
    return f'<td class="number" data-value="{"" if mean is None else mean}">{escape(text)}</td>'


def _link(path: Path, text: str, folder: Path) -> str:
    return f'<a href="{escape(run_link(path, folder))}">{escape(text)}</a>'


def _seed(run: Run) -> str:
    return "seed unknown" if run.seed is None else str(run.seed)


def _picture(name: str, caption: str, path: Path | None) -> str:
    heading = f"<h3>{escape(name)}</h3>"
    if path is None:
        return f"{heading}\n<p>Not drawn: {escape(caption)}</p>"
    pixels = base64.b64encode(path.read_bytes()).decode("ascii")
    image = f'<img src="data:image/png;base64,{pixels}" alt="{escape(name)}">'
    return f"{heading}\n<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def _published(rows: Sequence[Published]) -> str:
    header = ("task", "metric", "method", "sparsity", "score", "model", "distilled", "source", "note")
    said = {True: "yes", False: "no", None: ""}
    body = (
        [
            *map(escape, (row.task, row.metric, row.method, f"{row.sparsity:g}", f"{row.score:.4f}", row.model)),
            *map(escape, (said[row.distilled], row.source, row.note)),
        ]
        for row in rows
    )
    return _table(header, body)


def _differences(groups: Sequence[Group]) -> str:
    rows = comparison_rows(groups)
    if not rows:
        return "<p>No two rows of one task, model and sparsity have a seed in common.</p>"
    return f"<p>{escape(COMPARISON_CAPTION)}</p>\n{_table(COMPARISON_HEADER, (map(escape, row) for row in rows))}"


def _table(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    if not body:
        return "<p>None.</p>"
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in header)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _list(sentences: Sequence[str]) -> str:
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>{items}</ul>" if items else "<p>None.</p>"


def _commands(groups: Sequence[Group]) -> str:
    named = [f"<dt>{escape(name)}</dt><dd><code>{escape(command)}</code></dd>" for name, command in commands(groups)]
    lines = "\n".join(named)
    return (
        f"<details><summary>One of each, its first seed</summary><dl>{lines}</dl></details>"
        if lines
        else "<p>None.</p>"
    )


def _options(groups: Sequence[Group], key: str) -> str:
    values = sorted({str(getattr(group.first, key)) for group in groups})
    options = (f'<option value="{escape(value)}">{escape(value)}</option>' for value in values)
    return f'<option value="">all</option>{"".join(options)}'


def _data(groups: Sequence[Group], published: Sequence[Published], folder: Path) -> str:
    lines = lines_of(groups)
    line_of = {group: number for number, line in enumerate(lines) for group in line.groups}
    runs = [
        {
            "row": row,
            "line": line_of[group],
            "task": run.task,
            "metric": run.metric,
            "sparsity": run.reached,
            "score": run.score,
            "seed": run.seed,
            "href": run_link(run.path, folder),
        }
        for row, group in enumerate(groups)
        for run in group.runs
    ]
    looks = [
        {
            "label": line.label,
            "colour": line.colour,
            "shape": MARKERS.index(line.marker),
            "contrast": line.groups[0].first.contrast,
        }
        for line in lines
    ]
    others: list[dict[str, Any]] = [
        {key: getattr(row, key) for key in ("task", "metric", "method", "sparsity", "score", "source")}
        for row in published
        if row.drawn
    ]
    panels = [{"task": task, "metric": metric} for task, metric in panels_of(groups)]
    text = json.dumps({"panels": panels, "lines": looks, "runs": runs, "published": others}, allow_nan=False)
    # A script ends at the first "</script", wherever it stands.
    return text.replace("<", "\\u003c")


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _asset(name: str) -> str:
    return files("cap.reports").joinpath(name).read_text(encoding="utf-8")


__all__ = ["build_page", "run_link", "summary"]
