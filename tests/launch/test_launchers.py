"""Grids as users start them: real processes, through Hydra's launchers."""

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
    """Run ``python -m cap.train -m`` on the tiny model, each job in a folder of its number."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    shared = [override for override in tiny_overrides if not override.startswith("output_dir")]
    # No teacher and no contrast: what is tested is that jobs run and end, and processes take long to start.
    short = ["contrast=none", "distill=none", "teacher=none", "trainer.max_steps=2"]
    folders = [f"hydra.sweep.dir={tmp_path / 'grid'}", "hydra.sweep.subdir=${hydra.job.num}"]

    def run(*overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cap.train", "-m", *shared, *short, *folders, *overrides],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


def statuses(folder: Path) -> dict[str, str]:
    """Read how each job's run ended, by its folder."""
    return {file.parent.name: json.loads(file.read_text())["status"] for file in folder.glob("*/record.json")}


def test_joblib_runs_two_jobs_at_once_and_lists_the_one_that_fails(run_grid, tmp_path):
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "logger=wandb"]
    done = run_grid("sparsity=0.5,97,0.7", *joblib, WANDB_MODE="offline", WANDB_SILENT="true")
    assert statuses(tmp_path / "grid") == {"0": "completed", "2": "completed"}, done.stderr
    assert done.returncode == 2
    assert "3 jobs: 2 completed, 1 failed" in done.stderr
    assert "job 1 (sparsity=97) failed: sparsity is the fraction of weights pruned" in done.stderr
    assert "[job 2] " in done.stderr
    assert "Traceback" not in done.stderr
    assert "batch_size=1," in done.stdout  # jobs that are skipped must not pile the others up in one process
    runs = sorted((tmp_path / "grid").glob("*/wandb/offline-run-*/run-*.wandb"))
    assert [run.parts[-4] for run in runs] == ["0", "2"]
    assert all(b"final/accuracy" in run.read_bytes() for run in runs)


def test_submitits_local_executor_runs_a_job(run_grid, tmp_path):
    done = run_grid("sparsity=0.5", "hydra/launcher=submitit_local")
    assert statuses(tmp_path / "grid") == {"0": "completed"}, done.stderr
    assert done.returncode == 0
    assert "1 jobs: 1 completed" in done.stderr
