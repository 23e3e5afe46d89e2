"""What jobs write about themselves, and how processes of a grid are stopped."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[2]


def process_that_ended() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def make_grid(tmp_path):
    """Make a grid as the process of the command holds it."""

    def make(n_jobs: int = 0, *, owner: int | None = None):
        from cap.launch.grid_jobs import Grid

        planned = [[f"number={number}"] for number in range(n_jobs)]
        return Grid(tmp_path / ".grid" / "id", planned, owner=owner or os.getpid())

    return make


@pytest.fixture
def another_process():
    """Start a process that ends half a second after SIGTERM, with code 7."""
    answer = "lambda *_: (time.sleep(0.5), sys.exit(7))"
    code = f"import signal, sys, time; signal.signal(signal.SIGTERM, {answer}); print(flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_job_whose_process_died_is_lost(make_grid):
    from cap.launch.grid_jobs import Job

    grid = make_grid(2)
    grid.write(Job(0, ["number=0"], process=process_that_ended()))
    jobs = grid.close(is_stopped=False)
    assert [job.outcome for job in jobs] == ["lost", "not started"]
    assert "killed" in jobs[0].reason


def test_a_job_whose_process_died_in_a_stop_was_stopped(make_grid):
    from cap.launch.grid_jobs import Job

    grid = make_grid()
    grid.write(Job(0, [], process=process_that_ended()))
    assert [job.outcome for job in grid.close(is_stopped=True)] == ["stopped"]


def test_a_job_that_goes_on_is_not_called_lost(make_grid, another_process):
    from cap.launch.grid_jobs import Job
    from cap.launch.grid_table import exit_code

    grid = make_grid()
    grid.write(Job(0, [], process=another_process.pid))
    jobs = grid.close(is_stopped=False)
    assert [job.outcome for job in jobs] == ["running"]
    assert exit_code(jobs) == 1


def test_a_job_on_another_machine_is_not_called_lost(make_grid):
    from cap.launch.grid_jobs import Job

    grid = make_grid()
    grid.write(Job(0, [], host="node-7", process=process_that_ended()))
    (job,) = grid.close(is_stopped=False)
    assert (job.outcome, job.reason) == ("running", "goes on, or has died, on node-7")


def test_jobs_of_several_batches_are_listed_by_their_numbers(make_grid):
    from cap.launch.grid_jobs import Job

    grid = make_grid()
    for number in (10, 2, 0):
        grid.write(Job(number, [], outcome="completed"))
    assert [job.number for job in grid.close(is_stopped=False)] == [0, 2, 10]


def test_a_signal_to_the_command_is_passed_on_to_running_jobs_and_waits_for_them(make_grid, another_process):
    from cap.launch.grid_jobs import Job
    from cap.launch.grid_process import here

    grid = make_grid()
    grid.write(Job(0, [], process=another_process.pid))
    here.begin(grid, clutter=None)
    try:
        with pytest.raises(SystemExit) as left:
            signal.raise_signal(signal.SIGTERM)
    finally:
        here.close(is_stopped=True)
    assert left.value.code == 143
    assert another_process.poll() == 7


def test_a_job_whose_process_ends_meanwhile_keeps_no_signal_from_the_others(make_grid, another_process, monkeypatch):
    from cap.launch.grid_jobs import Grid, Job

    ended = Job(0, [], process=process_that_ended())
    jobs = [ended, Job(1, [], process=another_process.pid)]
    monkeypatch.setattr(Grid, "running_elsewhere", lambda grid: jobs)
    make_grid().ask_to_stop(signal.SIGTERM)
    assert another_process.wait(timeout=10) == 7


def test_a_process_that_ends_while_it_is_sent_a_signal_is_no_error(another_process, monkeypatch):
    from cap.launch.grid_jobs import Job

    def has_ended(process, number):
        raise psutil.NoSuchProcess(process.pid)

    monkeypatch.setattr(psutil.Process, "send_signal", has_ended)
    Job(0, [], process=another_process.pid).send_signal(signal.SIGTERM)
    assert another_process.poll() is None


def test_a_process_with_the_number_of_one_that_ended_is_not_its_job(make_grid, another_process):
    from cap.launch.grid_jobs import Job

    grid = make_grid()
    grid.write(Job(0, [], process=another_process.pid, process_began=1.0))
    grid.ask_to_stop(signal.SIGTERM)
    assert grid.running_elsewhere() == []
    assert [job.outcome for job in grid.close(is_stopped=True)] == ["stopped"]
    with pytest.raises(subprocess.TimeoutExpired):
        another_process.wait(timeout=1)


def test_jobs_are_told_to_stop_where_nothing_can_be_written(make_grid, another_process, caplog):
    from cap.launch.grid_jobs import Job

    grid = make_grid()
    grid.write(Job(0, [], process=another_process.pid))
    (grid.folder / "stop" / "in the way").mkdir(parents=True)
    grid.ask_to_stop(signal.SIGTERM)
    assert another_process.wait(timeout=10) == 7
    assert "jobs that have not begun" in caplog.text


def test_a_job_that_cannot_be_read_is_lost_and_hides_no_other(make_grid):
    from cap.launch.grid_jobs import Job

    grid = make_grid()
    grid.write(Job(0, [], outcome="completed"))
    (grid.folder / "1.json").write_text("{")
    jobs = grid.close(is_stopped=False)
    assert [job.outcome for job in jobs] == ["completed", "lost"]
    assert "cannot be read" in jobs[1].reason


def test_folder_of_grids_is_left_to_one_that_began_meanwhile(make_grid, monkeypatch):
    grid = make_grid(1)
    other = grid.folder.parent / "other"
    grid.folder.mkdir(parents=True)
    # Another grid begins after the look whether there is one.
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([]))
    other.mkdir()
    assert [job.outcome for job in grid.close(is_stopped=True)] == ["not started"]
    assert other.is_dir()


def test_folder_that_another_grid_removes_meanwhile_is_no_error(make_grid, monkeypatch):
    grid = make_grid()
    long_ago = grid.folder.parent / "long-ago"
    long_ago.mkdir(parents=True)
    os.utime(long_ago, (0, 0))
    gone = grid.folder.parent / "gone"
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([gone, long_ago]))
    grid.remove_older()
    assert not long_ago.exists()


def test_no_job_begins_in_a_grid_that_was_stopped(make_grid, monkeypatch):
    from cap.launch.grid import watched
    from cap.launch.grid_jobs import Job
    from cap.launch.grid_process import here

    grid = make_grid()
    grid.ask_to_stop(signal.SIGINT)
    monkeypatch.setattr(here, "grid", grid)
    monkeypatch.setattr(here, "job", Job(3, []))
    with pytest.raises(SystemExit) as left, watched(3, show_traceback=False):
        pytest.fail("the job began")
    assert left.value.code == 130
    assert [job.outcome for job in grid.jobs()] == ["not started"]


def test_lines_of_other_processes_begin_with_their_job(make_grid, monkeypatch):
    from cap.launch.grid import LineFormatter
    from cap.launch.grid_jobs import Job
    from cap.launch.grid_process import here

    record = logging.LogRecord("cap", logging.INFO, "", 0, "step 1", None, None)
    monkeypatch.setattr(here, "job", Job(3, []))
    monkeypatch.setattr(here, "grid", make_grid())
    assert LineFormatter("%(message)s").format(record) == "step 1"
    monkeypatch.setattr(here, "grid", make_grid(owner=1))
    assert LineFormatter("%(message)s").format(record) == "[job 3] step 1"


def test_a_line_that_cannot_be_written_does_not_end_the_job(make_grid, monkeypatch, caplog):
    from cap.launch.grid import watched
    from cap.launch.grid_jobs import Job
    from cap.launch.grid_process import here

    grid = make_grid()
    Path(grid.folder).parent.mkdir()
    Path(grid.folder).write_text("in the way")
    monkeypatch.setattr(here, "grid", grid)
    monkeypatch.setattr(here, "job", Job(3, []))
    with watched(3, show_traceback=False):
        began = True
    assert began
    assert "will not know all of job 3" in caplog.text


def test_only_what_a_grid_left_long_ago_is_removed(make_grid):
    grid = make_grid()
    long_ago, lately = grid.folder.parent / "long-ago", grid.folder.parent / "lately"
    long_ago.mkdir(parents=True)
    lately.mkdir()
    os.utime(long_ago, (0, 0))
    grid.remove_older()
    assert list(grid.folder.parent.iterdir()) == [lately]


def test_a_worker_ends_when_the_command_is_killed(make_grid):
    worker = """
import sys, time
from pathlib import Path
from cap.launch.grid_jobs import Grid, Job
from cap.launch.grid_process import here
here.grid, here.job = Grid(Path(sys.argv[1]), owner=int(sys.argv[2])), Job(0, [])
here.end_with_owner()
here.begin_job()
print(here.job.process, flush=True)
time.sleep(60)
"""
    command = """
import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2], str(os.getpid())])
time.sleep(60)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", command, worker, str(make_grid().folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        process = psutil.Process(int(owner.stdout.readline()))
    finally:
        owner.kill()
    owner.communicate(timeout=120)  # its worker holds the pipe until it ends, and writes to the disk before

    def has_ended() -> bool:
        # Where process 1 does not collect orphans, a zombie stays.
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

    deadline = time.monotonic() + 60
    while not has_ended() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert has_ended()
