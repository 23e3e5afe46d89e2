"""Compose configurations quickly: what is chosen is composed once, values are put into a copy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, partial

from omegaconf import DictConfig


def composed_by_hydra(*overrides: str, command: str = "train") -> DictConfig:
    """Compose the configuration of a command as its command line would; this takes Hydra a fifth of a second."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    from cap.config.places import conf_dir
    from cap.config.schema import register

    register()
    GlobalHydra.instance().clear()  # a command that ran in this process has left its own
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose(command, overrides=list(overrides))


@cache
def composer(command: str = "train") -> Callable[..., DictConfig]:
    """Make a function of overrides that gives what ``composed_by_hydra`` gives, and keeps what it has composed."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser

    composed = cache(partial(composed_by_hydra, command=command))
    parser = OverridesParser.create()

    def compose_with(*overrides: str) -> DictConfig:
        config = copy.deepcopy(composed(*(override for override in overrides if not _is_value(override))))
        values = parser.parse_overrides([override for override in overrides if _is_value(override)])
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        return config

    return compose_with


def _is_value(override: str) -> bool:
    # Choices of a group, additions and deletions can change which files are read: Hydra gets them.
    from cap.config.places import conf_dir

    key, sign, _ = override.partition("=")
    is_plain = bool(sign) and key.replace("_", "").replace(".", "").isalnum()
    return is_plain and not key.startswith("hydra") and not (conf_dir() / key.replace(".", "/")).is_dir()
