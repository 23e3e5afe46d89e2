"""Records of runs that never were, in the shape of a committed one."""

from __future__ import annotations

import json
import random
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).parents[2] / "benchmarks" / "records" / "sst2_movement_cap_seed1.json"
SWITCHES = ("pretrained", "snapshots", "finetuned")
MAJORITY, TEACHER = 0.5, 0.9


def made_record(
    *,
    task: str = "sst2",
    pruning: str = "movement",
    sparsity: float = 0.9,
    terms: tuple[str, ...] = SWITCHES,
    seed: int = 1,
    score: float = 0.8,
) -> dict[str, Any]:
    """Make the record of a completed run up."""
    record = deepcopy(json.loads(TEMPLATE.read_text(encoding="utf-8")))
    del record["matrices"], record["levels"]
    config = record["config"]
    config["task"]["name"] = task
    config["pruning"]["name"] = pruning
    config["sparsity"] = config["schedule"]["sparsity"] = sparsity
    config["contrast"] |= {switch: switch in terms for switch in SWITCHES}
    config["seed"] = record["seed"] = seed
    record["config_hash"] = f"{task}-{pruning}-{sparsity}-{'-'.join(terms)}-{seed}"
    record["scores"] = {
        who: {"accuracy": x} for who, x in (("majority", MAJORITY), ("teacher", TEACHER), ("pruned", score))
    }
    record["retention"] = score / TEACHER
    record["retention_above_majority"] = (score - MAJORITY) / (TEACHER - MAJORITY)
    record["sparsity"] |= {"asked": sparsity, "prunable": sparsity + 1e-5}
    return record


def write_run(folder: Path, record: dict[str, Any]) -> Path:
    """Write a record where a run would; return the folder."""
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def write_grid(
    folder: Path,
    *,
    tasks: tuple[str, ...] = ("sst2",),
    prunings: tuple[str, ...] = ("movement", "magnitude"),
    sparsities: tuple[float, ...] = (0.5, 0.9, 0.97),
    terms: tuple[tuple[str, ...], ...] = (SWITCHES, ()),
    seeds: tuple[int, ...] = (1, 2),
    exports: bool = False,
) -> Path:
    """Write a run for every combination."""
    draw = random.Random(0)
    for number, (task, pruning, sparsity, on, seed) in enumerate(product(tasks, prunings, sparsities, terms, seeds)):
        score = 0.88 - 0.2 * sparsity**4 + 0.01 * len(on) - 0.02 * prunings.index(pruning) + draw.gauss(0, 0.006)
        record = made_record(task=task, pruning=pruning, sparsity=sparsity, terms=on, seed=seed, score=score)
        if exports:
            record["exports"] = made_exports(sparsity)
        write_run(folder / str(number), record)
    return folder


def made_exports(sparsity: float) -> dict[str, Any]:
    """Make up what two exports of a run measured."""
    settings = ("batch=1,tokens=32", "batch=32,tokens=128")
    dense = {"dense_latency_ms": dict(zip(settings, (8.0, 400.0), strict=True)), "size": {"dense_bytes": 90e6}}
    left = 1 - 0.5 * sparsity
    return {
        "compact": {
            "bytes": 9e7 * left,
            "latency_ms": {name: 400 * left for name in settings},
            "scores": None,
            **dense,
        },
        "int8": {
            "bytes": 4e7 * left,
            "latency_ms": {name: 200 * left for name in settings},
            "scores": {"accuracy": 0.7},
            **dense,
        },
    }
