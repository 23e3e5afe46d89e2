"""When the student itself is encoded, and how its snapshots outlive an interruption."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from cap.errors import RunError
from cap.pruning.schedule import SchedulePlan
from cap.storage import file_sha256
from cap.training.callbacks import cap_module
from cap.training.encode import computation_of, take_snapshot
from cap.training.module import CapModule
from cap.training.ranks import ALONE, Ranks

log = logging.getLogger(__name__)


class SnapshotCallback(Callback):
    """Encode the training set with the student itself, before the masks of that step move.

    Args:
        plan: The schedule; one with levels is encoded before its rises after the first, a gradual one at equally
            spaced steps.
        n_snapshots: How many snapshots to take at most, >= 0.
        loader: Makes the data loader with every training row once, over all processes together.
        folder: Where the encodings are kept during the run; every process sees it.
        ranks: The processes of the run.
    """

    def __init__(
        self,
        plan: SchedulePlan,
        *,
        n_snapshots: int,
        loader: Callable[[], DataLoader],
        folder: Path,
        ranks: Ranks = ALONE,
    ) -> None:
        self.plan = plan
        self.n_snapshots = n_snapshots
        self.loader = loader
        self.folder = folder
        self.ranks = ranks
        self.seconds = 0.0
        self._steps: set[int] = set()
        self._taken: dict[str, str] = {}  # file name and its hash, in the order of the steps

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the steps of the snapshots; those that were taken before an interruption are read again."""
        self._steps = set(snapshot_steps(self.plan, int(trainer.estimated_stepping_batches), self.n_snapshots))
        if not self._steps:
            log.warning("no snapshot is due in this run's schedule and length: the term loss/snc is left out")
        for name, sha256 in self._taken.items():
            path = self.folder / name
            if not path.is_file() or file_sha256(path) != sha256:
                raise RunError(
                    f"a run goes on from its checkpoint with the snapshots it had taken, but {path} is missing or "
                    f"damaged; remove {self.folder.parent} to start this run anew"
                )
            self._add(cap_module(pl_module), path)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take a snapshot if this optimizer step is due."""
        step = trainer.global_step
        if step not in self._steps:
            return
        started = time.perf_counter()
        module = cap_module(pl_module)
        path = self.folder / f"step-{step:07d}.npy"
        take_snapshot(
            module.student,
            self.loader(),
            path,
            computation=computation_of(trainer),
            description=f"snapshot at step {step}",
            trainer=trainer,
            ranks=self.ranks,
        )
        n_taken = self._add(module, path)
        self._steps.discard(step)
        self._taken[path.name] = file_sha256(path)
        self.seconds += time.perf_counter() - started
        log.info("step %d: snapshot %d taken", step, n_taken)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102 - Lightning's hook
        return {"taken": self._taken, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102 - Lightning's hook
        self._taken, self.seconds = dict(state_dict["taken"]), state_dict["seconds"]

    def _add(self, module: CapModule, path: Path) -> int:
        if module.memory is None:
            raise ValueError("a snapshot needs a memory to go to, but the module has none")
        module.memory.add_encodings("snapshots", path)
        return module.memory.n_encodings("snapshots")


def snapshot_steps(plan: SchedulePlan, n_steps: int, n_snapshots: int) -> list[int]:
    """Choose the optimizer steps at which snapshots are taken.

    Args:
        plan: The schedule.
        n_steps: Optimizer steps of the run.
        n_snapshots: How many at most. Of a gradual schedule these are equally spaced over the run; of one with levels
            they lie before its rises after the first, as evenly among these as can be and with the last one.

    Returns:
        Rising steps, none of them 0: the student is the pre-trained model there, whose encodings exist already.

    Source: CAP's released scripts: before each rise of sparsity after the first (structured; at most nine), at the
    start of each epoch after the first of ten (unstructured).
    """
    starts = plan.level_starts(n_steps)
    if starts is None:
        steps = [round(i * n_steps / (n_snapshots + 1)) for i in range(1, n_snapshots + 1)]
        return sorted({step for step in steps if 0 < step < n_steps})
    rises = sorted({step for step in starts[1:] if 0 < step < n_steps})
    n_taken = min(n_snapshots, len(rises))
    return [rises[i * len(rises) // n_taken - 1] for i in range(1, n_taken + 1)]


__all__ = ["SnapshotCallback", "snapshot_steps"]
