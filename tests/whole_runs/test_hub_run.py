from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub_cache import hub_environment, make_hub_dataset, make_hub_model

pytestmark = pytest.mark.ends

COMMAND = "cap.train task=qqp sparsity=0.97 trainer.max_steps=5 finetune.max_steps=5"


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, "-m", *COMMAND.split()],
        cwd=folder,
        env=hub_environment(folder / "hub", OMP_NUM_THREADS="1", PYTHONPATH=str(root)),
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_readmes_command_runs_on_a_hub_cache_without_a_network(tiny_model, tmp_path):
    things = ["film", "book", "play", "song"] * 8
    columns = {
        "question1": [f"is the {thing} good" for thing in things],
        "question2": [f"is the {thing} very good" for thing in reversed(things)],
        "label": [0, 1] * 16,
        "idx": list(range(32)),
    }
    names = {"label": ["not_duplicate", "duplicate"]}
    make_hub_dataset(tmp_path / "hub", {"train": columns, "validation": columns}, class_names=names)
    make_hub_model(tmp_path / "hub", tiny_model)
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    (record_file,) = (tmp_path / "outputs" / "qqp" / "first_order-0.97").glob("*/record.json")
    record = json.loads(record_file.read_text())
    assert record["status"] == "completed"
    assert record["data"]["source"].startswith("hub nyu-mll/glue qqp at ")
    assert record["model"] == "google-bert/bert-base-uncased"
    assert abs(record["sparsity"]["prunable"] - 0.97) < 1e-4
    assert set(record["scores"]["pruned"]) == {"accuracy", "f1"}


def test_nothing_cached_and_no_network_is_one_message(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 2
    assert "hf download google-bert/bert-base-uncased" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs" / "qqp").exists()
