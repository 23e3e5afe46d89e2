"""Classes of the user's own in place of a pruning type or a schedule of ours: where their code is, and which it is."""

from __future__ import annotations

import hashlib
import inspect
from functools import cache
from pathlib import Path

from hydra.utils import get_class

_OURS = "cap."


@cache  # a process goes on with the class that it has imported, whatever becomes of the file
def code_key(target: str) -> str | None:
    """Name the code of a class, so that a run with another version of it is another run.

    Args:
        target: What ``_target_`` says, such as ``wanda.Wanda``.

    Returns:
        A hash of the file that the class is written in, as it was when this process first asked; None for a class of
        this package, whose version is its commit, and for one without a file. What that file imports does not count.

    Raises:
        ValueError: If it cannot be imported, for whatever reason, or is no class.
    """
    if target.startswith(_OURS):
        return None
    try:
        found = get_class(target)
    except Exception as error:  # its module is the user's, and may raise anything
        cause = error.__cause__ or error
        reason = (str(cause).splitlines() or [type(cause).__name__])[0]
        raise ValueError(
            f"must be a class that Python can import, MODULE.CLASS, got {target!r}: {reason.removesuffix('.')}; is its "
            f"folder on PYTHONPATH?"
        ) from error
    try:
        file = inspect.getsourcefile(found)
    except TypeError:  # built in, or made in an interpreter
        return None
    return (
        None if file is None or not Path(file).is_file() else hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
    )


__all__ = ["code_key"]
