"""Models of the bake-off on rows that nothing was chosen by."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

LIST = """
defaults: {seeds: [1, 2], task: sst2_8k, pruning: magnitude, sparsity: 0.9, contrast: none}
blocks:
  - {name: main, priority: 1}
  - {name: change, priority: 1, shown: ablation, variants: {no rewind: [a=1]}}
  - {name: contrast, priority: 1, contrast: cap}
  - {name: type, priority: 1, pruning: random}
"""
AGAIN = """
defaults: {seeds: [1, 2], task: sst2_8k, pruning: magnitude, sparsity: 0.9, contrast: none}
blocks: [{name: again, priority: 1, variants: {the recipe again: []}}]
"""
SCORES = {
    "sst2_8k_magnitude_0.9_none_the-recipe-again_seed1": 0.80,
    "sst2_8k_magnitude_0.9_none_the-recipe-again_seed2": 0.82,
    "sst2_8k_magnitude_0.9_none_no-rewind_seed1": 0.81,
    "sst2_8k_magnitude_0.9_none_no-rewind_seed2": 0.84,
    "sst2_8k_magnitude_0.9_cap_seed1": 0.85,
    "sst2_8k_random_0.9_none_seed2": 0.72,
}


def test_the_table_pairs_runs_of_one_machine_by_seed(tmp_path):
    from benchmarks.bake_off.cells import read_cells
    from benchmarks.bake_off.summary import read_arms
    from benchmarks.other_rows import other_rows_table

    arms = []
    for name, text in (("list", LIST), ("again", AGAIN)):
        (tmp_path / f"{name}.yaml").write_text(text)
        arms.append(read_arms(read_cells(tmp_path / f"{name}.yaml"), tmp_path / "none")[0])
    records = tmp_path / "records"
    assert other_rows_table(*arms, records) == "No cell has a record yet."
    records.mkdir()
    for cell, score in SCORES.items():
        content = {"cell": cell, "seed": int(cell[-1]), "score": score}
        (records / f"{cell}.json").write_text(json.dumps(content))
    assert other_rows_table(*arms, records).splitlines()[2:] == [
        "| magnitude, 0.9 | all three | 0.8500 | \N{EN DASH} | 1 |",  # without a recipe that has contrast, too
        "| magnitude, no rewind, 0.9 | none | 0.8250 ± 0.0212 | "
        "+1.50 ± 0.50 points (2 seeds, 3.0 standard errors, not clear below 12.7) | 2 |",
        "| magnitude, the recipe again, 0.9 | none | 0.8100 ± 0.0141 | \N{EN DASH} | 2 |",
        "| random, 0.9 | none | 0.7200 | -10.00 points (one seed, from which nothing can be concluded) | 1 |",
    ]


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
    from benchmarks.other_rows import finished_models

    run: Path = tmp_path / "cell" / "key"
    (run / "model").mkdir(parents=True)
    record = {"status": "completed", "data": {"fingerprint": FINGERPRINT}, "config": {"data": {"unlabelled": None}}}
    (run / "record.json").write_text(json.dumps(record | changes))
    assert [*finished_models(tmp_path)] == ([("cell", run)] if is_taken else [])
    (run / "model").rmdir()
    assert [*finished_models(tmp_path)] == []
