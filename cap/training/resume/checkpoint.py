"""The state of a run on disk: when it is written, and how a run goes on from it."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from cap.base.errors import RunError, StoppedError
from cap.base.files import file_sha256, read_json, write_json
from cap.training.module import cap_module
from cap.training.parallel.ranks import ranks_of
from cap.training.resume.curves import CurvesLogger
from cap.training.resume.randomness import random_state, set_random_state
from cap.training.resume.stop import stop

log = logging.getLogger(__name__)

_KEY = "cap"
_BYTES_PER_GB = 1e9


class CheckpointCallback(Callback):
    """Write checkpoints at the start of an optimizer step, before anything else happens in it.

    It must run before all callbacks that change something. There the state of a run is that of its loops,
    parameters, buffers and callbacks alone: no gradient, no half-filled batch. A checkpoint holds what cannot be had
    again: not the frozen models, and not their encodings, which the cache gives back by content.

    Args:
        folder: Where; the newest two are kept.
        every_n_minutes: Minutes between checkpoints; None for never.
        every_n_steps: Optimizer steps between checkpoints; None for never.
        config_hash: Of the configuration; a checkpoint of another one is none.
    """

    def __init__(
        self,
        folder: Path,
        *,
        every_n_minutes: float | None,
        every_n_steps: int | None,
        config_hash: str,
    ) -> None:
        self.folder = folder
        self.every_n_minutes = every_n_minutes
        self.every_n_steps = every_n_steps
        self.config_hash = config_hash
        self.seconds = 0.0  # of training before this attempt
        self._resumed: dict[str, Any] | None = None
        self._step = -1
        self._last_time = self._started = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, and remember signals from here on."""
        self._last_time = time.monotonic()
        stop.install()  # Lightning has put its own handlers on
        stop.is_deferred = True
        if self._resumed is not None:
            # Lightning forgets to, where the loader was made before the checkpoint was read: to count its batches, say.
            _loader(trainer).load_state_dict(self._resumed["loader"])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Go on where a checkpoint was written, or write one if it is due."""
        step = trainer.global_step
        if self._resumed is not None:
            self._go_on(trainer, self._resumed)
            self._resumed = None
        elif step != self._step:  # several batches share a step under accumulation
            ranks = ranks_of(trainer)
            signal, is_due = ranks.highest([stop.signal or 0, int(ranks.is_first and self._is_due(step))])
            if signal:
                raise StoppedError(signal, is_clean=True)
            if is_due:
                self.save(trainer)
        self._step = step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the trained student until its model is saved and scored."""
        if self.every_n_minutes is not None or self.every_n_steps is not None or stop.signal is not None:
            self.save(trainer)
        stop.is_deferred = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write a checkpoint if the run was stopped from outside at a place where that can be done."""
        if isinstance(exception, StoppedError) and exception.is_clean and trainer.global_step > 0:
            self.save(trainer)
        stop.is_deferred = False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not keep."""
        checkpoint[_KEY] = {
            "random": ranks_of(trainer).gather(random_state(trainer.strategy.root_device)),
            "frozen": dict(cap_module(pl_module).frozen_keys),
            "loader": _loader(trainer).state_dict(),
            "n_batches_that_stepped": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "seconds": self.seconds + time.monotonic() - self._started,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take it back; the generators are set when the first batch begins.

        Raises:
            RunError: If a frozen model is not the one that the run began with.
        """
        own = cap_module(pl_module).frozen_keys
        changed = [name for name, key in checkpoint[_KEY]["frozen"].items() if own.get(name) != key]
        if changed:
            raise RunError(
                f"a run goes on with the models it began with, but the encodings of {', '.join(changed)} are others "
                f"now, made again from other weights; remove {self.folder} to start this run again"
            )
        self._resumed = checkpoint[_KEY]
        self.seconds = checkpoint[_KEY]["seconds"]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start counting this attempt's seconds."""
        self._started = time.monotonic()

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint, then forget all but the newest two.

        Raises:
            RunError: If it cannot be written; the one before it is as it was.
        """
        step = trainer.global_step
        path = self.folder / f"step-{step:07d}.ckpt"
        n_rows = sum(logger.n_rows() for logger in trainer.loggers if isinstance(logger, CurvesLogger))
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(path)
        if ranks_of(trainer).is_first:
            n_bytes = path.stat().st_size
            # The list of what a whole file is comes last: a checkpoint without it does not count.
            write_json(
                path.with_suffix(".json"),
                {
                    "step": step,
                    "bytes": n_bytes,
                    "sha256": file_sha256(path),
                    "config_hash": self.config_hash,
                    "n_rows": n_rows,
                    "device": trainer.strategy.root_device.type,
                },
            )
            self._forget_others(path)
            log.info("step %d: checkpoint of %.2f GB", step, n_bytes / _BYTES_PER_GB)
        self._last_time = time.monotonic()

    def _forget_others(self, newest: Path) -> None:
        """Keep the newest checkpoint and the one before it; remove others, torn ones and what killed writes left."""
        before = [path for path in self.folder.glob("step-*.json") if path.stem < newest.stem and _has_its_size(path)]
        kept = {newest.stem, *(path.stem for path in sorted(before)[-1:])}
        for path in [*self.folder.glob("step-*.json"), *self.folder.glob("step-*.ckpt"), *self.folder.glob(".step-*")]:
            if path.stem not in kept:  # the list goes before the file: without it the file does not count
                path.unlink()

    def _is_due(self, step: int) -> bool:
        minutes = (time.monotonic() - self._last_time) / 60
        return step > 0 and (
            (self.every_n_minutes is not None and minutes >= self.every_n_minutes)
            or (self.every_n_steps is not None and step % self.every_n_steps == 0)
        )

    def _go_on(self, trainer: Trainer, state: dict[str, Any]) -> None:
        set_random_state(state["random"][ranks_of(trainer).rank], trainer.strategy.root_device)
        # Lightning takes a checkpoint for one that was written at the end of a batch: both counters would be one ahead,
        # so that curves and validations would move by a step.
        loop = trainer.fit_loop.epoch_loop
        loop._batches_that_stepped = state["n_batches_that_stepped"]
        loop.batch_progress.total.ready = loop.batch_progress.total.completed + 1


def _has_its_size(listed: Path) -> bool:
    try:
        return bool(listed.with_suffix(".ckpt").stat().st_size == read_json(listed)["bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _loader(trainer: Trainer) -> Any:
    """Return the loader of training batches, which knows how far it is."""
    return trainer.train_dataloader


__all__ = ["CheckpointCallback"]
