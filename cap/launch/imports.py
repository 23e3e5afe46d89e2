"""Import what takes seconds, torch and the libraries on it, in less of them."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def first_import() -> Iterator[None]:
    """Keep the garbage collector away from a process's first import of torch.

    These modules make some millions of objects, and the collector looks at them again and again while they come, for a
    fifth to a third of the time. None of them goes before the process ends, so it need not look at them afterwards
    either. Where torch is there already nothing is done: what else is there then may be garbage.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


__all__ = ["first_import"]
