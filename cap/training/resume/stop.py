"""The signals that ask a run to stop as one request, answered where the state of the run can be written down."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cap.base.errors import StoppedError
from cap.base.signals import STOP_SIGNALS, hand_on

log = logging.getLogger(__name__)

# A launcher may pass on what the terminal has sent to every process already: within this time it is one request.
_ONE_REQUEST_SECONDS = 2.0


class StopRequest:
    """Remember that this process was asked to stop.

    Outside of training a signal raises ``StoppedError`` at once: what is made there is kept whole or not at all.
    While ``is_deferred`` the signal is only remembered, and training answers it at the next place where a checkpoint
    can be written. A second signal does not wait for that.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.is_deferred = False
        self._since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Answer the signals in this block; only the main thread of a process is sent any.

        Handlers that were there for a scheduler's warning are called afterwards.
        """
        self.signal, self.is_deferred = None, False
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = self.install()
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            hand_on(self.signal, previous)

    def install(self) -> dict[int, Any]:
        """Put the handlers on, and return those that were there; Lightning's fit puts its own on beforehand."""
        if threading.current_thread() is not threading.main_thread():
            return {}
        return {number: signal.signal(number, self._receive) for number in STOP_SIGNALS}

    def check(self) -> None:
        """Stop here if it was asked for; nothing is half done at the place that calls this.

        Raises:
            StoppedError: If so.
        """
        if self.signal is not None:
            raise StoppedError(self.signal, is_clean=True)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        is_repeated = self.signal is not None
        if is_repeated and time.monotonic() - self._since < _ONE_REQUEST_SECONDS:
            return
        self.signal, self._since = number, time.monotonic()
        if self.is_deferred and not is_repeated:
            log.warning("%s: a checkpoint is written after this step, then the run ends", signal.Signals(number).name)
            return
        raise StoppedError(number, is_clean=False)


stop = StopRequest()
"""The request of this process; signals belong to a process, and so does this."""

__all__ = ["StopRequest", "stop"]
