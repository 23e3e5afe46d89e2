"""The kinds of failure that a door shows as one message instead of a traceback."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Sequence

_LONGEST = 200  # characters of another program's error within one of ours
_N_NAMED = 3


class InputError(ValueError):
    """Report something the user gave that cannot work."""

    exit_code = 2
    """What a door exits with."""


class RunError(RuntimeError):
    """Report a run that had to stop although its input was valid."""

    exit_code = 1
    """What a door exits with."""


class StoppedError(BaseException):
    """Report a run that was asked to stop by a signal; a door exits with 128 + the signal's number, as shells say it.

    Like KeyboardInterrupt it is no ``Exception``: nobody who handles failures may take it for one.

    Args:
        number: Of the signal: 15 is SIGTERM, 2 is SIGINT.
        is_clean: True where it was raised at a place at which the state of the run can be written down.
    """

    def __init__(self, number: int, *, is_clean: bool) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number
        self.is_clean = is_clean

    @property
    def exit_code(self) -> int:
        """143 after SIGTERM, 130 after SIGINT."""
        return 128 + self.number


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:_LONGEST]


def out_of_memory_reason(error: BaseException) -> str | None:
    """Say in words that a device had no room left; None if an error means something else."""
    # By its name: a door that needs no torch does not load it for this.
    if type(error).__name__ != "OutOfMemoryError":
        return None
    return f"the device must have room for the models and a batch, but: {first_line(error)}"


def nearest_first(given: str, known: Iterable[str]) -> list[str]:
    """Order the known names by their likeness to what was given, most alike first."""
    return sorted(known, key=lambda name: (-difflib.SequenceMatcher(None, given, name).ratio(), name))


def some_of(names: Sequence[str], *, separator: str = ", ") -> str:
    """Name the first few, and say how many more there are."""
    more = f" and {len(names) - _N_NAMED:,} more" if len(names) > _N_NAMED else ""
    return f"{separator.join(names[:_N_NAMED])}{more}"


__all__ = ["InputError", "RunError", "StoppedError", "first_line", "nearest_first", "out_of_memory_reason", "some_of"]
