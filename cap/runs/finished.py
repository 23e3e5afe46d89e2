"""Runs that are complete, read for what is done with them afterwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cap.base.errors import InputError
from cap.base.files import read_json
from cap.runs.folder import MODEL, RECORD


@dataclass(frozen=True)
class FinishedRun:
    """Hold a run that is complete: its folder, a short name that no other run here has, its record."""

    folder: Path
    name: str
    record: Mapping[str, Any]


def read_runs(folders: list[Path]) -> list[FinishedRun]:
    """Read the records of finished runs.

    Raises:
        InputError: With one line for each folder that is not a finished run, or is given twice.
    """
    records, problems = [], []
    for folder in folders:
        try:
            records.append(_finished_record(folder))
        except InputError as error:
            problems.append(str(error))
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        problems.append(f"runs must all be different folders, got {', '.join(map(str, folders))}")
    if problems:
        raise InputError("\n".join(problems))
    # The default folder is called by a hash, which says nothing without what is above it.
    is_hash = [path.name == record["config_hash"] for path, record in zip(paths, records, strict=True)]
    n_parts = 2 if any(is_hash) else 1
    while len(set(names := ["/".join(path.parts[-n_parts:]) for path in paths])) < len(paths):
        n_parts += 1
    return [FinishedRun(*found) for found in zip(folders, names, records, strict=True)]


def require_keys(run: FinishedRun, keys: Iterable[str]) -> None:
    """Check that a record holds what is read of it; another version may have written it.

    Args:
        run: The run.
        keys: With dots where objects lie in objects; a value may be null.

    Raises:
        InputError: If keys are missing, all of which it names.
    """
    missing = [key for key in keys if not _holds(run.record, key)]
    if missing:
        raise InputError(
            f"run {run.name} must have a {RECORD} as this version of cap writes it, got one without "
            f"{', '.join(missing)}; run it again: {run.record['command']} overwrite=true"
        )


def _holds(record: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(record, Mapping) or part not in record:
            return False
        record = record[part]
    return True


def _finished_record(folder: Path) -> Mapping[str, Any]:
    required = f"a run is the folder of a finished one, with {RECORD} and {MODEL}/, got {folder}"
    if not folder.is_dir():
        raise InputError(f"{required}, which is {'a file' if folder.exists() else 'not there'}; correct the path")
    try:
        record = read_json(folder / RECORD)
        status, command, _ = record["status"], record["command"], record["config_hash"]
    except FileNotFoundError as error:
        raise InputError(f"{required} without {RECORD}; give the folder that a run was written to") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{required}, whose {RECORD} cannot be read; run it again in another folder") from error
    if status != "completed":
        raise InputError(f"{required}, whose status is {status}; finish it first: {command}")
    if not (folder / MODEL).is_dir():
        raise InputError(f"{required} without {MODEL}/; run it again: {command} overwrite=true")
    return dict(record)


__all__ = ["FinishedRun", "read_runs", "require_keys"]
