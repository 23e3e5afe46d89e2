"""Loggers that are not ours: what they say when they cannot work, and how they end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning.pytorch.loggers import Logger

from cap.base.errors import InputError, first_line


@contextmanager
def errors_of_wandb() -> Iterator[None]:
    """Turn what W&B says of a missing login or server into what to do.

    Raises:
        InputError: In place of W&B's own errors.
    """
    try:
        yield
    except Exception as error:
        # W&B is not imported for this: it takes a second, and most runs have no part of it.
        if not type(error).__module__.startswith("wandb"):
            raise
        raise InputError(
            f"logger=wandb must reach W&B, but: {first_line(error)}; run `wandb login`, set WANDB_MODE=offline in the "
            f"environment and upload later with `wandb sync`, or set logger=csv"
        ) from error


def close_loggers(loggers: Sequence[Logger], *, ends_wandb: bool, succeeded: bool, is_stopped: bool) -> None:
    """End the loggers of a run.

    Args:
        loggers: Those of the run.
        ends_wandb: Whether this process ends its W&B run: the next job of a multirun would write into it otherwise.
        succeeded: Whether the run is complete.
        is_stopped: Whether it was asked to stop, so that the sweep's next agent is to take it up again.
    """
    try:
        for logger in loggers:
            logger.finalize("success" if succeeded else "failed")
    finally:
        # W&B is imported where it is used alone.
        if ends_wandb and (wandb := sys.modules.get("wandb")) is not None and wandb.run is not None:
            if is_stopped and "WANDB_SWEEP_ID" in os.environ:
                wandb.run.mark_preempting()
            wandb.finish(exit_code=0 if succeeded else 1)


__all__ = ["close_loggers", "errors_of_wandb"]
