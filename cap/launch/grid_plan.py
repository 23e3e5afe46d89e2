"""What the jobs of a grid are going to be told, as far as that is known before the first of them begins."""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, ListConfig, OmegaConf


def planned(config: DictConfig) -> list[list[str]]:
    """List what each job will be told, if the sweeper is the one that multiplies lists."""
    sweeper = config.hydra.sweeper
    if sweeper._target_ != BasicSweeperConf._target_:
        return []
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    overrides = parser.parse_overrides([*params, *as_typed(config.hydra.overrides.task)])
    return [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]


def as_typed(overrides: ListConfig) -> list[str]:
    """List overrides; one may hold an interpolation, which is not to be followed here."""
    typed: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(override) for override in typed]


__all__ = ["as_typed", "planned"]
