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


def test_stopped_run_ends_with_143_and_is_finished_in_the_same_wandb_run(tiny_overrides, tmp_path):
    overrides, offline = [*tiny_overrides, "logger=wandb"], {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    stopped = run(overrides, module="tests.whole_runs.stopped_run", **offline)
    assert stopped.returncode == 143, stopped.stderr
    assert stopped.stderr.splitlines()[-1] == "error: stopped by SIGTERM"
    done = run([*overrides, "resume=true"], **offline)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))
    assert record["resumed_at"] == [3]
    parts = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert [path.name.rpartition("-")[2] for path in parts] == [record["wandb_id"]] * 2
    contents = [next(path.glob("run-*.wandb")).read_bytes() for path in parts]
    assert all(b"first_order" in content for content in contents)  # the resolved configuration
    assert [b"final/accuracy" in content for content in contents] == [False, True]
    assert all(b"loss/total" in content for content in contents)  # the curves


def test_tensorboard_run_writes_its_curves_and_scores(compose_config, tiny_overrides, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from cap.train import train

    score = train(compose_config(*tiny_overrides, "logger=tensorboard"))
    (folder,) = {file.parent for file in (tmp_path / "run").rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    assert len(events.Scalars("loss/total")) == 8
    assert [event.value for event in events.Scalars("final/accuracy")] == [pytest.approx(score)]
