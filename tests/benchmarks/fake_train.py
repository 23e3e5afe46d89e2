"""``python fake_train.py RUN STEPS [failing]``: behaves as ``cap.train`` does in a folder, and learns nothing.

A step takes a fiftieth of a second. SIGTERM writes a checkpoint and ends it with 143; started again it goes on there.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    run, n_steps = Path(sys.argv[1]), int(sys.argv[2])
    if "failing" in sys.argv:
        sys.stderr.write("error: sparsity lies in [0, 1), got 97\n")
        return 2
    template = json.loads(Path(sys.argv[3]).read_text(encoding="utf-8"))
    checkpoints = run / "checkpoints"
    found = sorted(checkpoints.glob("step-*.json"))
    step = int(found[-1].stem.removeprefix("step-")) if found else 0
    resumed = [step] if step else []
    asked = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    checkpoints.mkdir(parents=True, exist_ok=True)
    write(run, {"status": "interrupted"})  # the teacher's score comes later, as that of a run does
    while step < n_steps:
        time.sleep(0.02)
        step += 1
        if asked:
            (checkpoints / f"step-{step:07d}.json").write_text("{}")
            return 128 + asked[0]
    write(run, {**template, "resumed_at": resumed})
    return 0


def write(run: Path, record: dict) -> None:
    (run / "record.json").write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
