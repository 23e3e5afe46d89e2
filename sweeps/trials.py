"""One trial of a study: ``python -m cap.train`` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cap.base.errors import RunError
from cap.base.files import read_json
from cap.base.signals import STOP_SIGNALS
from cap.launch.cli import quoted
from cap.launch.processes import PARENT

# What a run ends with that was asked to stop, see cap.base.errors; negative while it was starting.
_STOPPED = tuple(code for number in STOP_SIGNALS for code in (128 + number, -number))


@dataclass(frozen=True)
class Reached:
    """Hold the two objectives of a trial that ended well.

    Args:
        metric: Name of the score.
        score: The pruned model's.
        sparsity: The fraction of prunable weights that are zero.
    """

    metric: str
    score: float
    sparsity: float


class TrialError(RuntimeError):
    """Report a trial that failed; others may not."""


def run_trial(arguments: Sequence[str], folder: Path, log: Path) -> Reached:
    """Train once and read what came of it.

    Args:
        arguments: Of ``python -m cap.train``, without folder.
        folder: The run's. What was interrupted in it goes on.
        log: File for what the run says, kept beside the folder.

    Returns:
        The objectives.

    Raises:
        TrialError: If the run failed, with its own reason.
        RunError: If the run was asked to stop.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # A run whose study is killed would go on and hold the folder: this name tells it whom to watch.
    environment = {**os.environ, PARENT: str(os.getpid())}
    command = [sys.executable, "-m", "cap.train", *arguments, f"output_dir={quoted(str(folder))}", "resume=true"]
    with (
        log.open("a", encoding="utf-8") as said,
        subprocess.Popen(
            command, env=environment, stdout=said, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        ) as process,
    ):
        try:
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()  # it writes a checkpoint
            raise
    if code in _STOPPED:
        raise RunError(f"{folder}: the trial was asked to stop; repeat the command to go on with it")
    if code:
        raise TrialError(_reason(code, folder, log))
    return read_reached(read_json(folder / "record.json"))


def read_reached(record: Mapping) -> Reached:
    """Take the objectives from a record."""
    metric = record["metric"]
    return Reached(metric, float(record["scores"]["pruned"][metric]), float(record["sparsity"]["prunable"]))


def _reason(code: int, folder: Path, log: Path) -> str:
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), None)
    if said is None and (folder / "record.json").is_file():
        said = read_json(folder / "record.json").get("error")
    return f"{said or 'no reason was given'} ({how}; {log})"


__all__ = ["Reached", "TrialError", "read_reached", "run_trial"]
