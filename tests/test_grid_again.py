"""A grid that is started again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def run_grid(tiny_overrides, tmp_path):
    """Run the same two jobs, each in the folder of its configuration."""
    shared = [override for override in tiny_overrides if not override.startswith("output_dir")]
    short = ["contrast=none", "distill=none", "teacher=none", "trainer.max_steps=2", "sparsity=0.5,0.7"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cap.train", "-m", *shared, *short, f"hydra.sweep.dir={tmp_path / 'grid'}"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


def test_repeated_grid_leaves_what_is_complete_and_finishes_what_is_not(run_grid, tmp_path):
    run_grid()
    half, most = (tmp_path.glob(f"grid/sst2/soft_movement-{sparsity}/*/record.json") for sparsity in ("0.5", "0.7"))
    complete, interrupted = next(half), next(most)
    written = complete.stat().st_mtime_ns
    record = json.loads(interrupted.read_text(encoding="utf-8"))
    interrupted.write_text(json.dumps({**record, "status": "interrupted"}), encoding="utf-8")
    again = run_grid()
    assert again.returncode == 0, again.stderr
    summary = next(line for line in again.stderr.splitlines() if "2 jobs: " in line)
    assert "1 skipped" in summary
    assert "1 resumed" in summary
    assert complete.stat().st_mtime_ns == written
    assert json.loads(interrupted.read_text(encoding="utf-8"))["status"] == "completed"
