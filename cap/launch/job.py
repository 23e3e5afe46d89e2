"""What Hydra says of the one run that a process makes: whether it is a job of a grid, and where it is made."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from cap.base.files import real_folder
from cap.config.check import Checked


def typed_overrides() -> list[str]:
    """List the overrides of this job as they were typed; none where it was started from Python."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def is_multirun() -> bool:
    """Say whether this job is one of ``python -m cap.train -m``."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def goes_on(checked: Checked) -> bool:
    """Say whether what an earlier attempt left counts: asked for, or usual in a grid."""
    skip = checked.config.skip_completed
    return checked.config.resume or (is_multirun() if skip is None else skip)


def run_folder(checked: Checked) -> Path:
    """Name the run's folder: ``output_dir``, or below ``outputs`` one that belongs to this configuration."""
    config = checked.config
    if config.output_dir is not None:
        return real_folder(Path(config.output_dir))
    root = Path("outputs")
    if is_multirun():
        sweep = HydraConfig.get().sweep
        if sweep.subdir != ".":
            return Path(sweep.dir) / sweep.subdir
        root = Path(sweep.dir)
    return root / config.task.name / f"{checked.pruning_name}-{config.sparsity:g}" / checked.hash


__all__ = ["goes_on", "is_multirun", "run_folder", "typed_overrides"]
