"""``python -m benchmarks.full_disk task=... model=minilm``: the disk fills up while a checkpoint is written.

The run's folder lies on a file system in memory that holds two checkpoints and no third (mounting it needs root). The
run must end with a readable error, the last good checkpoint must be whole, and once there is room the repeated
command must end at the bits of a run that always had room.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.killed import RESULTS, Trial, require_success, shown
from cap.results.record import environment
from cap.storage import read_json, write_json
from cap.training.checkpoint import newest_checkpoint

_EVERY = ["checkpoint.every_n_steps=5"]
_PLENTY = "16g"


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
    write_json(RESULTS / "full_disk.json", {"environment": environment(), "overrides": shown(overrides), **result})
    Console().print(result)
    raise SystemExit(0 if all(result["equal"].values()) and result["exit_code"] == 1 else 1)


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
        "resumed_at": read_json(run_dir / "record.json")["resumed_at"],
    }


def first_checkpoint(trial: Trial, process: subprocess.Popen[bytes]) -> int:
    """Wait for the first checkpoint, and return its size in bytes."""
    while not trial.has("run/checkpoints/step-*.json"):
        if process.poll() is not None:
            raise RuntimeError((trial.folder / "log").read_text()[-3000:])
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
