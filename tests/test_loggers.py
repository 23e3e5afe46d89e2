from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(overrides: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cap.train", *overrides],
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
    assert b"soft_movement" in content  # the resolved configuration
    assert b"final/accuracy" in content


def test_tensorboard_run_writes_its_events(tiny_overrides, tmp_path):
    done = run([*tiny_overrides, "logger=tensorboard"])
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))
