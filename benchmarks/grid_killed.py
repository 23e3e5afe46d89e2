"""``python -m benchmarks.grid_killed task=... model=minilm``: a grid of 12 jobs dies half-way.

The grid runs through joblib with two workers. When half of its jobs are complete and another one has a checkpoint,
every process of it is killed; then the same command is repeated. Every job must end complete, none that was complete
may be trained again, those that had a checkpoint must go on from it, and all share a teacher that was trained once.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks.killed import RESULTS, require_checkpoints, shown
from cap.base.files import read_json, write_json
from cap.runs.environment import environment

GRID = ["sparsity=0.5,0.7,0.9", "pruning=magnitude,movement", "contrast=cap,none"]
N_JOBS = 12
_LAUNCHER = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
_POLL_SECONDS = 0.1


def main() -> None:
    """Run, kill, repeat, count."""
    require_checkpoints(sys.argv[1:])
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        own = [f"hydra.sweep.dir={folder / 'grid'}", f"cache_dir={folder / 'cache'}"]
        command = [sys.executable, "-m", "cap.train", "-m", *_LAUNCHER, *GRID, *sys.argv[1:], *own]
        first = start(command, folder / "first.log")
        while len(completed(folder)) < N_JOBS // 2 or not in_progress(folder):
            if first.poll() is not None:
                raise RuntimeError((folder / "first.log").read_text()[-3000:])
            time.sleep(_POLL_SECONDS)
        kill_all(first)
        before, interrupted = completed(folder), in_progress(folder)
        started = time.monotonic()
        code = start(command, folder / "second.log").wait()
        result = {
            "exit_code": code,
            "seconds_of_the_repeated_command": round(time.monotonic() - started),
            "in_progress_when_killed": len(interrupted),
            **count(folder, before),
        }
    result["problems"] = verdict(result)
    write_json(RESULTS / "grid_killed.json", {"environment": environment(), "overrides": shown(sys.argv[1:]), **result})
    Console().print(result)
    raise SystemExit(1 if result["problems"] else 0)


def verdict(result: Mapping[str, Any]) -> list[str]:
    """Judge what was counted; return what is wrong, a line each."""
    wanted = {"records": N_JOBS, "trained_again": 0, "teachers": 1, "teacher_trainings": 1, "exit_code": 0}
    problems = [f"{key} must be {value}, got {result[key]}" for key, value in wanted.items() if result[key] != value]
    # Beginning anew would complete them, too.
    if result["resumed"] < result["in_progress_when_killed"]:
        problems.append(
            f"{result['in_progress_when_killed']} had a checkpoint when killed, {result['resumed']} went on"
        )
    return problems


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a grid as a group of processes."""
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """Kill a process with all that it started."""
    for child in psutil.Process(process.pid).children(recursive=True):
        child.send_signal(signal.SIGKILL)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def completed(folder: Path) -> dict[str, float]:
    """List the complete records, and when they were written."""
    found = {}
    for path in (folder / "grid").glob("*/*/*/record.json"):
        if read_json(path)["status"] == "completed":
            found[path.parent.name] = path.stat().st_mtime
    return found


def in_progress(folder: Path) -> set[str]:
    """List the jobs that are not complete and have a checkpoint to go on from."""
    found = {path.parent.parent.name for path in (folder / "grid").glob("*/*/*/checkpoints/step-*.json")}
    return found - completed(folder).keys()


def count(folder: Path, before: dict[str, float]) -> dict[str, Any]:
    """Count what the two commands have left."""
    after = completed(folder)
    logs = [path.read_text() for path in (folder / "grid").glob("*/*/*/train.log")]
    records = [read_json(path) for path in (folder / "grid").glob("*/*/*/record.json")]
    return {
        "complete_when_killed": len(before),
        "records": len(after),
        "trained_again": sum(after[name] != written for name, written in before.items()),
        "resumed": sum(bool(record.get("resumed_at")) for record in records),
        "teachers": len(list((folder / "cache" / "teachers").glob("*/teacher.json"))),
        "teacher_trainings": sum(len(re.findall(r"teacher: fine-tuning, kept", text)) for text in logs),
    }


if __name__ == "__main__":
    main()
