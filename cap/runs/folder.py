"""A run's folder: claimed before anything is written, and never complete by accident."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from cap.base.errors import InputError, some_of
from cap.base.files import atomic_file, ensure_lockable, ensure_writable, locked, read_json
from cap.base.settings import flatten, what_counts
from cap.runs.record import write_record

RECORD = "record.json"
# Of an export, in a folder of its own.
EXPORT = "export.json"
TEACHER = "teacher.json"
"""In a teacher's folder in the cache: what it was made of, and how it reads."""
CONFIG = "config.yaml"
MODEL = "model"
LEVELS = "levels"
CHECKPOINTS = "checkpoints"
_LOGS = "logs"
CURVES = f"{_LOGS}/metrics.csv"
# What a run may leave in its folder; anything else was put there by somebody else.
_OURS = {
    RECORD,
    CONFIG,
    MODEL,
    LEVELS,
    CHECKPOINTS,
    "report.md",
    "pictures",
    _LOGS,
    "train.log",
    "wandb",
    "tensorboard",
}

# What a run leaves that failed before it had anything to show.
_OF_A_START = {RECORD, CONFIG, CHECKPOINTS, _LOGS, "train.log", "wandb", "tensorboard"}

log = logging.getLogger(__name__)


State = Literal["empty", "failed start", "interrupted", "complete", "taken"]


@dataclass(frozen=True)
class RunFolder:
    """Say what lies in a run's folder, as one look found it.

    Args:
        path: The folder; need not exist.
        state: What it is to the configuration that asks. ``empty``: it is new, or holds nothing. ``failed start``: a
            run of another configuration that ended before it had a checkpoint or a model. ``interrupted``: a run of
            this one that is not complete, whether it still runs, failed or was stopped. ``complete``: a run of this
            one. ``taken``: a file, a run of another configuration, or something that is no run.
        record: Of the run of this configuration; None where there is none.
        problem: Why it is taken; None if it is not.
    """

    path: Path
    state: State
    record: dict[str, Any] | None = None
    problem: str | None = None

    @classmethod
    def read(cls, path: Path, config_hash: str, config: Mapping[str, Any] | None = None) -> RunFolder:
        """Look at a folder. What is found may change at once, unless the folder is held.

        Args:
            path: The folder.
            config_hash: Of the run that wants it.
            config: What that is the hash of, for a message that names the keys that differ; None for none.
        """
        required = "output_dir must be new, empty, or hold a run of this configuration"
        if path.exists() and not path.is_dir():
            problem = f"output_dir must be a folder, got the file {path}; choose another output_dir"
            return cls(path, "taken", problem=problem)
        # A file whose name begins with a dot may be one that another process of the same run is about to rename.
        found = {file.name for file in path.iterdir() if not file.name.startswith(".")} if path.exists() else set()
        if not found:
            return cls(path, "empty")
        if not (path / RECORD).is_file():
            problem = f"{required}, got {path} with {some_of(sorted(found))}; choose another output_dir"
            return cls(path, "taken", problem=problem)
        try:
            record = read_json(path / RECORD)
            other = record.get("config_hash")
        except (ValueError, AttributeError):
            record, other = {}, "unreadable"
        if other == config_hash:
            return cls(path, "complete" if record.get("status") == "completed" else "interrupted", record)
        # One that still runs has no end yet.
        has_ended = record.get("status") in ("failed", "interrupted")
        if has_ended and found <= _OF_A_START and not any((path / CHECKPOINTS).glob("step-*")):
            return cls(path, "failed start")
        problem = (
            f"{required} ({config_hash}), got {path} with a run of another one ({other})"
            f"{_differing(record.get('config'), config)}; choose another output_dir"
        )
        return cls(path, "taken", problem=problem)

    def require_free(self) -> None:
        """Check that it is new, empty, or holds a run of this very configuration, or a failed start of another one.

        Raises:
            InputError: If it is taken.
        """
        if self.problem is not None:
            raise InputError(self.problem)

    def require_going_on(self, *, goes_on: bool) -> None:
        """Refuse to overwrite a finished run unless an earlier attempt counts.

        Args:
            goes_on: Whether an earlier attempt is resumed, or its result kept.

        Raises:
            InputError: If it holds one and that does not count.
        """
        if self.state == "complete" and not goes_on:
            raise InputError(
                f"output_dir must not hold a finished run, but {self.path} does, of this very configuration; have it "
                f"found with resume=true, replace it once the new run is complete with overwrite=true, or choose "
                f"another output_dir"
            )


def _differing(there: object, wanted: Mapping[str, Any] | None) -> str:
    """Name some keys of two configurations that differ, with both values."""
    if not isinstance(there, Mapping) or wanted is None:
        return ""
    sides = [dict(flatten(what_counts(config))) for config in (there, wanted)]
    keys = [key for key in dict.fromkeys([*sides[1], *sides[0]]) if sides[0].get(key) != sides[1].get(key)]
    said = [f"{key}={sides[0].get(key)} there, {sides[1].get(key)} here" for key in keys]
    return f": {some_of(said, separator='; ')}" if said else ""


def require_empty(folder: Path) -> None:
    """Check that a folder is new or empty.

    Raises:
        InputError: If it is a file, or holds anything.
    """
    found = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if found or (folder.exists() and not folder.is_dir()):
        what = f"with {some_of(found)}" if found else "which is a file"
        raise InputError(f"output_dir must be new or empty, got {folder} {what}; choose another, or remove it")


