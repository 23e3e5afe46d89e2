"""``python -m benchmarks.killed --kills 12 task=... data_dir=... model=minilm``: a run that is killed loses nothing.

The job runs once without a break, then again and again with ``kill -9`` at a random moment of a chosen phase, each
time in folders of its own, and is repeated with ``resume=true``. Weights, scores and curves must be those of the
first run. With ``--processes 2`` one of the two processes is killed, and the other one has to end by itself. Beginning
anew would give the same bits: a run that was killed behind its first checkpoint must say that it went on from one.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from cap.base.files import file_sha256, read_json, write_json
from cap.runs.environment import environment

RESULTS = Path(__file__).parent / "results"
_POLL_SECONDS = 0.005
_PATIENCE_SECONDS = 1800.0
_MINUTE = 60.0
_EVERY = "checkpoint.every_n_steps="


@dataclass(frozen=True)
class Trial:
    """Name the folder of a trial, and what has been written in it.

    Args:
        folder: With the run's folder ``run``, the cache ``cache`` and the output ``log``.
    """

    folder: Path

    def said(self, pattern: str) -> bool:
        """Say whether a line of the output matches."""
        log = self.folder / "log"
        return log.is_file() and re.search(pattern, log.read_text(errors="replace")) is not None

    def has(self, pattern: str) -> bool:
        """Say whether a file or folder is there."""
        return any(self.folder.glob(pattern))

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is something to go on from."""
        return self.has("run/checkpoints/step-*.json")

    def command(self, overrides: list[str]) -> list[str]:
        """Make the command of the job."""
        own = [f"output_dir={self.folder / 'run'}", f"cache_dir={self.folder / 'cache'}", "resume=true"]
        return [sys.executable, "-m", "cap.train", *overrides, *own]

    def start(self, overrides: list[str]) -> subprocess.Popen[bytes]:
        """Start the job."""
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(self.command(overrides), stdout=log, stderr=subprocess.STDOUT)

    def outcome(self) -> dict[str, Any]:
        """Read what must be equal."""
        record = read_json(self.folder / "run" / "record.json")
        return {
            "status": record["status"],
            "weights": file_sha256(self.folder / "run" / "model" / "model.safetensors"),
            "scores": record["scores"],
            "levels": record["levels"],
            "curves": file_sha256(self.folder / "run" / "logs" / "metrics.csv"),
        }


# A phase begins with a line of the output, or with a file that is being written.
PHASES: dict[str, Callable[[Trial], bool]] = {
    "teacher": lambda trial: trial.said("teacher: fine-tuning"),
    "encoding": lambda trial: trial.said("encoding the training rows"),
    "training": lambda trial: trial.has_checkpoint,
    "level change": lambda trial: trial.has_checkpoint and trial.has("run/checkpoints/snapshots/.step-*"),
    "checkpointing": lambda trial: trial.has_checkpoint and trial.has("run/checkpoints/.step-*"),
    "saving": lambda trial: trial.has("run/.model.*") or trial.has("run/model"),
}
# Teacher and encodings come before the first checkpoint.
_GOES_ON = ("training", "level change", "checkpointing", "saving")


