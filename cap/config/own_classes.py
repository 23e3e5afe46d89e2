"""Classes of the user's own in place of a pruning type or a schedule of ours: where their code is, and which it is."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

_OURS = "cap."


def code_key(target: str) -> str | None:
    """Name the code of a class, so that a run with another version of it is another run.

    Args:
        target: What ``_target_`` says, such as ``wanda.Wanda``.

    Returns:
        A hash of the file that holds the class; None for a class of this package, whose version is its commit, and for
        one without a file. What that file imports does not count.

    Raises:
        ValueError: If there is no such module.
    """
    if target.startswith(_OURS):
        return None
    file = _file_of(target)
    return None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _file_of(target: str) -> Path | None:
    module, _, name = target.rpartition(".")
    try:
        spec = importlib.util.find_spec(module) if module else None
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise ValueError(
            f"must be a class that Python can import, MODULE.CLASS, got {target!r}, whose module "
            f"{module or name!r} is not found; put its folder on PYTHONPATH"
        )
    return Path(spec.origin) if spec.origin is not None and Path(spec.origin).is_file() else None


__all__ = ["code_key"]
