from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Run two processes of the stub."""
    from cap.launch.processes import run_processes

    monkeypatch.chdir(ROOT)
    return lambda mode: run_processes(
        2, [mode, str(tmp_path)], module="tests.launch.rank_stub", visible_devices=["made-up-0", "made-up-1"]
    )


def test_every_process_knows_its_rank_and_the_devices(start, tmp_path):
    start("well")
    assert {path.name: path.read_text() for path in tmp_path.glob("*.txt")} == {
        "0.txt": "2 made-up-0,made-up-1",
        "1.txt": "2 made-up-0,made-up-1",
    }


def test_environment_and_handlers_are_as_they_were_afterwards(start, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_SIGNALS_TO_HANDLE", raising=False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = dict(os.environ), [signal.getsignal(number) for number in numbers]
    start("well")
    assert (dict(os.environ), [signal.getsignal(number) for number in numbers]) == before


REFUSED = {
    "several machines without a launcher": ({}, (4, 2), "trainer.num_nodes=2 needs a launcher"),
    "another number than the launcher's": ({"RANK": "0", "WORLD_SIZE": "2"}, (4, 1), "started 2 processes, but"),
    "one process of several": ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 1), "but trainer.devices is 1; set"),
}


@pytest.mark.parametrize(("variables", "asked", "message"), REFUSED.values(), ids=REFUSED)
def test_processes_that_the_launcher_and_the_configuration_disagree_on_are_refused(
    monkeypatch, variables, asked, message
):
    from cap.base.errors import InputError
    from cap.launch.processes import check_processes

    for name, value in {**variables, **({"TORCHELASTIC_RUN_ID": "made-up"} if variables else {})}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=message):
        check_processes(*asked)


FIRST = {
    "torchrun": ({"TORCHELASTIC_RUN_ID": "a", "RANK": "1", "LOCAL_RANK": "0"}, False),
    "Lightning's variables": ({"LOCAL_RANK": "1"}, False),
    "Lightning's variables on another machine": ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
    "SLURM": ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_NAME": "a", "SLURM_PROCID": "1"}, False),
    "the first of SLURM": ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_NAME": "a", "SLURM_PROCID": "0"}, True),
    "nobody": ({}, True),
}


@pytest.mark.parametrize(("variables", "expected"), FIRST.values(), ids=FIRST)
def test_one_process_of_several_is_the_first(monkeypatch, variables, expected):
    from cap.launch.processes import is_first_process

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is expected


def failures() -> dict[str, tuple[str, type[Exception], str]]:
    from cap.base.errors import InputError, RunError, StoppedError

    return {
        "killed": ("killed", RunError, "process 1 of this run was killed by signal 9, .* resume=true to continue"),
        "bad input": ("bad input", InputError, "the error of the first process"),
        "stopped": ("stopped", StoppedError, "stopped by SIGTERM"),
    }


# What the system says, what SLURM says, what two processes get each.
THREADS = {
    "all cores": (range(64), None, "32"),
    "a few of the machine's cores": (range(8), None, "4"),
    "SLURM without binding": (range(64), "6", "3"),
    "SLURM with fewer cores bound than granted": (range(4), "16", "2"),
    "one core": (range(1), "1", "1"),
    "nothing that is a number": (range(8), "all", "4"),
}


@pytest.mark.parametrize(("bound", "granted", "expected"), THREADS.values(), ids=THREADS)
def test_processes_share_the_cores_that_this_one_may_use(monkeypatch, bound, granted, expected):
    from cap.launch import processes

    seen = []
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(bound), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if granted is not None:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
    monkeypatch.setattr(
        "torch.distributed.launcher.api.elastic_launch",
        lambda config, command: lambda *arguments: seen.append(os.environ["OMP_NUM_THREADS"]),
    )
    processes.run_processes(2, [])
    assert seen == [expected]


def test_who_waits_for_a_schedulers_warning_is_told_when_all_processes_have_ended(monkeypatch):
    from torch.distributed.elastic.multiprocessing.api import SignalException

    from cap.base.errors import StoppedError
    from cap.launch.processes import run_processes

    configs, told = [], []

    def stopped(*arguments):
        raise SignalException("told to end", sigval=signal.SIGUSR2)

    monkeypatch.setattr(
        "torch.distributed.launcher.api.elastic_launch", lambda config, command: configs.append(config) or stopped
    )
    before = signal.signal(signal.SIGUSR2, lambda number, frame: told.append(number))
    try:
        with pytest.raises(StoppedError, match="stopped by SIGUSR2"):
            run_processes(2, [])
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert configs[0].signals_to_handle == "SIGTERM,SIGINT,SIGUSR1,SIGUSR2"
    assert told == [signal.SIGUSR2]


def test_cores_are_the_machines_where_the_system_does_not_tell_which_are_bound(monkeypatch):
    from cap.launch.processes import n_usable_cores

    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    assert n_usable_cores() == 12


@pytest.mark.ends
@pytest.mark.parametrize("mode", ["killed", "bad input", "stopped"])
def test_process_that_ends_badly_ends_the_others_and_says_why(start, tmp_path, mode):
    _, kind, message = failures()[mode]
    with pytest.raises(kind, match=message):
        start(mode)
    assert not [file for file in tmp_path.glob("*.process") if psutil.pid_exists(int(file.read_text()))]


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, False),
        ({"LOCAL_RANK": "0"}, True),
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_JOB_NAME": "a"}, True),
        # Only srun starts the tasks; what a batch script calls is alone.
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "a", "SLURM_PROCID": "0"}, False),
    ],
    ids=["a command", "a launcher", "srun", "a batch script"],
)
def test_process_knows_whether_a_launcher_started_it(monkeypatch, variables, expected):
    from cap.launch.processes import is_one_of_many

    for name in ("LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_one_of_many() is expected


SRUN = {"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "4"}
LAUNCHED = {
    "nobody": {},
    "torchrun": {"TORCHELASTIC_RUN_ID": "a", "LOCAL_RANK": "0"},
    "srun": {**SRUN, "SLURM_JOB_NAME": "a"},
    "srun without a name": SRUN,
    "a shell of SLURM": {**SRUN, "SLURM_JOB_NAME": "bash"},
    "an interactive job": {**SRUN, "SLURM_JOB_NAME": "interactive"},
    "one task": {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_JOB_NAME": "a"},
    "Lightning": {"LOCAL_RANK": "1"},
}


@pytest.mark.parametrize("variables", LAUNCHED.values(), ids=LAUNCHED)
def test_launchers_are_told_as_lightning_tells_them(monkeypatch, variables):
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    from cap.launch.processes import is_one_of_many

    for name in ("LOCAL_RANK", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_JOB_NAME", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    slurm = SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1
    by_lightning = LightningEnvironment().creates_processes_externally
    assert is_one_of_many() == (TorchElasticEnvironment.detect() or slurm or by_lightning)


@pytest.mark.ends
def test_two_processes_prune_one_student_and_find_a_run_that_others_complete_meanwhile(tiny_overrides, tmp_path):
    from cap.base.files import locked

    devices = ["trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=1", "keep_levels=[0.25]"]
    command = [sys.executable, "-m", "cap.train", *tiny_overrides, *devices]
    settings = {"cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "text": True}
    run_dir, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    done = subprocess.run([*command, "-m"], capture_output=True, timeout=240, **settings)  # in a job of a multirun
    assert done.returncode == 0, done.stderr
    record = json.loads((run_dir / "record.json").read_text(encoding="utf-8"))
    # 32 rows, 8 for each of two processes.
    assert (record["status"], record["steps"]) == ("completed", 2)
    assert [line["folder"] for line in record["kept"]] == ["levels/0.25"]
    assert done.stderr.count("validation accuracy") == 1
    run_dir.rename(elsewhere)
    before = {path.name: path.read_bytes() for path in elsewhere.rglob("*") if path.is_file()}
    lock = locked(run_dir)
    lock.acquire()
    again = [*command, "resume=true"]
    with subprocess.Popen(again, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **settings) as waiting:
        next(line for line in waiting.stderr if "another process" in line)
        run_dir.rmdir()  # made to see whether it can be written
        elsewhere.rename(run_dir)
        lock.release()
        said = waiting.stderr.read()
    assert waiting.returncode == 0, said
    assert "nothing to do" in said
    assert {path.name: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_process_ends_when_the_one_that_watches_it_is_gone(tmp_path):
    program = (
        "import logging, time; from cap.launch.processes import end_with_parent\n"
        "logging.basicConfig(); end_with_parent(); time.sleep(60)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "CAP_PARENT": str(2**22 + 1)},  # no process bears such a number
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 1
    assert "the process that started this one is gone" in done.stderr
