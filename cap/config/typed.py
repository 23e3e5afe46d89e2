"""A composed configuration as the typed values of its schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TypeVar

from omegaconf import DictConfig, OmegaConf

from cap.base.errors import InputError, nearest_first

Schema = TypeVar("Schema")
_N_SUGGESTIONS = 3


def typed(cfg: DictConfig, schema: type[Schema], name: str) -> Schema:
    """Return the values of a composed configuration.

    Args:
        cfg: The configuration.
        schema: The dataclass that it starts from.
        name: Of its file in conf/, without ending.

    Raises:
        InputError: If it has a key that the schema has not, which ``+trainer.benchmark=true`` adds.
        TypeError: If it starts from anything else.
    """
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, schema):
        raise TypeError(f"conf/{name}.yaml must start from the schema, got {type(config).__name__}")
    if problems := [*_unknown_keys(config, "")]:
        raise InputError("\n".join(problems))
    return config


def _unknown_keys(part: object, path: str) -> Iterator[str]:
    """Name what the typed parts hold besides their fields: nothing reads it."""
    if not dataclasses.is_dataclass(part):
        return
    known = [field.name for field in dataclasses.fields(part)]
    for key, value in vars(part).items():
        if key in known:
            yield from _unknown_keys(value, f"{path}{key}.")
        else:
            nearest = ", ".join(f"{path}{name}" for name in nearest_first(key, known)[:_N_SUGGESTIONS])
            yield f"there is no key '{path}{key}', and a plus adds none; the nearest known ones are {nearest}"


__all__ = ["typed"]
