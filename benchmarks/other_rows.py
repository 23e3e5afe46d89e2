"""``python -m benchmarks.other_rows --data-root DIR``: score the bake-off's models on rows that nothing was chosen by.

872 validation rows tell two models apart that differ in some 20 answers; these are 20,000 training rows of SST-2 that
no run has learned from (``benchmarks.make_data``). Models lie in ``outputs/bake_off`` while they are not removed: each
that has no record in ``benchmarks/records/other_rows`` is scored by ``cap.evaluate``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bake_off.places import OUTPUTS, ROOT
from benchmarks.bake_off.summary import NOTHING, Arm
from benchmarks.make_data import FINGERPRINT, FINGERPRINT_OF_OTHERS, OTHERS
from cap.base.errors import InputError
from cap.base.files import read_json, write_json
from cap.reports.differences import Difference
from cap.reports.tables import NONE, markdown
from cap.runs.reading import at

RECORDS = ROOT / "benchmarks" / "records" / "other_rows"


def finished_models(outputs: Path) -> Iterator[tuple[str, Path]]:
    """List the cells whose model is there and has seen the 8,000 rows alone, each with its run's folder."""
    for path in sorted(outputs.glob("*/*/record.json")):
        record = read_json(path)
        has_seen_them_alone = (
            at(record, "data", "fingerprint") == FINGERPRINT and at(record, "config", "data", "unlabelled") is None
        )
        if record.get("status") == "completed" and has_seen_them_alone and (path.parent / "model").is_dir():
            yield path.parent.parent.name, path.parent


def score(run: Path, data_dir: Path, *, cache_dir: Path) -> dict[str, Any]:
    """Score the model of a run.

    Args:
        run: The run's folder.
        data_dir: Holds the rows as validation rows.
        cache_dir: Where the tokens of the rows are kept.

    Returns:
        The record to keep.

    Raises:
        InputError: If the rows are others.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = [f"model_dir='{run / 'model'}'", "task=sst2", f"data_dir='{data_dir}'", f"cache_dir='{cache_dir}'"]
        subprocess.run(
            [sys.executable, "-m", "cap.evaluate", *given, f"output_dir='{folder}/scores'"],
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        found = read_json(Path(folder) / "scores" / "record.json")
    if found["data"]["fingerprint"] != FINGERPRINT_OF_OTHERS:
        raise InputError(
            f"{data_dir} must hold the rows that benchmarks.make_data writes, got others "
            f"({found['data']['fingerprint']} in place of {FINGERPRINT_OF_OTHERS})"
        )
    trained = read_json(run / "record.json")
    return {
        "seed": trained["seed"],
        "n_rows": found["data"]["n_rows"]["validation"],
        "fingerprint": found["data"]["fingerprint"],
        "majority": found["scores"]["majority"]["accuracy"],
        "score": found["scores"]["model"]["accuracy"],
        "weights": found["weights"],
        "trained": {key: trained["environment"][key] for key in ("git_commit", "device")},
        "scored": {key: found["environment"][key] for key in ("git_commit", "device")},
    }


def other_rows_table(arms: Sequence[Arm], again: Sequence[Arm], records: Path = RECORDS) -> str:
    """Make the table: scores on the other rows by arm, and how far they lie from the recipe's, paired by seed.

    Args:
        arms: Those of the bake-off.
        again: The recipe's own, made on the machine of the others.
        records: The folder of what ``score`` has returned.
    """
    found = {path.stem: read_json(path) for path in sorted(records.glob("*.json"))}
    by_arm = {
        arm: {found[cell.name]["seed"]: found[cell.name]["score"] for cell in arm.cells if cell.name in found}
        for arm in (*again, *arms)
    }
    # Of whatever pruning type: the recipe is that of the list's own.
    recipes = {_place(arm): by_arm[arm] for arm in again}
    rows = []
    for arm, scores in sorted(by_arm.items(), key=lambda pair: -_mean(pair[1])):
        if not scores:
            continue
        base = recipes.get(_place(arm), {})
        shared = {seed: value - base[seed] for seed, value in scores.items() if seed in base and arm not in again}
        difference = Difference(shared).judged if shared else NONE
        contrast = "none" if arm.first.contrast == "none" else "all three"
        name = f"{arm.setting}, {arm.first.sparsity:g}"
        rows.append([name, contrast, f"{_mean(scores):.4f}{_spread(scores)}", difference, str(len(scores))])
    if not rows:
        return NOTHING
    return markdown(["run", "contrast", "accuracy on 20,000 other rows", "minus the recipe", "seeds"], rows)


def _place(arm: Arm) -> tuple[str, float, str]:
    return arm.first.task, arm.first.sparsity, arm.first.contrast


def _mean(scores: dict[int, float]) -> float:
    return statistics.fmean(scores.values()) if scores else 0.0


def _spread(scores: dict[int, float]) -> str:
    return f" \N{PLUS-MINUS SIGN} {statistics.stdev(scores.values()):.4f}" if len(scores) > 1 else ""


def main() -> None:
    """Read the command line."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.other_rows", description=f"{summary} {rest}")
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR", help=f"holds {OTHERS}")
    parser.add_argument("--outputs", type=Path, nargs="+", default=[OUTPUTS], help="where the bake-off's runs are")
    parser.add_argument("--records", type=Path, default=RECORDS)
    arguments = parser.parse_args()
    cells = [pair for outputs in arguments.outputs for pair in finished_models(outputs.resolve())]
    todo = [(name, run) for name, run in cells if not (arguments.records / f"{name}.json").is_file()]
    for number, (name, run) in enumerate(todo, start=1):
        print(f"{number} of {len(todo)}: {name}", flush=True)
        found = score(run, arguments.data_root.resolve() / OTHERS, cache_dir=ROOT / "outputs" / "cache")
        arguments.records.mkdir(parents=True, exist_ok=True)
        write_json(arguments.records / f"{name}.json", {"cell": name, **found})


if __name__ == "__main__":
    main()
