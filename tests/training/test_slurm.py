"""Runs below SLURM: several tasks that each run for themselves, and one run of several."""

from __future__ import annotations

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

VARIABLES = ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_JOB_NAME", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")


@pytest.fixture
def task(monkeypatch):
    """Be the third of eight tasks, as Lightning sees it when it is imported there."""
    for name in (*VARIABLES, "TORCHELASTIC_RUN_ID", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_LOCALID": "3", "SLURM_JOB_NAME": "a"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 3)


@pytest.mark.parametrize("devices", [1, "auto", [2]], ids=str)
def test_a_task_that_runs_for_itself_is_no_process_of_another_run(task, devices):
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment

    from cap.training.trainer import environment

    (found,) = environment(devices)
    assert isinstance(found, LightningEnvironment)
    assert rank_zero_only.rank == 3  # it was only asked


def test_a_task_of_several_is_what_slurm_says(task, monkeypatch):
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    from cap.training.trainer import environment

    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "8")
    for devices, n_nodes in ((8, 1), ([0, 1], 1), (1, 8)):
        (found,) = environment(devices, n_nodes)
        assert isinstance(found, SLURMEnvironment)
        assert not found.auto_requeue
    assert rank_zero_only.rank == 3


def test_a_task_that_runs_for_itself_writes_its_curves(task, tmp_path):
    from cap.training.trainer import build_trainer

    trainer = build_trainer({"accelerator": "cpu", "enable_progress_bar": False}, run_dir=tmp_path)
    trainer.logger.log_metrics({"loss/total": 1.0}, step=1)
    trainer.logger.save()
    assert "loss/total" in (tmp_path / "logs" / "metrics.csv").read_text()
    assert rank_zero_only.rank == 0


def test_what_asks_lightning_before_a_run_works_in_such_a_task(task, compose_config, tiny_overrides):
    # Lightning refuses these variables as an allocation without --ntasks-per-node: nothing that it shall start.
    from cap.config.check import check
    from cap.training.ready import make_ready
    from cap.training.trainer import idle_trainer

    assert make_ready(check(compose_config(*tiny_overrides))).pruner is not None
    assert idle_trainer("cpu").world_size == 1
    assert rank_zero_only.rank == 3
