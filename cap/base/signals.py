"""The signals that ask a run to end."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

# What schedulers send before the time of a job is over, where they are asked to: SLURM's --signal, submitit's limit.
_WARNINGS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, *_WARNINGS)
"""They ask a run to write a checkpoint and end."""


def hand_on(number: int | None, handlers: Mapping[int, Any]) -> None:
    """Call the handler that a scheduler's warning had before the run: submitit's queues the job again.

    Args:
        number: Of the signal that has ended the run; None if none has.
        handlers: Those from before the run, by signal.
    """
    if number is None or number not in _WARNINGS:
        return
    handler = handlers.get(number)
    if callable(handler):  # neither the system's own nor none
        handler(number, None)


__all__ = ["STOP_SIGNALS", "hand_on"]
