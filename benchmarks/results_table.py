"""``python -m benchmarks.results_table``: write the README's tables from the committed measurements.

The rows are those of ``python -m cap.report benchmarks/records``, with fewer columns.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from cap.results.collect import collect
from cap.results.export_table import EXPORT_HEADER, export_rows
from cap.results.runs import Run
from cap.results.tables import COLUMNS, cells, group_runs, markdown
from cap.storage import atomic_file, read_json

ROOT = Path(__file__).parent.parent
RESULTS = ("<!-- results: python -m benchmarks.results_table -->", "<!-- end of results -->")
EXPORTS = ("<!-- exports: python -m benchmarks.results_table -->", "<!-- end of exports -->")
COST = ("<!-- cost: python -m benchmarks.results_table -->", "<!-- end of cost -->")
# The text below the table names model and metric; sparsity is the one that was reached.
TITLES = {"reached": "sparsity"}
LEFT_OUT = ("model", "asked", "metric", "note")


def table(folder: Path) -> str:
    """Make the table of the completed runs in a folder, one row a configuration."""
    columns = [
        replace(column, title=TITLES.get(column.key, column.title)) for column in COLUMNS if column.key not in LEFT_OUT
    ]
    groups = group_runs(committed_runs(folder))
    return markdown([column.title for column in columns], (cells(group, columns) for group in groups))


def export_table(folder: Path) -> str:
    """Make the table of what was exported of these runs; empty where nothing was."""
    rows = export_rows(run for group in group_runs(committed_runs(folder)) for run in group.runs)
    return markdown(EXPORT_HEADER, rows) if rows else ""


def committed_runs(folder: Path) -> list[Run]:
    """Read the completed runs in a folder; folders below hold what is kept for comparison only."""
    resolved = folder.resolve()
    return [run for run in collect([folder]).runs if run.path.parent == resolved]


def cost_table(measured: dict[str, Any], importance: dict[str, Any]) -> str:
    """Make the table of what a step, a run and an importance pass cost beside plain fine-tuning."""
    run, memory = measured["run"], measured["peak_memory_gb"]
    rows = [
        ("step, masks moved every 10 steps, s", measured["step_masks_every_10"], 2),
        ("step, masks moved every step, s", measured["step_masks_every_1"], 2),
        ("structured pruning: step, s", _beside(importance, "structured"), 2),
        ("structured pruning: a batch of the importance pass, s", _beside(importance, "importance"), 2),
        ("10 epochs with all encoding, s", run, 0),
        ("peak memory of those, GB", {**memory, "ratio": memory["cap"] / memory["plain"]}, 2),
    ]
    lines = [
        [name, f"{v['plain']:.{digits}f}", f"{v['cap']:.{digits}f}", f"{v['ratio']:.2f}"] for name, v, digits in rows
    ]
    return markdown(["", "plain fine-tuning", "CAP", "ratio"], lines)


def _beside(importance: dict[str, Any], name: str) -> dict[str, float]:
    seconds = importance["seconds"]
    return {"plain": seconds["plain"], "cap": seconds[name], "ratio": seconds[name] / seconds["plain"]}


def write(root: Path = ROOT) -> None:
    """Put each table between its two markers in the README."""
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    for (begin, end), lines in tables(root):
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{lines}\n{end}{rest.partition(end)[2]}"
    with atomic_file(readme) as temporary:
        temporary.write_text(text, encoding="utf-8")


def tables(root: Path = ROOT) -> list[tuple[tuple[str, str], str]]:
    """Make every table of the README, each with its markers; that of exports is one which a README may leave out."""
    folder = root / "benchmarks"
    made = [
        (RESULTS, table(folder / "records")),
        (COST, cost_table(*(read_json(folder / "results" / f"{name}_minilm.json") for name in ("step", "importance")))),
    ]
    if EXPORTS[0] in (root / "README.md").read_text(encoding="utf-8"):
        made.append((EXPORTS, export_table(folder / "records")))
    return made


if __name__ == "__main__":
    write()
