"""Models of the bake-off on rows that nothing was chosen by."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from cap.base.errors import InputError

LIST = """
defaults: {seeds: [1, 2], task: sst2_8k, pruning: second_order, sparsity: 0.9, contrast: none}
blocks:
  - {name: main, priority: 1, pruning: [random, second_order]}
  - {name: change, priority: 1, shown: ablation, variants: {no rewind: [a=1]}}
  - {name: contrast, priority: 1, contrast: cap}
  - {name: sparsity, priority: 1, sparsity: 0.5}
"""
# Which of ten rows are right, by cell.
RIGHT = {
    "sst2_8k_second_order_0.9_none_seed1": "1111110000",
    "sst2_8k_second_order_0.9_none_seed2": "1111100000",
    "sst2_8k_second_order_0.9_none_no-rewind_seed1": "1111110100",
    "sst2_8k_second_order_0.9_none_no-rewind_seed2": "1111101100",
    "sst2_8k_second_order_0.9_cap_seed2": "0111100000",
    "sst2_8k_random_0.9_none_seed2": "0000000001",
    "sst2_8k_second_order_0.5_none_seed1": "1111111111",
}
TEACHER = "1111111000"


def record_of(right: str) -> dict:
    from benchmarks.other_rows import write_bits

    bits = [digit == "1" for digit in right]
    found = {"majority": 0.5, "score": sum(bits) / len(bits), "log_loss": 0.5 + 0.1 * bits[-1]}
    return {"n_rows": len(bits), "right": write_bits(bits), **found}


@pytest.fixture
def table(tmp_path):
    from benchmarks.bake_off.cells import read_cells
    from benchmarks.bake_off.summary import read_arms
    from benchmarks.other_rows import other_rows_table

    (tmp_path / "list.yaml").write_text(LIST)
    arms, _ = read_arms(read_cells(tmp_path / "list.yaml"), tmp_path / "none")
    records = tmp_path / "records"

    def made(devices=()) -> list[str]:
        records.mkdir(exist_ok=True)
        for cell, right in RIGHT.items():
            device = dict(devices).get(cell, "a CPU")
            content = {"cell": cell, "seed": int(cell[-1]), "teacher": "abc", "trained": {"device": device}}
            (records / f"{cell}.json").write_text(json.dumps(content | record_of(right)))
        finetune = {"max_epochs": 4, "learning_rate": 1e-4}
        (records / "teacher_abc.json").write_text(json.dumps({"seed": 1, "finetune": finetune, **record_of(TEACHER)}))
        return other_rows_table(arms, records).splitlines()[2:]

    assert other_rows_table(arms, records) == "No cell has a record yet."
    return made


def test_the_table_pairs_runs_by_seed_and_counts_rows(table):
    none = "\N{EN DASH}"
    # Rows of no rewind minus the recipe, means over seeds: 0.5, 1 and eight zeros.
    assert table() == [
        f"| second_order, 0.5 | none | 1.0000 | 2.500 | 0.600 | {none} | {none} | 1 |",
        f"| teacher, 4 epochs at 1e-4 | {none} | 0.7000 | {none} | 0.500 | {none} | {none} | 1 |",
        "| second_order, no rewind, 0.9 | none | 0.7000 ± 0.0000 | 1.000 ± 0.000 | 0.500 ± 0.000 | "
        "+15.00 ± 5.00 points (2 seeds, 3.0 standard errors, not clear below 12.7) | 10.67 | 2 |",
        f"| second_order, 0.9 | none | 0.5500 ± 0.0707 | 0.250 ± 0.354 | 0.500 ± 0.000 | {none} | {none} | 2 |",
        "| second_order, 0.9 | all three | 0.4000 | -0.500 | 0.500 | "
        "-10.00 points (one seed, from which nothing can be concluded) | 10.00 | 1 |",
        "| random, 0.9 | none | 0.1000 | -2.000 | 0.600 | "
        "-40.00 points (one seed, from which nothing can be concluded) | 22.11 | 1 |",
    ]


def test_runs_of_two_machines_are_not_compared(table):
    (line,) = [line for line in table({"sst2_8k_random_0.9_none_seed2": "another CPU"}) if "random" in line]
    assert line.split(" | ")[-3:-1] == ["\N{EN DASH}"] * 2


@pytest.mark.parametrize(
    ("changes", "is_taken"),
    [
        ({}, True),
        ({"status": "running"}, False),
        ({"data": {"fingerprint": "another"}}, False),
        ({"config": {"data": {"unlabelled": "all of them"}}}, False),
    ],
    ids=["finished", "running", "other rows", "has seen them"],
)
def test_models_that_saw_the_8000_rows_alone_are_scored(tmp_path, changes, is_taken):
    from benchmarks.make_data import FINGERPRINT
    from benchmarks.other_rows import models

    outputs = tmp_path / "bake_off"
    run: Path = outputs / "cell" / "key"
    (run / "model").mkdir(parents=True)
    record = {
        "status": "completed",
        "data": {"fingerprint": FINGERPRINT},
        "config": {"data": {"unlabelled": None}},
        "teacher": {"name": "auto abc"},
        "environment": {"git_commit": "1", "device": "a CPU", "python": "3"},
        "seed": 2,
    }
    (run / "record.json").write_text(json.dumps(record | changes))
    notes = {"cell": "cell", "seed": 2, "teacher": "abc", "trained": {"git_commit": "1", "device": "a CPU"}}
    found = [(model.name, model.folder, model.notes) for model in models(outputs)]
    assert found == ([("cell", run / "model", notes)] if is_taken else [])
    # Its teacher, as long as it lies in the cache, comes first.
    teacher = tmp_path / "cache" / "teachers" / "abc"
    teacher.mkdir(parents=True)
    (teacher / "teacher.json").write_text(json.dumps({"content": {"seed": 2, "finetune": {"max_epochs": 4}}}))
    found = [(model.name, model.folder, model.notes) for model in models(outputs)]
    expected = ("teacher_abc", teacher, {"seed": 2, "finetune": {"max_epochs": 4}})
    assert found[:1] == ([expected] if is_taken else [])
    (run / "model").rmdir()
    assert [*models(outputs)] == []


def test_of_an_evaluation_the_right_rows_are_kept_and_other_rows_refused(tmp_path):
    from benchmarks.other_rows import kept, read_bits

    record = {
        "data": {"fingerprint": "f", "n_rows": {"validation": 9}},
        "scores": {"majority": {"accuracy": 0.6}, "model": {"accuracy": 7 / 9}},
        "weights": "w",
        "environment": {"git_commit": "1", "device": "a CPU", "python": "3"},
    }
    (tmp_path / "record.json").write_text(json.dumps(record))
    right = [True, False, *[True] * 6, False]
    lines = [f"{row},positive,{'positive,0.75' if is_right else 'negative,0.5'}" for row, is_right in enumerate(right)]
    lines[0] = "0,negative,negative,1.0"  # sure of it: the label has 1e-7 at least
    (tmp_path / "predictions.csv").write_text(
        "\n".join(["example_id,label,prediction,p_positive,p_negative", *(f"{line},0.0" for line in lines)])
    )
    found = kept(tmp_path, "f")
    assert read_bits(found.pop("right"), 9).tolist() == right
    assert found.pop("log_loss") == pytest.approx(-(math.log(1e-7) + 6 * math.log(0.75) + 2 * math.log(0.5)) / 9)
    assert found == {
        "n_rows": 9,
        "fingerprint": "f",
        "majority": 0.6,
        "score": 7 / 9,
        "weights": "w",
        "scored": {"git_commit": "1", "device": "a CPU"},
    }
    with pytest.raises(InputError, match=r"those that benchmarks\.make_data writes, got others \(f in place of g\)"):
        kept(tmp_path, "g")
