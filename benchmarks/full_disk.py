"""``python -m benchmarks.full_disk task=... model=minilm``: the disk fills up while a checkpoint is written.

The run's folder lies on a file system in memory that holds two checkpoints and no third (mounting it needs root). The
run must end with a readable error, the last good checkpoint must be whole, and once there is room the repeated
command must end at the bits of a run that always had room.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.killed import RESULTS, Trial, require_success, shown
from cap.base.files import read_json, write_json
from cap.runs.checkpoints import newest_checkpoint
from cap.runs.environment import environment

_EVERY = ["checkpoint.every_n_steps=5"]
_PLENTY = "16g"
_POLL_SECONDS = 0.005


def main() -> None:
    """Fill the disk, make room, and compare."""
    overrides = [*sys.argv[1:], *_EVERY]
    with tempfile.TemporaryDirectory() as root:
        whole, cramped = (Trial(Path(root) / name) for name in ("whole", "cramped"))
        for trial in (whole, cramped):
            trial.folder.mkdir()
        require_success(whole.start(overrides), whole)
        # Teacher and encodings are there: only the run itself writes.
        (whole.folder / "cache").rename(cramped.folder / "cache")
        (cramped.folder / "run").mkdir()
        with mounted(cramped.folder / "run", _PLENTY):
            result = fill_up(cramped, overrides)
            result["equal"] = {key: cramped.outcome()[key] == value for key, value in whole.outcome().items()}
    result["problems"] = verdict(result)
    write_json(RESULTS / "full_disk.json", {"environment": environment(), "overrides": shown(overrides), **result})
    Console().print(result)
    raise SystemExit(1 if result["problems"] else 0)


def verdict(result: Mapping[str, Any]) -> list[str]:
    """Judge what ``fill_up`` returns, with ``equal``; return what is wrong, a line each."""
    step = result["last_good_step"]
    holds = {
        "other weights, scores or curves": bool(result["equal"]) and all(result["equal"].values()),
        "the run did not end with exit code 1": result["exit_code"] == 1,
        "the error does not name the checkpoint": "checkpoint" in (result["said"] or ""),
        "no whole checkpoint was left": step is not None,
        # Beginning anew would give the same bits.
        "the repeated command did not go on from the last good checkpoint": result["resumed_at"] == [step],
    }
    return [problem for problem, is_fine in holds.items() if not is_fine]


def fill_up(trial: Trial, overrides: list[str]) -> dict[str, Any]:
    """Run on a disk that is too small, look at what is left, make room and repeat the command."""
    run_dir = trial.folder / "run"
    process = trial.start(overrides)
    size = first_checkpoint(trial, process)
    process.kill()
    process.wait()
    remount(run_dir, int(2.5 * size))
    process = trial.start(overrides)
    code = process.wait()
    errors = [line for line in (trial.folder / "log").read_text().splitlines() if line.startswith("error: ")]
    record = read_json(run_dir / "record.json")
    left = newest_checkpoint(run_dir / "checkpoints", config_hash=record["config_hash"])
    remount(run_dir, _PLENTY)
    require_success(trial.start(overrides), trial)
    return {
        "checkpoint_bytes": size,
        "exit_code": code,
        "said": errors[-1].replace(str(trial.folder), "DIR") if errors else None,
        "status": record["status"],
        "last_good_step": left.step if left is not None else None,
        # The run that filled the disk had gone on, too.
        "resumed_at": resumed_at(read_json(run_dir / "record.json"))[len(resumed_at(record)) :],
    }


def resumed_at(record: Mapping[str, Any]) -> list[int]:
    """Return the steps at which a run went on; one that never did has no word about it in its record."""
    return list(record.get("resumed_at", []))


def first_checkpoint(trial: Trial, process: subprocess.Popen[bytes]) -> int:
    """Wait for the first checkpoint, and return its size in bytes."""
    while not trial.has_checkpoint:
        if process.poll() is not None:
            raise RuntimeError((trial.folder / "log").read_text()[-3000:])
        time.sleep(_POLL_SECONDS)
    (listed,) = trial.folder.glob("run/checkpoints/step-*.json")
    return int(read_json(listed)["bytes"])


def remount(folder: Path, size: str | int) -> None:
    """Change its size."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[None]:
    """Have a file system in memory there."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


if __name__ == "__main__":
    main()
