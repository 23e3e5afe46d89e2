"""``python -m benchmarks.results_table``: write the README's tables from the committed measurements.

Runs that differ only in their seed are one row: mean, and standard deviation where there are several.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from cap.storage import atomic_file, content_key, read_json

ROOT = Path(__file__).parent.parent
RESULTS = ("<!-- results: python -m benchmarks.results_table -->", "<!-- end of results -->")
COST = ("<!-- cost: python -m benchmarks.results_table -->", "<!-- end of cost -->")
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
    """Name the pruning type, and what of it is not our default: where scores started, or units drawn by lot."""
    pruning = config["pruning"]
    notes = {"score_init": {"zero": "scores from 0"}, "importance": {"random": "units by lot"}}
    given = [known[pruning[key]] for key, known in notes.items() if pruning.get(key) in known]
    return ", ".join([str(pruning["name"]), *given])


def minutes_per_epoch(record: dict[str, Any]) -> float:
    """Divide training, validation, importance and snapshots by the epochs of the run."""
    seconds = record["seconds"]
    spent = seconds["fit"] + seconds.get("importance", 0.0) + seconds.get("snapshots", 0.0)
    return float(spent / record["config"]["trainer"]["max_epochs"] / 60)


def cost_table(measured: dict[str, Any]) -> str:
    """Make the table of what a step and a run cost beside plain fine-tuning."""
    run, memory = measured["run"], measured["peak_memory_gb"]
    rows = [
        ("step, masks moved every 10 steps, s", measured["step_masks_every_10"], 2),
        ("step, masks moved every step, s", measured["step_masks_every_1"], 2),
        ("10 epochs with all encoding, s", run, 0),
        ("peak memory of those, GB", {**memory, "ratio": memory["cap"] / memory["plain"]}, 2),
    ]
    lines = [f"| {name} | {v['plain']:.{n}f} | {v['cap']:.{n}f} | {v['ratio']:.2f} |" for name, v, n in rows]
    return "\n".join(["| | plain fine-tuning | CAP | ratio |", "| --- | --- | --- | --- |", *lines])


def spread(values: list[float], digits: int) -> str:
    """Write a mean, with the standard deviation of several values."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def write() -> None:
    """Put each table between its two markers in the README."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    for (begin, end), lines in tables():
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{lines}\n{end}{rest.partition(end)[2]}"
    with atomic_file(readme) as temporary:
        temporary.write_text(text, encoding="utf-8")


def tables() -> list[tuple[tuple[str, str], str]]:
    """Make every table of the README, each with its markers."""
    folder = ROOT / "benchmarks"
    records = [read_json(path) for path in sorted((folder / "records").glob("*.json"))]
    return [(RESULTS, table(records)), (COST, cost_table(read_json(folder / "results" / "step_minilm.json")))]


if __name__ == "__main__":
    write()
