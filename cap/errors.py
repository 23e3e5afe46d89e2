"""The two kinds of failure that a door shows as one message instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Report something the user gave that cannot work; a door exits with code 2."""


class RunError(RuntimeError):
    """Report a run that had to stop although its input was valid; a door exits with code 1."""


def nearest_first(given: str, known: Iterable[str]) -> list[str]:
    """Order the known names by their likeness to what was given, most alike first."""
    return sorted(known, key=lambda name: (-difflib.SequenceMatcher(None, given, name).ratio(), name))


__all__ = ["InputError", "RunError", "nearest_first"]
