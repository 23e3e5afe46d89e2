"""The pre-trained model that a file names: the record of a run, or masks that lie on a base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cap.config.packages import require_known_package
from cap.models.sources import ModelSource, resolve_source

PLACE = ("name_or_path", "package", "revision")
"""The keys under ``model`` that say where it is."""


def recorded_model(settings: Mapping[str, Any], *, named_in: str, sha256: str | None = None) -> ModelSource:
    """Find the model that a file names.

    Args:
        settings: What a run's configuration holds under ``model``, or of it at least what says where the model is.
        named_in: What a message calls the file.
        sha256: As of ``resolve_source``.

    Raises:
        InputError: If it is nowhere, or comes with a package that conf/model does not name.
    """
    place = {key: settings.get(key) for key in PLACE}
    if place["name_or_path"] is None:  # else the package is not used
        require_known_package(place["package"], named_in=named_in)
    return resolve_source(**place, sha256=sha256)


__all__ = ["PLACE", "recorded_model"]
