"""Stand for a door: ``python -m tests.launch.rank_stub MODE FILE`` ends as the mode says, and has written its rank.

Beside it lies the number of its process, so that a test can see whether the others have ended it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

_LONG = 60.0

if __name__ == "__main__":
    mode, folder = sys.argv[1], Path(sys.argv[2])
    rank = int(os.environ["RANK"])
    (folder / f"{rank}.process").write_text(str(os.getpid()))
    (folder / f"{rank}.txt").write_text(f"{os.environ['WORLD_SIZE']} {os.environ['CUDA_VISIBLE_DEVICES']}")
    if mode == "bad input" and rank == 0:
        sys.exit(2)
    if mode == "killed" and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "stopped":
        sys.exit(143)
    if mode != "well":
        time.sleep(_LONG)
