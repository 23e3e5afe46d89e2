"""``python -m benchmarks.other_rows --data-root DIR``: score the bake-off's models on rows that nothing was chosen by.

872 validation rows tell two models apart that differ in some 20 answers; these are 3,475 training rows of SST-2 that
share no phrase with what any run has learned from (``benchmarks.make_data``). Models lie in ``outputs/bake_off`` while
they are not removed: each that has no record in ``benchmarks/records/other_rows`` is scored by ``cap.evaluate``, its
teacher before it.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.bake_off.places import OUTPUTS, ROOT
from benchmarks.bake_off.summary import NOTHING, Arm
from benchmarks.make_data import FINGERPRINT, FINGERPRINT_OF_OTHERS, OTHERS
from cap.base.errors import InputError
from cap.base.files import read_json, write_json
from cap.formats.bits import pack_bits, unpack_bits
from cap.reports.differences import Difference
from cap.reports.tables import NONE, markdown
from cap.runs.reading import at

RECORDS = ROOT / "benchmarks" / "records" / "other_rows"
TEACHER = "teacher_"
"""Before a teacher's key: the name of its record."""
_SMALLEST = 1e-7
"""What a label has at least, near float32's resolution at 1: a single sure mistake is not to outweigh all rows."""


@dataclass(frozen=True)
class Model:
    """Name a model to score.

    Args:
        name: Of its record.
        folder: What ``cap.evaluate`` loads.
        notes: What the record says besides.
    """

    name: str
    folder: Path
    notes: dict[str, Any]


def models(outputs: Path) -> Iterator[Model]:
    """List the models that are there and have seen the 8,000 rows alone: of each cell the teacher's, and its own."""
    for path in sorted(outputs.glob("*/*/record.json")):
        record = read_json(path)
        has_seen_them_alone = (
            at(record, "data", "fingerprint") == FINGERPRINT and at(record, "config", "data", "unlabelled") is None
        )
        if record.get("status") != "completed" or not has_seen_them_alone or not (path.parent / "model").is_dir():
            continue
        key = str(at(record, "teacher", "name")).removeprefix("auto ")
        teacher = outputs.parent / "cache" / "teachers" / key
        if (teacher / "teacher.json").is_file():
            content = read_json(teacher / "teacher.json")["content"]
            yield Model(TEACHER + key, teacher, {"seed": content["seed"], "finetune": content["finetune"]})
        name = path.parent.parent.name
        trained = {known: record["environment"][known] for known in ("git_commit", "device")}
        yield Model(
            name, path.parent / "model", {"cell": name, "seed": record["seed"], "teacher": key, "trained": trained}
        )


def score(model: Path, data_dir: Path, *, cache_dir: Path) -> dict[str, Any]:
    """Score a model.

    Args:
        model: Its folder.
        data_dir: Holds the rows as validation rows.
        cache_dir: Where the tokens of the rows are kept.

    Returns:
        What to keep, see ``kept``.

    Raises:
        InputError: If the rows are others.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = [f"model_dir='{model}'", "task=sst2", f"data_dir='{data_dir}'", f"cache_dir='{cache_dir}'"]
        subprocess.run(
            [sys.executable, "-m", "cap.evaluate", *given, f"output_dir='{folder}/scores'"],
            check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        return kept(Path(folder) / "scores")


def kept(evaluation: Path, fingerprint: str = FINGERPRINT_OF_OTHERS) -> dict[str, Any]:
    """Read what to keep of an evaluation: score, log loss (nats), and which rows were right, see ``write_bits``.

    Raises:
        InputError: If the rows are others.
    """
    found = read_json(evaluation / "record.json")
    if found["data"]["fingerprint"] != fingerprint:
        raise InputError(
            f"the rows must be those that benchmarks.make_data writes, got others "
            f"({found['data']['fingerprint']} in place of {fingerprint})"
        )
    with (evaluation / "predictions.csv").open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    right = [row["label"] == row["prediction"] for row in rows]
    of_labels = [max(float(row[f"p_{row['label']}"]), _SMALLEST) for row in rows]
    return {
        "n_rows": found["data"]["n_rows"]["validation"],
        "fingerprint": found["data"]["fingerprint"],
        "majority": found["scores"]["majority"]["accuracy"],
        "score": found["scores"]["model"]["accuracy"],
        "log_loss": -statistics.fmean(math.log(probability) for probability in of_labels),
        "weights": found["weights"],
        "scored": {key: found["environment"][key] for key in ("git_commit", "device")},
        "right": write_bits(right),
    }


def write_bits(bits: Sequence[bool]) -> str:
    """Write two digits for every eight rows, see ``pack_bits``."""
    return pack_bits(torch.tensor(bits)).numpy().tobytes().hex()


def read_bits(digits: str, n_rows: int) -> np.ndarray:
    """Read what ``write_bits`` has written, as booleans."""
    return unpack_bits(torch.frombuffer(bytearray.fromhex(digits), dtype=torch.uint8), n_rows).numpy()


@dataclass(frozen=True)
class Scores:
    """Hold what is known of an arm.

    Args:
        name: What the table calls it.
        contrast: Its terms.
        place: Runs of one task and sparsity are compared; None for what is compared with nothing.
        by_seed: What ``kept`` has returned, by seed.
    """

    name: str
    contrast: str
    place: tuple[str, float] | None
    by_seed: dict[int, dict[str, Any]]

    @property
    def mean(self) -> float:
        """The mean score."""
        return statistics.fmean(record["score"] for record in self.by_seed.values())

    def above_majority(self, teachers: Mapping[str, dict[str, Any]]) -> list[float]:
        """How much of its teacher's lead over the majority class each run has left; none where it is not known."""
        return [
            (record["score"] - record["majority"]) / (teachers[record["teacher"]]["score"] - record["majority"])
            for record in self.by_seed.values()
            if record.get("teacher") in teachers
        ]


