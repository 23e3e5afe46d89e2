"""``task=squad`` from the door to the saved model, on the made-up questions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.cases import cases
from tests.data.questions import question_columns


@pytest.fixture
def squad_overrides(tiny_overrides, tmp_path) -> list[str]:
    """Put the questions where the Hub's file names are expected; short windows, so that contexts need several."""
    folder = tmp_path / "questions"
    folder.mkdir()
    columns = question_columns()
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    kept = [override for override in tiny_overrides if not override.startswith(("task=", "data_dir=", "max_length="))]
    return [*kept, "task=squad", f"data_dir={folder}", "max_length=64", "task.stride=8"]


def run(compose_config, overrides: list[str]) -> tuple[Path, dict]:
    from cap.train import train

    cfg = compose_config(*overrides)
    train(cfg)
    return Path(cfg.output_dir), json.loads((Path(cfg.output_dir) / "record.json").read_text())


@pytest.mark.parametrize("pruning", cases(["movement", "structured"], daily=["movement"]))
def test_leaves_a_question_answering_model_and_its_scores(compose_config, squad_overrides, pruning):
    from transformers import AutoModelForQuestionAnswering

    levels = ["schedule.levels=[0.25,0.5]"] if pruning == "structured" else []
    run_dir, record = run(compose_config, [*squad_overrides, f"pruning={pruning}", "sparsity=0.5", *levels])
    assert record["status"] == "completed"
    assert record["metric"] == "f1"
    assert set(record["scores"]["pruned"]) == set(record["scores"]["teacher"]) == {"f1", "exact_match"}
    assert record["sparsity"]["prunable"] == pytest.approx(0.5, abs=1e-3)
    assert AutoModelForQuestionAnswering.from_pretrained(run_dir / "model").config.num_labels == 2


@pytest.mark.parametrize("form", ["pooled", "tokens"])
def test_windows_are_learned_from_hidden_states_and_from_snapshots(compose_config, squad_overrides, form):
    terms = ["distill.hidden_weight=1", f"distill.hidden={form}", "distill.snapshot_weight=1", "contrast=none"]
    run_dir, record = run(compose_config, [*squad_overrides, *terms])
    rows = list(csv.DictReader((run_dir / "logs" / "metrics.csv").read_text().splitlines()))
    assert record["status"] == "completed"
    assert {"loss/hidden", "loss/snapshot_kd"} <= {name for row in rows for name, value in row.items() if value}


@pytest.mark.ends
def test_retention_above_a_majority_class_is_null_with_a_reason(compose_config, pictures, squad_overrides):
    _, record = run(compose_config, [*squad_overrides, "pruning=magnitude"])
    assert record["retention_above_majority"] is None
    assert "majority class" in record["retention_above_majority_reason"]


def test_logs_every_term_but_learns_nothing_from_labels_by_contrast(compose_config, squad_overrides, tmp_path):
    def curves(weight: float) -> list[dict[str, str]]:
        folder = tmp_path / str(weight)
        weights = ["contrast.reduction=pairs", f"contrast.supervised_weight={weight}"]
        run(compose_config, [*squad_overrides, *weights, f"output_dir={folder}"])
        return list(csv.DictReader((folder / "logs" / "metrics.csv").read_text().splitlines()))

    first, second = curves(10.0), curves(0.0)
    assert {f"loss/{term}" for term in ("ce", "kd", "prc", "snc", "fic")} <= set(first[0])
    assert [row["loss/prc"] for row in first] == [row["loss/prc"] for row in second]
