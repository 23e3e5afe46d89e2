"""Which Python packages may be imported for the model that they carry."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from cap.base.errors import InputError
from cap.config.places import conf_dir


def require_known_package(package: str | None, *, named_in: str) -> None:
    """Refuse to import what only a file names: importing runs code, and a file may come from anywhere.

    Args:
        package: Its name; None is none.
        named_in: What a message calls the file.

    Raises:
        InputError: If no file of conf/model names it.
    """
    choices: list[Any] = [OmegaConf.load(file) for file in sorted((conf_dir() / "model").glob("*.yaml"))]
    nodes = [choice.get("model", choice) for choice in choices]  # a global file holds its own below its group's name
    known = [str(node.package) for node in nodes if node.get("package") is not None]
    if package is not None and package not in known:
        raise InputError(
            f"the model's package must be one that conf/model names ({', '.join(known)}), got {package!r} in "
            f"{named_in}; if you trust it, write a file for it into conf/model"
        )


__all__ = ["require_known_package"]