@dataclass(frozen=True)
class Reading:
    """Hold how a run read its rows; None where that is not known.

    Args:
        max_length: Tokens.
        stride: Tokens that neighbouring windows of one context share.
    """

    max_length: int | None = None
    stride: int | None = None


def reading_of_run(model_dir: Path) -> Reading:
    """Say how the run read its rows whose model lies in a folder.

    Args:
        model_dir: ``model/`` of a run, or one of its ``levels/``; an export; what was pushed, with its record; or a
            teacher from the cache.
    """
    run_dir = model_dir.parent.parent if model_dir.parent.name == LEVELS else model_dir.parent
    of_folder = ((model_dir / EXPORT, "reads"), (model_dir / TEACHER, "reads"), (model_dir / RECORD, "config"))
    for file, keys in (*of_folder, (run_dir / RECORD, "config")):
        try:
            found = read_json(file)[keys]
            length, task = found["max_length"], found.get("task")
        except (OSError, ValueError, KeyError, TypeError):
            continue
        stride = (task if isinstance(task, Mapping) else found).get("stride")
        return Reading(*(number if isinstance(number, int) else None for number in (length, stride)))
    return Reading()


def claim(found: RunFolder, record: dict[str, Any], config_yaml: str, *, goes_on: bool = False) -> None:
    """Take a folder for a run; from here on its record says ``interrupted`` until the run is over.

    Args:
        found: The run's folder, read since ``hold`` keeps others out.
        record: What is known already.
        config_yaml: The resolved configuration.
        goes_on: True keeps what an interrupted run has left there; else it is removed.

    Raises:
        InputError: If the folder holds something else.
    """
    found.require_free()
    run_dir = found.path
    if found.state != "empty" and not goes_on:
        log.warning("%s holds an earlier run; this run replaces it", run_dir)
    write_record(run_dir, {**record, "status": "interrupted"})
    for path in run_dir.iterdir():
        is_left_over = any(path.name.startswith(f".{name}.") for name in _OURS)  # by a write that was killed
        if is_left_over or (not goes_on and path.name in _OURS - {RECORD}):
            _remove(path)
    with atomic_file(run_dir / CONFIG) as temporary:
        temporary.write_text(config_yaml, encoding="utf-8")


def _remove(path: Path) -> None:
    """Remove a file, or a folder with what is in it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replacement_of(run_dir: Path) -> Path:
    """Name the folder in which a run is made that replaces a finished one."""
    return run_dir.parent / f".{run_dir.name}.replacement"


def put_in_place(run_dir: Path) -> None:
    """Let a replacement, which is complete, take the place of the run that it replaces.

    Called again, it ends what an exception or a signal has cut off.

    Args:
        run_dir: The run's folder, held by ``hold``.
    """
    new = replacement_of(run_dir)
    old = new.with_suffix(".old")
    # No call replaces a folder. A kill between the two renames leaves both whole; ``settle_replacement`` then ends it.
    if new.exists():
        if run_dir.exists():
            shutil.rmtree(old, ignore_errors=True)
            run_dir.rename(old)
        new.rename(run_dir)
    shutil.rmtree(old, ignore_errors=True)


def settle_replacement(run_dir: Path, config_hash: str) -> bool:
    """Put a complete replacement in its place if its process was killed before it could.

    Args:
        run_dir: The run's folder.
        config_hash: Of the run that wants it.

    Returns:
        True if it was.
    """

    def is_complete() -> bool:
        return RunFolder.read(replacement_of(run_dir), config_hash).state == "complete"

    if not is_complete():
        return False
    lock = hold(run_dir)
    try:
        # The process that made it may have put it there meanwhile.
        was_complete = is_complete()
        if was_complete:
            put_in_place(run_dir)
        return was_complete
    finally:
        lock.release()


def drop_other_replacement(run_dir: Path, config_hash: str) -> None:
    """Remove what an interrupted replacement of another configuration has left beside a run's folder."""
    new = replacement_of(run_dir)
    if new.exists() and RunFolder.read(new, config_hash).record is None:
        shutil.rmtree(new)


def is_held(run_dir: Path) -> bool:
    """Say whether a process is at work in a run's folder."""
    lock = locked(run_dir)
    if not Path(lock.lock_file).exists():
        return False
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # of another user, say: what cannot be locked tells nothing
        return False


def hold(run_dir: Path, *, patience: float = 0.0) -> FileLock:
    """Keep other processes out of a run's folder until the lock is released or this process ends.

    Args:
        run_dir: The run's folder.
        patience: Seconds to wait for another process that is there; that it is waited for is said.

    Raises:
        InputError: If another process runs in this folder, or it cannot be written.
    """
    ensure_writable(run_dir, "output_dir")
    lock = locked(run_dir)
    ensure_lockable(Path(lock.lock_file).parent, "output_dir")
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if patience > 0:
                log.info("another process is in %s; waiting for it up to %.0f s", run_dir, patience)
            lock.acquire(timeout=patience)
    except Timeout as error:
        raise InputError(
            f"output_dir must not be in use, but another process is running this configuration in {run_dir}; "
            f"wait for it or choose another output_dir"
        ) from error
    return lock


__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "CURVES",
    "EXPORT",
    "LEVELS",
    "MODEL",
    "RECORD",
    "TEACHER",
    "Reading",
    "RunFolder",
    "State",
    "claim",
    "drop_other_replacement",
    "hold",
    "is_held",
    "put_in_place",
    "reading_of_run",
    "replacement_of",
    "require_empty",
    "settle_replacement",
]
