"""When the student itself is encoded, and how its snapshots outlive an interruption."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from cap.base.errors import RunError
from cap.base.files import file_sha256
from cap.objectives.memory import Memory
from cap.pruning.schedule import SchedulePlan, snapshot_steps
from cap.training.encode import computation_of, snapshot_files, take_snapshot
from cap.training.module import CapModule, cap_module
from cap.training.parallel.ranks import ranks_of
from cap.training.parallel.shares import ENCODINGS, LENGTHS, LOGITS

log = logging.getLogger(__name__)


class SnapshotCallback(Callback):
    """Encode the training set with the student itself, before the masks of that step move.

    Args:
        plan: The schedule; one with levels is encoded before its rises after the first, a gradual one at equally
            spaced steps.
        n_snapshots: How many snapshots to take at most, >= 0.
        loader: Told rank and number of processes, makes the data loader with this process's share of the training
            rows, every one once over all processes together.
        folder: Where snapshots are kept during the run; every process sees it.
        with_encodings: True if the student is contrasted with them, all of them.
        with_logits: True if it is distilled from the newest one's logits.
    """

    def __init__(
        self,
        plan: SchedulePlan,
        *,
        n_snapshots: int,
        loader: Callable[[int, int], DataLoader],
        folder: Path,
        with_encodings: bool = True,
        with_logits: bool = False,
    ) -> None:
        self.plan = plan
        self.n_snapshots = n_snapshots
        self.loader = loader
        self.folder = folder
        self.with_encodings = with_encodings
        self.with_logits = with_logits
        self.seconds = 0.0
        self._steps: set[int] = set()
        # Of each snapshot, in the order of the steps: what its files hold, and their hashes.
        self._taken: dict[str, dict[str, str]] = {}

    @property
    def n_taken(self) -> int:
        """Count the snapshots so far."""
        return len(self._taken)

    @property
    def terms(self) -> str:
        """Name the loss terms that need snapshots."""
        wanted = {"loss/snc": self.with_encodings, "loss/snapshot_kd": self.with_logits}
        return " and ".join(term for term, is_on in wanted.items() if is_on)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the steps of the snapshots; those that were taken before an interruption are read again.

        Raises:
            RunError: If one of these is gone, or was changed.
        """
        steps = snapshot_steps(self.plan, int(trainer.estimated_stepping_batches), self.n_snapshots)
        # Older versions could write a checkpoint in the step of a snapshot, after it was taken.
        self._steps = {step for step in steps if _name_at(step) not in self._taken}
        if not steps:
            log.warning("no snapshot is due in this run's schedule and length: left out is %s", self.terms)
        module = cap_module(pl_module)
        for name, hashes in self._taken.items():
            files = snapshot_files(self.folder / name)
            for content, sha256 in hashes.items():
                if not files[content].is_file() or file_sha256(files[content]) != sha256:
                    raise RunError(
                        f"a run goes on from its checkpoint with the snapshots it had taken, but {files[content]} is "
                        f"missing or damaged; remove {self.folder.parent} to start this run again"
                    )
            self._add_encodings(module, name)
        self._replace_logits(module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Take a snapshot if this optimizer step is due."""
        step = trainer.global_step
        if step not in self._steps:
            return
        started = time.perf_counter()
        module, ranks = cap_module(pl_module), ranks_of(trainer)
        path = self.folder / _name_at(step)
        written = take_snapshot(
            module.student,
            self.loader(ranks.rank, ranks.size),
            path,
            computation=computation_of(trainer),
            description=f"snapshot at step {step}",
            with_encodings=self.with_encodings,
            with_logits=self.with_logits,
            trainer=trainer,
        )
        self._taken[path.name] = {name: file_sha256(snapshot_files(path)[name]) for name in written}
        self._add_encodings(module, path.name)
        self._replace_logits(module)
        self._steps.discard(step)
        self.seconds += time.perf_counter() - started
        log.info("step %d: snapshot %d taken", step, self.n_taken)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102 - Lightning's hook
        return {"taken": {name: dict(hashes) for name, hashes in self._taken.items()}, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102 - Lightning's hook
        self._taken, self.seconds = dict(state_dict["taken"]), state_dict["seconds"]

    def _add_encodings(self, module: CapModule, name: str) -> None:
        if ENCODINGS in self._taken[name]:
            _memory(module).add("snapshots", self.folder / name)

    def _replace_logits(self, module: CapModule) -> None:
        """Give the memory the logits of the newest snapshot, which alone is distilled from."""
        newest = next(reversed(self._taken), None)
        if newest is None or LOGITS not in self._taken[newest]:
            return
        files = snapshot_files(self.folder / newest)
        lengths = files[LENGTHS] if LENGTHS in self._taken[newest] else None
        _memory(module).set_snapshot_logits(files[LOGITS], lengths=lengths)


def _name_at(step: int) -> str:
    return f"step-{step:07d}.npy"


def _memory(module: CapModule) -> Memory:
    if module.memory is None:
        raise ValueError("a snapshot needs a memory to go to, but the module has none")
    return module.memory


__all__ = ["SnapshotCallback"]
