"""Which keys of a configuration change a result: by these runs are told from one another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# What a run is called, where it lies, how it is shown and how it is kept does not change what it computes.
_CHANGES_NOTHING = (
    "output_dir",
    "cache_dir",
    "logger",
    "traceback",
    "dry_run",
    "resume",
    "overwrite",
    "skip_completed",
    "checkpoint",
    "memory",
    "contrast.default_weights",
    "data.num_workers",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.profiler",
)
# Keys that are newer than records which must still be found: with this value they say what their absence says.
_SAYS_NOTHING = {"trainer.num_nodes": 1, "data.keep_unlabelled": False}


def what_counts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out of a configuration what changes no result.

    Args:
        config: A resolved configuration.

    Returns:
        The rest: without names and places, and without keys that are null. Null says what an absent key says, so that a
        key which is new, and not used, makes no other configuration of what an older version ran.
    """
    return _what_counts(config, "")


def _what_counts(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    kept = {
        key: _what_counts(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in node.items()
        if f"{prefix}{key}" not in _CHANGES_NOTHING
        and (f"{prefix}{key}" not in _SAYS_NOTHING or value != _SAYS_NOTHING[f"{prefix}{key}"])
    }
    return {key: value for key, value in kept.items() if value is not None and value != {}}


def flatten(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings under their dotted keys."""
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


__all__ = ["flatten", "what_counts"]
