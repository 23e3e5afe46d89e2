"""``python -m benchmarks.results_table``: write the README's results table from the committed records.

Runs that differ only in their seed are one row: mean, and standard deviation where there are several.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from cap.storage import atomic_file, content_key, read_json

ROOT = Path(__file__).parent.parent
BEGIN, END = "<!-- results: python -m benchmarks.results_table -->", "<!-- end of results -->"
COLUMNS = (
    "task",
    "pruning",
    "contrast",
    "sparsity",
    "teacher",
    "pruned",
    "retention",
    "above majority",
    "s/step",
    "min/epoch",
    "seeds",
)


def table(records: list[dict[str, Any]]) -> str:
    """Make the table of completed runs, one row a configuration."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        config = {key: value for key, value in record["config"].items() if key != "seed"}
        groups[content_key(config)].append(record)
    rows = sorted(row(group) for group in groups.values())
    header = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    return "\n".join([*header, *rows])


def row(group: list[dict[str, Any]]) -> str:
    """Summarise runs that differ in their seed only."""
    first, metric = group[0], group[0]["metric"]
    config = first["config"]
    switches = [name for name in ("pretrained", "snapshots", "finetuned") if config["contrast"][name]]
    cells = (
        config["task"]["name"],
        pruning_of(config),
        "none" if not switches else "all three" if len(switches) == 3 else ", ".join(switches),
        spread([r["sparsity"]["prunable"] for r in group], 4),
        spread([r["scores"]["teacher"][metric] for r in group], 3),
        spread([r["scores"]["pruned"][metric] for r in group], 3),
        spread([r["retention"] for r in group], 3),
        spread([r["retention_above_majority"] for r in group], 3),
        spread([r["seconds_per_step"] for r in group], 2),
        spread([minutes_per_epoch(r) for r in group], 1),
        str(len(group)),
    )
    return "| " + " | ".join(cells) + " |"


def pruning_of(config: dict[str, Any]) -> str:
    """Name the pruning type, and how its scores started if that is not our default."""
    name = str(config["pruning"]["name"])
    return f"{name}, scores from 0" if config["pruning"].get("score_init") == "zero" else name


def minutes_per_epoch(record: dict[str, Any]) -> float:
    """Divide training, validation and snapshots by the epochs of the run."""
    seconds = record["seconds"]
    return float((seconds["fit"] + seconds.get("snapshots", 0.0)) / record["config"]["trainer"]["max_epochs"] / 60)


def spread(values: list[float], digits: int) -> str:
    """Write a mean, with the standard deviation of several values."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def write() -> None:
    """Put the table between its two markers in the README."""
    records = [read_json(path) for path in sorted((ROOT / "benchmarks" / "records").glob("*.json"))]
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    with atomic_file(readme) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{table(records)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write()
