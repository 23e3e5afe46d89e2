"""A composed configuration as the typed values of its schema."""

from __future__ import annotations

from typing import TypeVar

from omegaconf import DictConfig, OmegaConf

Schema = TypeVar("Schema")


def typed(cfg: DictConfig, schema: type[Schema], name: str) -> Schema:
    """Return the values of a composed configuration.

    Args:
        cfg: The configuration.
        schema: The dataclass that it starts from.
        name: Of its file in conf/, without ending.

    Raises:
        TypeError: If it starts from anything else.
    """
    config = OmegaConf.to_object(cfg)
    if not isinstance(config, schema):
        raise TypeError(f"conf/{name}.yaml must start from the schema, got {type(config).__name__}")
    return config


__all__ = ["typed"]
