"""The checkpoints in a run's folder: how a torn file is told from a whole one."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from cap.base.files import file_sha256, read_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Name a whole checkpoint.

    Args:
        path: The file, which ``Trainer.fit(ckpt_path=...)`` takes.
        step: Optimizer steps that are done.
        n_rows: Rows of ``metrics.csv`` when it was written.
        device: The type of device that the run was on; None of a checkpoint that does not say.
    """

    path: Path
    step: int
    n_rows: int
    device: str | None = None


def newest_checkpoint(folder: Path, *, config_hash: str) -> Checkpoint | None:
    """Find the newest checkpoint of a configuration that is whole.

    Args:
        folder: Where checkpoints are written.
        config_hash: Of the configuration.

    Returns:
        The checkpoint; None if there is none. A torn file is passed over, and said.
    """
    for listed in sorted(folder.glob("step-*.json"), reverse=True):
        path = listed.with_suffix(".ckpt")
        try:
            expected = read_json(listed)
            if expected["config_hash"] != config_hash:
                continue
            is_whole = path.stat().st_size == expected["bytes"] and file_sha256(path) == expected["sha256"]
            if is_whole:
                return Checkpoint(path, expected["step"], expected["n_rows"], expected.get("device"))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        log.warning("the checkpoint %s is torn; the one before it is used", path.name)
    return None


__all__ = ["Checkpoint", "newest_checkpoint"]
