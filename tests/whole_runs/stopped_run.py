"""``python -m tests.whole_runs.stopped_run ...``: ``cap.train`` that is sent a SIGTERM in its third step."""

from __future__ import annotations

import os
import signal

from cap.train import main
from cap.training.module import CapModule

if __name__ == "__main__":
    original = CapModule.training_step

    def step(self, batch, batch_idx):
        if self.pruner is not None and self.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, batch_idx)

    CapModule.training_step = step
    main()
