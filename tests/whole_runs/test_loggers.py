from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ends

ROOT = Path(__file__).parents[2]


def run(overrides: list[str], *, module: str = "cap.train", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *overrides],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_wandb_offline_run_is_finished_and_holds_the_configuration(tiny_overrides, tmp_path):
    done = run([*tiny_overrides, "logger=wandb"], WANDB_MODE="offline", WANDB_SILENT="true")
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    content = written.read_bytes()
    assert b"first_order" in content  # the resolved configuration
    assert b"final/accuracy" in content


def test_stopped_run_ends_with_143_and_goes_on_in_the_same_wandb_run(tiny_overrides, tmp_path):
    overrides, offline = [*tiny_overrides, "logger=wandb"], {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    stopped = run(overrides, module="tests.whole_runs.stopped_run", **offline)
    assert stopped.returncode == 143, stopped.stderr
    assert stopped.stderr.splitlines()[-1] == "error: stopped by SIGTERM"
    done = run([*overrides, "resume=true"], **offline)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))
    assert record["resumed_at"] == [3]
    names = sorted(path.name.rpartition("-")[2] for path in (tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert names == [record["wandb_id"]] * 2


def test_tensorboard_run_writes_its_events(tiny_overrides, tmp_path):
    done = run([*tiny_overrides, "logger=tensorboard"])
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