def main() -> None:
    """Run the trials, print a line for each and keep them in benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("overrides", nargs="+", help="as python -m cap.train takes them")
    options = parser.parse_args()
    overrides = list(options.overrides)
    require_checkpoints(overrides)
    if options.processes > 1:
        overrides += [f"trainer.devices={options.processes}", "trainer.strategy=ddp", "trainer.accelerator=cpu"]
    draw = random.Random(options.seed)
    console = Console()
    with tempfile.TemporaryDirectory() as root:
        whole = Trial(Path(root) / "whole")
        whole.folder.mkdir()
        started = time.monotonic()
        require_success(whole.start(overrides), whole)
        console.print(f"without a break: {time.monotonic() - started:.0f} s")
        expected = whole.outcome()
        rows = []
        for number in range(options.kills):
            phase = list(PHASES)[number % len(PHASES)]
            trial = Trial(Path(root) / f"{number:02d}")
            trial.folder.mkdir()
            row = kill_and_resume(trial, overrides, phase, delay=draw.random() * delay_of(phase), n=options.processes)
            found = trial.outcome()
            row["equal"] = {key: found[key] == expected[key] for key in expected}
            rows.append(row)
            console.print(f"{number + 1}/{options.kills}", row)
    n_equal = sum(all(row["equal"].values()) for row in rows)
    problems = verdict(rows, n_processes=options.processes)
    name = "killed.json" if options.processes == 1 else f"killed_{options.processes}_processes.json"
    results = {"environment": environment(), "overrides": shown(overrides), "n_equal": n_equal, "trials": rows}
    write_json(RESULTS / name, {**results, "problems": problems})
    console.print(table(rows))
    console.print(f"{n_equal} of {len(rows)} with the same bits, scores and curves")
    for problem in problems:
        console.print(problem, markup=False)
    raise SystemExit(1 if problems else 0)


def require_checkpoints(overrides: Sequence[str]) -> None:
    """Refuse a job that would end before its first checkpoint: begun anew it ends at the same bits, and shows nothing.

    Raises:
        SystemExit: If no override names the steps between checkpoints.
    """
    given = next((text.removeprefix(_EVERY) for text in reversed(overrides) if text.startswith(_EVERY)), "null")
    if not given.isdigit():
        raise SystemExit(
            f"a job of a few minutes must be told to write checkpoints, or it would begin anew instead of going on, "
            f"got {_EVERY}{given}; add {_EVERY}5"
        )


def verdict(trials: Sequence[Mapping[str, Any]], *, n_processes: int) -> list[str]:
    """Judge the trials.

    Args:
        trials: What ``kill_and_resume`` returns, each with ``equal``.
        n_processes: Of the job.

    Returns:
        What is wrong, a line each; empty if nothing is.
    """
    if not trials:
        return ["no trial was made"]
    judged = [(number, _problems(trial, n_processes)) for number, trial in enumerate(trials, start=1)]
    return [f"trial {number}, {trials[number - 1]['phase']}: {what}" for number, found in judged for what in found]


def _problems(trial: Mapping[str, Any], n_processes: int) -> list[str]:
    ends_alone = n_processes > 1
    holds = {
        "other weights, scores or curves": bool(trial["equal"]) and all(trial["equal"].values()),
        "began anew": trial["phase"] not in _GOES_ON or bool(trial["resumed_at"]),
        "had ended before it was killed": ends_alone or trial["was_running"],
        "processes were left running": not ends_alone or trial["left_running"] == 0,
        "the rest did not end as failed": not ends_alone or trial["exit_code"] not in (0, None),
        "the rest did not say why it ended": not ends_alone or bool(trial["said"]),
    }
    return [problem for problem, is_fine in holds.items() if not is_fine]


def kill_and_resume(trial: Trial, overrides: list[str], phase: str, *, delay: float, n: int) -> dict[str, Any]:
    """Kill the job some time after a phase has begun, and repeat the command until it ends well.

    Args:
        trial: Where.
        overrides: Of the job.
        phase: One of ``PHASES``.
        delay: Seconds after the phase has begun.
        n: Processes of the job; of several a random one is killed, and the command must end by itself.

    Returns:
        What happened.
    """
    process = trial.start(overrides)
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not PHASES[phase](trial):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the phase {phase} never began, see {trial.folder / 'log'}")
        time.sleep(_POLL_SECONDS)
    time.sleep(delay)
    row: dict[str, Any] = {"phase": phase, "delay": round(delay, 2)}
    if n == 1:
        process.send_signal(signal.SIGKILL)
        process.wait()
        row["was_running"] = process.returncode == -signal.SIGKILL
    else:
        row |= kill_one(process, trial)
    started = time.monotonic()
    require_success(trial.start(overrides), trial)
    row["seconds_to_end"] = round(time.monotonic() - started, 1)
    row["resumed_at"] = read_json(trial.folder / "run" / "record.json").get("resumed_at", [])
    return row


def kill_one(process: subprocess.Popen[bytes], trial: Trial) -> dict[str, Any]:
    """Kill one process of a run of several; the rest must end within a minute and say why."""
    ranks = [child for child in psutil.Process(process.pid).children() if "cap.train" in " ".join(child.cmdline())]
    victim = random.Random(process.pid).randrange(len(ranks))
    os.kill(ranks[victim].pid, signal.SIGKILL)
    killed = time.monotonic()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_MINUTE)
    ended, code = time.monotonic(), process.poll()
    left = [child for child in ranks if _is_alive(child)]
    if left or code is None:
        # It counts against the run; what is left would be in the way of the repeated command.
        for other in (*left, process):
            other.kill()
        process.wait()
    errors = [line for line in (trial.folder / "log").read_text(errors="replace").splitlines() if "error: " in line]
    return {
        "killed": victim,
        "seconds_until_the_rest_ended": round(ended - killed, 1),
        "exit_code": code,
        "left_running": len(left),
        "said": errors[-1] if errors else None,
    }


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def require_success(process: subprocess.Popen[bytes], trial: Trial) -> None:
    """Wait for a job to end well.

    Raises:
        RuntimeError: If it does not; the message holds the end of its output.
    """
    if process.wait(_PATIENCE_SECONDS) != 0:
        raise RuntimeError((trial.folder / "log").read_text(errors="replace")[-3000:])


def delay_of(phase: str) -> float:
    """Return the longest wait after a phase has begun: files are there for a moment only."""
    return {"checkpointing": 0.05, "saving": 0.5, "level change": 2.0, "encoding": 3.0}.get(phase, 6.0)


def shown(overrides: list[str]) -> list[str]:
    """Write folders of data as DIR."""
    return [re.sub(r"^data_dir=.*", "data_dir=DIR", override) for override in overrides]


def table(rows: list[dict[str, Any]]) -> Table:
    """Show the trials."""
    shown_table = Table("phase", "killed after, s", "went on at step", "same bits, scores, curves")
    for row in rows:
        steps = ", ".join(map(str, row["resumed_at"])) or "the start"
        shown_table.add_row(row["phase"], str(row["delay"]), steps, "yes" if all(row["equal"].values()) else "NO")
    shown_table.caption = f"median {statistics.median(row['seconds_to_end'] for row in rows):.0f} s to the end"
    return shown_table


if __name__ == "__main__":
    main()
