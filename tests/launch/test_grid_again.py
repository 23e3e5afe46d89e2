"""A grid that is started again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ends

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_grid(tiny_overrides, tmp_path):
    """Run the same two jobs, each in the folder of its configuration."""
    shared = [override for override in tiny_overrides if not override.startswith("output_dir")]
    short = ["contrast=none", "distill=none", "teacher=none", "trainer.max_steps=4", "sparsity=0.5,0.7"]

    def run(module: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", module, "-m", *shared, *short, f"hydra.sweep.dir={tmp_path / 'grid'}"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


def status(tmp_path: Path, sparsity: str) -> tuple[str, list[int] | None, int]:
    """Read how a job ended, where it went on, and when that was written."""
    (path,) = tmp_path.glob(f"grid/sst2/first_order-{sparsity}/*/record.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    return record["status"], record.get("resumed_at"), path.stat().st_mtime_ns


def test_repeated_grid_finishes_what_is_not_complete_and_leaves_what_is(run_grid, tmp_path):
    stopped = run_grid("tests.whole_runs.stopped_run")
    assert stopped.returncode == 143, stopped.stderr
    assert status(tmp_path, "0.5")[0] == "interrupted"
    again = run_grid("cap.train")
    assert again.returncode == 0, again.stderr
    assert "2 jobs: 1 resumed, 1 completed" in again.stderr
    first = status(tmp_path, "0.5")
    assert first[:2] == ("completed", [3])
    assert status(tmp_path, "0.7")[:2] == ("completed", None)
    assert "2 jobs: 2 skipped" in run_grid("cap.train").stderr
    assert status(tmp_path, "0.5") == first
