"""What the jobs of a grid are going to be told, and which are going to be refused, before the first of them begins."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from cap.base.errors import InputError


def planned(config: DictConfig) -> list[list[str]]:
    """List what each job will be told, if the sweeper is the one that multiplies lists."""
    sweeper = config.hydra.sweeper
    if sweeper._target_ != BasicSweeperConf._target_:
        return []
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    params = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    overrides = parser.parse_overrides([*params, *as_typed(config.hydra.overrides.task)])
    return [job for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]


def refused(config: DictConfig, jobs: list[list[str]], check: Callable[[DictConfig], object]) -> dict[int, str]:
    """Find the jobs whose values break a rule.

    Args:
        config: The grid's own, with Hydra's part.
        jobs: What each is told.
        check: Raises an ``InputError`` for a composed configuration that cannot work. It takes a fifth of a second a
            job, nearly all of it for composing.

    Returns:
        The reason in one line, by the number of the job.
    """
    loader = GlobalHydra.instance().config_loader()
    reasons = {}
    with _quiet():
        for number, overrides in enumerate(jobs):
            # Hydra says itself what it cannot compose; a value may also need what only a running job knows.
            with suppress(HydraException, OmegaConfBaseException):
                composed = loader.load_sweep_config(config, overrides)
                with open_dict(composed):
                    del composed["hydra"]
                try:
                    check(composed)
                except InputError as error:
                    reasons[number] = " ".join(str(error).split())
    return reasons


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what a check says about a job: the job says it again."""
    logger = logging.getLogger("cap")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def as_typed(overrides: ListConfig) -> list[str]:
    """List overrides; one may hold an interpolation, which is not to be followed here."""
    typed: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(override) for override in typed]


__all__ = ["as_typed", "planned", "refused"]
