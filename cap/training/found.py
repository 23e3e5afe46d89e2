"""What a run finds in its folder: itself complete, an interrupted attempt that it goes on with, or nothing.

All of it is known from files, without torch: a command that is repeated answers as fast as these can be hashed.
"""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cap.base.console import print_table
from cap.base.errors import InputError
from cap.config.check import Checked
from cap.runs.checkpoints import Checkpoint, newest_checkpoint
from cap.runs.folder import CHECKPOINTS, RunFolder, hold, settle_replacement
from cap.runs.page import summary_table
from cap.training.inputs import changes_since

log = logging.getLogger("cap.train")


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """Say what a process is about to do: make a run, go on with it, or find it done.

    Args:
        checked: The configuration.
        run_dir: The run's folder.
        command: What was typed.
        goes_on: Whether an earlier attempt is resumed, or its result kept.
        is_first: True on rank 0, which alone writes and prints.
        is_alone: False if this process was started as one of several.
        shows_found: Whether the few numbers of a run that is found done are shown.
    """

    checked: Checked
    run_dir: Path
    command: str
    goes_on: bool
    is_first: bool
    is_alone: bool
    shows_found: bool


@dataclass(frozen=True)
class Earlier:
    """Hold what an earlier attempt has left.

    Args:
        record: Its record; None if there is none.
        is_complete: Whether it is complete.
        is_done: Whether it is, and is not to be replaced.
    """

    record: dict[str, Any] | None
    is_complete: bool
    is_done: bool

    @property
    def is_replaced(self) -> bool:
        """Whether it is complete, and stays until a new one is."""
        return self.is_complete and not self.is_done


def look(attempt: Attempt) -> Earlier:
    """Look what lies in the run's folder.

    Raises:
        InputError: If the folder holds something else, or an earlier run that does not count and may not be
            overwritten; or if another process is making the run.
    """
    run_dir, config_hash = attempt.run_dir, attempt.checked.hash
    is_settled = attempt.is_alone and settle_replacement(run_dir, config_hash) and attempt.goes_on
    found = RunFolder.read(run_dir, config_hash, attempt.checked.resolved)
    found.require_free()
    is_done = found.state == "complete" and (is_settled or not attempt.checked.config.overwrite)
    if is_done:
        found.require_going_on(goes_on=attempt.goes_on)
    elif found.state == "interrupted" and attempt.is_alone and not attempt.goes_on:
        _refuse_interrupted(attempt)
    return Earlier(found.record, found.state == "complete", is_done)


def checkpoint_of(attempt: Attempt, found: RunFolder, *, device: str | None = None) -> Checkpoint | None:
    """Find where to resume, and refuse to overwrite an interrupted run.

    Args:
        attempt: What this process is about to do.
        found: The run's folder, or that of its replacement, read while no other process writes there.
        device: The type of device that this process runs on; None where that is not known yet.

    Raises:
        InputError: If an interrupted run is there, and is neither to be resumed nor overwritten; or if it ran on
            another type of device, where its teacher and encodings would be made again, and come out different.
    """
    if found.state != "interrupted":
        return None
    folder = found.path / CHECKPOINTS
    newest = newest_checkpoint(folder, config_hash=attempt.checked.hash)
    if newest is None:
        return None
    if attempt.goes_on:
        if None not in (device, newest.device) and device != newest.device:
            raise InputError(
                f"a run continues on the type of device that made its teacher and its encodings, but its "
                f"checkpoint of step {newest.step} was written on {newest.device}, got {device}; set "
                f"trainer.accelerator={newest.device} where there is one, or remove {folder} to start this run again"
            )
        return newest
    if attempt.checked.config.overwrite:
        return None
    raise InputError(
        f"output_dir must not hold an interrupted run, but {found.path} does, with a checkpoint of step {newest.step}; "
        f"continue it with resume=true, or remove {folder} or set overwrite=true to start again"
    )


def _refuse_interrupted(attempt: Attempt) -> None:
    """Refuse to overwrite an interrupted run before anything is loaded."""
    lock = hold(attempt.run_dir)  # a run that another process is making is called interrupted, too
    try:
        checkpoint_of(attempt, RunFolder.read(attempt.run_dir, attempt.checked.hash))
    finally:
        lock.release()


def leave_done(attempt: Attempt, record: dict[str, Any]) -> float:
    """Leave a finished run as it is; refuse to call it that of rows or weights which have changed since.

    Args:
        attempt: What this process was about to do.
        record: Of the finished run.

    Returns:
        Its score on the task's first metric.

    Raises:
        InputError: If the rows or the weights have changed.
    """
    checked, run_dir = attempt.checked, attempt.run_dir
    changes = changes_since(checked.config, record)
    if changes:
        raise InputError(
            f"a finished run is found for the rows and weights that it read, but since the one in {run_dir} there have "
            f"changed: {'; '.join(changes)}; give another output_dir, or replace the run with overwrite=true"
        )
    if attempt.is_first:
        shutil.rmtree(run_dir / CHECKPOINTS, ignore_errors=True)
        if "WANDB_SWEEP_ID" in os.environ and checked.config.logger:
            from cap.training.record import RunRecord  # takes seconds, and only a sweep's agent has somebody to tell

            RunRecord(checked, run_dir, command=attempt.command).repeat(record)
    log.info("%s: this run is complete; nothing to do", run_dir)
    if attempt.is_first and attempt.shows_found:
        print_table(summary_table(record, str(run_dir)))
    return float(record["scores"]["pruned"][record["metric"]])


__all__ = ["Attempt", "Earlier", "checkpoint_of", "leave_done", "look"]
