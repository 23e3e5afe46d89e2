"""What the jobs of a grid write down about themselves, each in a file of its own: all that a killed process leaves."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import psutil  # type: ignore[import-untyped]

from cap.base.files import atomic_file, read_json, write_json

Outcome = Literal["completed", "skipped", "resumed", "failed", "stopped", "lost", "running", "not started"]
_GOOD = ("completed", "skipped", "resumed")
_STOP = "stop"
_KEPT_SECONDS = 30 * 24 * 3600
# Two readings of one process's beginning differ when the clock is set in between.
_CLOCK_SECONDS = 10.0

log = logging.getLogger("cap.launch.grid")


@dataclass
class Job:
    """What is known of one job of a grid.

    Args:
        number: From 0, as Hydra counts.
        overrides: What it was told on the command line.
        outcome: How it ended; ``resumed`` is completed, after an earlier attempt had been interrupted.
        folder: The run's.
        reason: Why it did not end well, in one line.
        is_bad_input: Whether the reason is something that the user gave.
        score: What it returned.
        seconds: From its start to its end.
        host: The machine that ran it.
        process: The process that ran it.
        process_began: When that process began, in seconds since 1970, as its number may be another one's later on; 0 if
            it had ended before this could be read. None looks.
    """

    number: int
    overrides: list[str]
    outcome: Outcome = "running"
    folder: str | None = None
    reason: str | None = None
    is_bad_input: bool = False
    score: float | None = None
    seconds: float | None = None
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)
    process_began: float | None = None

    def __post_init__(self) -> None:
        if self.process_began is None:
            try:
                self.process_began = float(psutil.Process(self.process).create_time())
            except psutil.Error:
                self.process_began = 0.0

    @property
    def is_good(self) -> bool:
        """Whether its run is complete."""
        return self.outcome in _GOOD

    @property
    def is_alive(self) -> bool:
        """Whether it runs in a process of this machine."""
        return self._running_process() is not None

    def send_signal(self, number: int) -> None:
        """Send a signal to its process; nothing happens if it has ended meanwhile."""
        with suppress(psutil.Error):
            process = self._running_process()
            if process is not None:
                process.send_signal(number)

    def _running_process(self) -> psutil.Process | None:
        if self.outcome != "running" or self.host != socket.gethostname():
            return None
        try:
            process = psutil.Process(self.process)
            is_the_one = abs(process.create_time() - (self.process_began or 0.0)) < _CLOCK_SECONDS
            return process if is_the_one and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


@dataclass
class Grid:
    """The jobs of one command; travels to the processes that run them.

    Args:
        folder: Where each job writes what became of it.
        planned: What each job is told, by its number, as far as that is known beforehand; sweepers that choose from
            results do not know.
        owner: The process of the command.
    """

    folder: Path
    planned: list[list[str]] = field(default_factory=list)
    owner: int = field(default_factory=os.getpid)

    def write(self, job: Job) -> None:
        """Write down what is known of a job."""
        write_json(self.folder / f"{job.number}.json", asdict(job))

    def jobs(self) -> list[Job]:
        """Read what the jobs have written so far."""
        files = [file for file in self.folder.glob("*.json") if file.stem.isdigit()]  # not those being written
        return [_read(file) for file in files]

    def running_elsewhere(self) -> list[Job]:
        """List the jobs that run in other processes of this machine."""
        return [job for job in self.jobs() if job.process != self.owner and job.is_alive]

    def ask_to_stop(self, number: int) -> None:
        """Let no further job begin, and pass a signal on to those that run in other processes of this machine.

        Args:
            number: Of the signal.
        """
        try:
            with atomic_file(self.folder / _STOP) as temporary:
                temporary.write_text(str(number), encoding="utf-8")
        except OSError as error:  # no reason to let those go on that run
            log.warning("jobs that have not begun will not know that they must not: %s", error)
        for job in self.running_elsewhere():
            job.send_signal(number)

    def stop_signal(self) -> int | None:
        """Return the signal with which the grid was asked to stop; None if it was not."""
        path = self.folder / _STOP
        return int(path.read_text(encoding="utf-8")) if path.exists() else None

    def remove_older(self) -> None:
        """Remove what grids left that were killed long ago."""
        with suppress(OSError):  # another grid may be removing the parent, or one of them
            for folder in self.folder.parent.glob("*"):
                with suppress(OSError):
                    if time.time() - folder.stat().st_mtime > _KEPT_SECONDS:
                        shutil.rmtree(folder, ignore_errors=True)

    def close(self, *, is_stopped: bool) -> list[Job]:
        """Judge the jobs that wrote no end, and remove the folder.

        Args:
            is_stopped: Whether somebody stopped the grid.

        Returns:
            All jobs that began or were planned, in their order.
        """
        jobs = {job.number: job for job in self.jobs()}
        for job in jobs.values():
            if job.outcome != "running" or (job.is_alive and job.process != self.owner):
                continue
            if job.host != socket.gethostname():
                job.reason = f"goes on, or has died, on {job.host}"
            elif is_stopped:
                job.outcome, job.reason = "stopped", "its process was ended"
            else:
                job.outcome, job.reason = "lost", "its process was killed (out of memory?) or ended without a word"
        for number, overrides in enumerate(self.planned):
            jobs.setdefault(number, Job(number, overrides, outcome="not started"))
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # holds other grids, or one of them was faster
            self.folder.parent.rmdir()
        return [jobs[number] for number in sorted(jobs)]


def _read(file: Path) -> Job:
    try:
        return Job(**read_json(file))
    except (OSError, ValueError, TypeError) as error:  # the other jobs and the exit code must still be told
        return Job(int(file.stem), [], outcome="lost", reason=f"what it wrote cannot be read: {error}")


__all__ = ["Grid", "Job", "Outcome"]
