"""The terms of ``distill.*`` from the door to the record."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest


def run(compose_config, overrides: list[str]) -> tuple[dict, list[dict[str, str]]]:
    from cap.train import train

    cfg = compose_config(*overrides)
    train(cfg)
    run_dir = Path(cfg.output_dir)
    curves = list(csv.DictReader((run_dir / "logs" / "metrics.csv").read_text().splitlines()))
    return json.loads((run_dir / "record.json").read_text()), curves


def values(curves: list[dict[str, str]], name: str) -> dict[int, float]:
    return {int(row["step"]): float(row[name]) for row in curves if row.get(name)}


@pytest.mark.parametrize("pruning", ["movement", "structured"])
@pytest.mark.parametrize("form", ["pooled", "tokens"])
def test_hidden_states_are_learned_from_in_every_step(compose_config, tiny_overrides, form, pruning):
    levels = ["schedule.levels=[0.25,0.5]"] if pruning == "structured" else []
    hidden = ["distill.hidden_weight=2", f"distill.hidden={form}", f"pruning={pruning}", *levels]
    record, curves = run(compose_config, [*tiny_overrides, "contrast=none", *hidden])
    assert record["status"] == "completed"
    assert len(values(curves, "loss/hidden")) == record["steps"]


@pytest.mark.parametrize("form", ["pooled", "tokens"])
def test_student_that_starts_as_its_teacher_has_nothing_to_learn_from_hidden_states(
    compose_config, tiny_overrides, form
):
    # Without dropout, and before the first weight is pruned.
    still = [
        "student_init=teacher",
        "freeze=[]",
        "contrast=none",
        "schedule.flat_before=0.5",
        "schedule.flat_after=0.1",
    ]
    hidden = [
        "distill.hidden_weight=1",
        f"distill.hidden={form}",
        "model.name_or_path=" + without_dropout(tiny_overrides),
    ]
    _, curves = run(compose_config, [*tiny_overrides, *still, *hidden])
    terms = values(curves, "loss/hidden")
    assert terms[min(terms)] == pytest.approx(0.0, abs=1e-5)
    assert max(terms.values()) > 1e-4


@pytest.mark.parametrize("form", ["pooled", "tokens"])
def test_numbers_are_learned_from_hidden_states_and_from_snapshots(compose_config, tiny_overrides, tmp_path, form):
    rows = [
        {"sentence1": f"the {thing} is {word}", "sentence2": "a very good book", "label": value}
        for thing in ("film", "play", "song")
        for word, value in (("good", 4.0), ("bad", 1.0), ("fine", 3.5), ("ugly", 0.5), ("great", 5.0), ("poor", 2.0))
    ]
    (tmp_path / "stsb").mkdir()
    for split in ("train", "validation"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "stsb" / f"{split}.jsonl").write_text(text, encoding="utf-8")
    kept = [override for override in tiny_overrides if not override.startswith(("task=", "data_dir="))]
    terms = ["distill.hidden_weight=1", f"distill.hidden={form}", "distill.snapshot_weight=1", "contrast=none"]
    record, curves = run(compose_config, [*kept, "task=stsb", f"data_dir={tmp_path / 'stsb'}", *terms])
    assert len(values(curves, "loss/hidden")) == record["steps"]
    assert 0 < len(values(curves, "loss/snapshot_kd")) < record["steps"]


def test_snapshots_of_a_run_without_contrast_are_taken_for_their_logits(compose_config, tiny_overrides):
    record, curves = run(
        compose_config, [*tiny_overrides, "contrast=none", "contrast.snapshot_count=1", "distill.snapshot_weight=1"]
    )
    steps = sorted(values(curves, "loss/snapshot_kd"))
    assert steps == list(range(record["steps"] // 2, record["steps"]))
    assert not any("No snapshot" in warning for warning in record["warnings"])


def test_run_too_short_for_a_snapshot_says_so_in_its_record(compose_config, tiny_overrides):
    short = ["trainer.max_steps=1", "distill.snapshot_weight=1", "pruning=magnitude"]
    record, _ = run(compose_config, [*tiny_overrides, *short])
    assert "No snapshot was taken: left out is loss/snc and loss/snapshot_kd." in record["warnings"]


def without_dropout(overrides: list[str]) -> str:
    import shutil

    source = Path(next(o.partition("=")[2] for o in overrides if o.startswith("model.name_or_path=")))
    target = Path(next(o.partition("=")[2] for o in overrides if o.startswith("cache_dir="))).parent / "without_dropout"
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (target / "config.json").write_text(json.dumps(config | none))
    return str(target)
