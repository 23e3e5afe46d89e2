"""What one process knows of a grid: whether it is the command, which job it runs, and how it is stopped."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from cap.base.errors import InputError
from cap.base.signals import STOP_SIGNALS
from cap.launch.grid_jobs import Grid, Job, Outcome
from cap.launch.grid_table import show
from cap.launch.processes import SECONDS_TO_SAVE

_ONE_REQUEST_SECONDS = 2.0  # a terminal and a launcher may both pass on one key press
_POLL_SECONDS = 0.2
_PARENT_SECONDS = 1.0

log = logging.getLogger("cap.launch.grid")


class ThisProcess:
    """What this process knows of a grid: whether it owns one, and which job it runs."""

    def __init__(self) -> None:
        self.grid: Grid | None = None
        self.job: Job | None = None
        self.noted: Outcome = "completed"  # how the job will have ended; on disk it runs until then
        self.error: InputError | None = None
        self._clutter: Path | None = None
        self._handlers: dict[int, Any] = {}
        self._asked: float | None = None
        self._started = 0.0
        self._is_watching = False

    @property
    def is_worker(self) -> bool:
        """Whether a launcher made this process, beside others."""
        return self.grid is not None and self.grid.owner != os.getpid()

    @property
    def is_running(self) -> bool:
        """Whether a job runs in this process."""
        return self.job is not None and self.job.outcome == "running"

    @property
    def has_begun(self) -> bool:
        """Whether a job of this process's grid has begun."""
        return self.grid is not None and bool(self.grid.jobs())

    def begin(self, grid: Grid, *, clutter: Path | None) -> None:
        """Own a grid.

        Args:
            grid: It.
            clutter: A file that is removed at its end.
        """
        self.grid, self.job, self.error, self._clutter, self._asked = grid, None, None, clutter, None
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}

    def end_with_owner(self) -> None:
        """Save and end when the multirun's process dies: workers that went on would be in the way of the next one."""
        grid = self.grid
        if grid is None or self._is_watching or os.getppid() != grid.owner:
            return  # submitit's processes are meant to outlive the command

        def watch() -> None:
            while os.getppid() == grid.owner:
                time.sleep(_PARENT_SECONDS)
            log.error("the process of the grid is gone; this one ends, too")
            grid.ask_to_stop(signal.SIGTERM)  # this job, those beside it, and no further one
            started = time.monotonic()
            while self.is_running and time.monotonic() - started < SECONDS_TO_SAVE:
                time.sleep(_POLL_SECONDS)
            os._exit(128 + signal.SIGTERM)

        self._is_watching = True
        threading.Thread(target=watch, name="owner", daemon=True).start()

    def begin_job(self) -> None:
        """Say that the job runs, unless the grid was stopped before it could."""
        if self.grid is None or self.job is None:
            return
        self._started = time.monotonic()
        self.write()
        number = self.grid.stop_signal()
        if number is not None:
            self.end("not started")
            raise SystemExit(128 + number)

    def end(self, outcome: Outcome | None = None, *, reason: str | None = None, score: object = None) -> None:
        """Write down how the job ended; without an outcome it is complete, in the way that was noted."""
        grid, job = self.grid, self.job
        if grid is None or job is None:
            return
        job.outcome, job.reason = outcome or self.noted, reason
        if outcome != "not started":
            job.seconds = time.monotonic() - self._started
        if isinstance(score, int | float) and math.isfinite(score):
            job.score = float(score)
        self.write()
        if job.is_good:
            n_ended = sum(other.outcome != "running" for other in grid.jobs())
            of_all = f" of {len(grid.planned)}" if grid.planned else ""
            log.info("job %d %s; %d%s ended", job.number, job.outcome, n_ended, of_all)

    def write(self) -> None:
        """Write down what is known of the job; that it cannot be written is no reason to end it."""
        if self.grid is None or self.job is None:
            return
        try:
            self.grid.write(self.job)
        except OSError as error:
            log.warning("the list of jobs at the end will not know all of job %d: %s", self.job.number, error)

    def close(self, *, is_stopped: bool) -> list[Job]:
        """Show the jobs of this process's grid and return them; nothing if it has none, or none of them began."""
        if self.grid is None or self.is_worker:
            return []
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        jobs = self.grid.close(is_stopped=is_stopped)
        if self._clutter is not None:
            self._clutter.unlink(missing_ok=True)
        self.grid, self._handlers = None, {}
        if all(job.outcome == "not started" for job in jobs):
            return []
        show(jobs)
        return jobs

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """End the grid; jobs in other processes may write their checkpoints first."""
        now, last = time.monotonic(), self._asked
        if last is not None and now - last < _ONE_REQUEST_SECONDS:
            return
        self._asked = now
        if self.grid is not None and last is None:  # a second signal waits for nothing
            self.grid.ask_to_stop(number)
            if n_running := len(self.grid.running_elsewhere()):
                log.warning("%s: %d running jobs are asked to save and end", signal.Signals(number).name, n_running)
            while self.grid.running_elsewhere() and time.monotonic() - now < SECONDS_TO_SAVE:
                time.sleep(_POLL_SECONDS)
        raise SystemExit(128 + number)


here = ThisProcess()
"""A process belongs to one grid at a time, and runs one job of it at a time."""

__all__ = ["ThisProcess", "here"]