def minus(one: Scores, other: Scores) -> tuple[Difference, float] | None:
    """Compare two arms on the seeds that both were trained with on one machine.

    Returns:
        The differences of scores by seed, and the standard error that the draw of the rows gives: of the mean over rows
        of what the two answer differently, each row a mean over the seeds, as a fraction. None without a shared seed.
    """
    pairs = {
        seed: (record, other.by_seed[seed])
        for seed, record in one.by_seed.items()
        if seed in other.by_seed and record["trained"]["device"] == other.by_seed[seed]["trained"]["device"]
    }
    if not pairs:
        return None
    by_row = np.mean([_right(mine) - _right(its) for mine, its in pairs.values()], axis=0)
    by_seed = {seed: mine["score"] - its["score"] for seed, (mine, its) in pairs.items()}
    return Difference(by_seed), float(by_row.std(ddof=1)) / math.sqrt(len(by_row))


def other_rows_table(arms: Sequence[Arm], records: Path = RECORDS) -> str:
    """Make the table: scores on the other rows by arm, and how far they lie from the recipe's, paired by seed.

    Args:
        arms: Those of the bake-off.
        records: The folder of what ``kept`` has returned.
    """
    found = {path.stem: read_json(path) for path in sorted(records.glob("*.json"))}
    teachers = {name.removeprefix(TEACHER): record for name, record in found.items() if name.startswith(TEACHER)}
    by_arm = {arm: _of_arm(arm, found) for arm in arms}
    recipes = {scores.place: scores for arm, scores in by_arm.items() if scores.by_seed and _is_the_recipe(arm)}
    rows = []
    known = [*_of_teachers(teachers.values()), *by_arm.values()]
    for scores in sorted((one for one in known if one.by_seed), key=lambda one: -one.mean):
        recipe = recipes.get(scores.place)
        difference = None if recipe is None or scores == recipe else minus(scores, recipe)
        share = scores.above_majority(teachers)
        rows.append(
            [
                scores.name,
                scores.contrast,
                _with_spread([record["score"] for record in scores.by_seed.values()]),
                _with_spread(share, 3) if share else NONE,
                _with_spread([record["log_loss"] for record in scores.by_seed.values()], 3),
                difference[0].judged if difference else NONE,
                f"{100 * difference[1]:.2f}" if difference else NONE,
                str(len(scores.by_seed)),
            ]
        )
    header = [
        "run",
        "contrast",
        "accuracy",
        "above majority",
        "log loss",
        "minus the recipe",
        "error over rows",
        "seeds",
    ]
    return markdown(header, rows) if rows else NOTHING


def _is_the_recipe(arm: Arm) -> bool:
    """Say whether an arm is ``experiment=high_sparsity`` as it comes."""
    return (arm.first.pruning, arm.first.contrast, arm.first.variant) == ("second_order", "none", "")


def _of_arm(arm: Arm, found: Mapping[str, dict[str, Any]]) -> Scores:
    first = arm.first
    return Scores(
        f"{arm.setting}, {first.sparsity:g}",
        "none" if first.contrast == "none" else "all three",
        (first.task, first.sparsity),
        {found[cell.name]["seed"]: found[cell.name] for cell in arm.cells if cell.name in found},
    )


def _of_teachers(records: Iterable[dict[str, Any]]) -> list[Scores]:
    alike: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        finetune = record["finetune"]
        name = f"teacher, {finetune['max_epochs']} epochs at {finetune['learning_rate']:.0e}".replace("e-0", "e-")
        alike[name][record["seed"]] = record
    return [Scores(name, NONE, None, by_seed) for name, by_seed in alike.items()]


def _right(record: dict[str, Any]) -> np.ndarray:
    return read_bits(record["right"], record["n_rows"]).astype(float)


def _with_spread(values: Sequence[float], digits: int = 4) -> str:
    spread = f" \N{PLUS-MINUS SIGN} {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def main() -> None:
    """Read the command line."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.other_rows", description=f"{summary} {rest}")
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR", help=f"holds {OTHERS}")
    parser.add_argument("--outputs", type=Path, nargs="+", default=[OUTPUTS], help="where the bake-off's runs are")
    parser.add_argument("--records", type=Path, default=RECORDS)
    arguments = parser.parse_args()
    todo = [
        model
        for outputs in arguments.outputs
        for model in models(outputs.resolve())
        if not (arguments.records / f"{model.name}.json").is_file()
    ]
    for number, model in enumerate(todo, start=1):
        record = arguments.records / f"{model.name}.json"
        if record.is_file():  # a teacher of several runs
            continue
        print(f"{number} of {len(todo)}: {model.name}", flush=True)
        found = score(model.folder, arguments.data_root.resolve() / OTHERS, cache_dir=ROOT / "outputs" / "cache")
        write_json(record, {**model.notes, **found})


if __name__ == "__main__":
    main()
