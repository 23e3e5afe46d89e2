"""A grid of runs, ``python -m cap.train -m ...``: one that fails stops no other, and the end lists what became of each.

Jobs run in this process or, through a launcher, in others; what they write into the grid's folder is read at the end.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import TaskFunction
from omegaconf import DictConfig, read_write
from omegaconf.errors import OmegaConfBaseException

from cap.base.errors import InputError, RunError, StoppedError
from cap.base.files import ensure_writable
from cap.launch.grid_jobs import Grid, Job, Outcome
from cap.launch.grid_plan import as_typed, planned, refused
from cap.launch.grid_process import here
from cap.launch.grid_table import exit_code, settings

_N_REFUSED = 3  # jobs that are named beforehand
_LONGEST_REASON = 400  # characters; the rest stands in the record
_BAD_INPUT = (InputError, HydraException, OmegaConfBaseException)

log = logging.getLogger(__name__)


class GridCallback(Callback):
    """Let Hydra say when a grid and each of its jobs begin and end; ``conf/train.yaml`` names it.

    Args:
        check: Raises an ``InputError`` for a composed configuration that cannot work; None looks at none beforehand.
    """

    def __init__(self, check: Callable[[DictConfig], object] | None = None) -> None:
        self.grid: Grid | None = None
        self._check = check

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Make the grid's folder, and listen for signals from here on."""
        folder = Path(config.hydra.sweep.dir).resolve()
        self.grid = Grid(folder / ".grid" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{os.getpid()}")
        is_own_folder = any(item.startswith("hydra.sweep.dir=") for item in as_typed(config.hydra.overrides.hydra))
        # Hydra's own note; in the folder of all runs the next grid would only overwrite it.
        here.begin(self.grid, clutter=None if is_own_folder else folder / "multirun.yaml")
        self.grid.remove_older()
        try:
            ensure_writable(self.grid.folder, "hydra.sweep.dir")
        except InputError as error:
            here.error = error
            raise SystemExit(error.exit_code) from error  # Hydra makes a mere warning of any other exception here
        self.grid.planned = planned(config)
        if self._check is not None:
            _warn_of_refused(self.grid.planned, refused(config, self.grid.planned, self._check))
        launcher = config.hydra.launcher
        if "joblib" in launcher._target_ and launcher.batch_size == "auto":
            # joblib hands out short jobs by the dozen: after a few that are skipped, one process would get all others.
            with read_write(launcher):
                launcher.batch_size = "1"

    def on_job_start(self, config: DictConfig, *, task_function: TaskFunction, **kwargs: Any) -> None:
        """Remember which job this process runs."""
        if self.grid is None:
            return
        job = Job(int(config.hydra.job.num), as_typed(config.hydra.overrides.task))
        here.grid, here.job, here.noted = self.grid, job, "completed"
        if os.getpid() != self.grid.owner:
            # Several processes write to one terminal: lines can share it, moving bars cannot.
            os.environ["TTY_COMPATIBLE"] = "0"
            here.end_with_owner()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Write down how the job ended, and keep a failure from the sweeper, which would end the grid for it."""
        if self.grid is None or here.job is None:
            return
        if job_return.status == JobStatus.COMPLETED:
            here.end(score=job_return.return_value)
        else:
            # The exception may also be one that cannot travel back from another process.
            job_return.status, job_return.return_value = JobStatus.COMPLETED, None
        here.job = None


def note(*, folder: Path | str | None = None, outcome: Outcome | None = None) -> None:
    """Tell the grid something about the job that this process runs; without a grid nothing happens.

    Args:
        folder: The run's.
        outcome: How it will have ended if nothing fails: ``skipped`` or ``resumed``.
    """
    if here.grid is None or here.job is None:
        return
    if outcome is not None:
        here.noted = outcome
    if folder is not None:
        here.job.folder = str(folder)
        here.write()


@contextmanager
def watched(number: int, *, show_traceback: bool) -> Iterator[None]:
    """Say at once why a job of a multirun fails, and make sure that one that was stopped ends the grid.

    Args:
        number: Of the job.
        show_traceback: Whether known errors are shown with theirs; unknown ones always are.

    Raises:
        SystemExit: If the job was stopped. Hydra takes any other exception for a failure, and begins the next job.
    """
    here.begin_job()
    try:
        yield
    except StoppedError as error:
        here.end("stopped", reason=str(error))
        raise SystemExit(error.exit_code) from error
    except (KeyboardInterrupt, SystemExit):
        here.end("stopped", reason="stopped from outside")
        raise
    except Exception as error:
        if here.job is not None:
            here.job.is_bad_input = isinstance(error, _BAD_INPUT)
        here.end("failed", reason=_one_line(error))
        is_known = isinstance(error, (*_BAD_INPUT, RunError))
        log.error("job %d failed: %s", number, _one_line(error), exc_info=show_traceback or not is_known)
        raise


@contextmanager
def listed() -> Iterator[None]:
    """List at the end of a multirun what became of its jobs; whatever else happens passes through.

    Raises:
        SystemExit: If a job of a multirun did not complete; 2 if bad input was all that went wrong, else 1.
        InputError: If the grid's folder cannot be written.
    """
    here.grid = here.error = None
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        here.close(is_stopped=True)
        if here.error is not None:
            raise here.error from None
        raise
    except Exception as error:
        is_of_launcher = here.has_begun and not isinstance(error, _BAD_INPUT)
        if is_of_launcher:
            log.error("the launcher gave up: %s", _one_line(error))
        jobs = here.close(is_stopped=False)
        if not is_of_launcher:
            raise
        raise SystemExit(exit_code(jobs) or RunError.exit_code) from error
    jobs = here.close(is_stopped=False)
    if code := exit_code(jobs):
        raise SystemExit(code)


class LineFormatter(logging.Formatter):
    """Begin each line with the job it belongs to, where several processes write to one terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a record."""
        line = super().format(record)
        return f"[job {here.job.number}] {line}" if here.is_worker and here.job is not None else line


def _warn_of_refused(jobs: list[list[str]], reasons: dict[int, str]) -> None:
    """Say before hours are spent which jobs cannot work; the others can all the same, so nothing ends here."""
    listed = [Job(number, overrides) for number, overrides in enumerate(jobs)]
    for number in list(reasons)[:_N_REFUSED]:
        log.warning("job %d (%s) cannot work: %s", number, settings(listed[number], listed), reasons[number])
    if reasons:
        log.warning(
            "%d of %d jobs are going to be refused%s; press Ctrl-C to mend that now, or let the others run",
            len(reasons),
            len(jobs),
            f", the first {_N_REFUSED} for what is said here" if len(reasons) > _N_REFUSED else "",
        )


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    if len(text) > _LONGEST_REASON:
        text = f"{text[:_LONGEST_REASON]} ..."
    return text if isinstance(error, (*_BAD_INPUT, RunError)) else f"{type(error).__name__}: {text}".strip(": ")


__all__ = ["GridCallback", "LineFormatter", "listed", "note", "watched"]
