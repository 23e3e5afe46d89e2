"""Small records: what a table with seeds needs of a run, and nothing of the machine that it ran on."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bake_off.cells import DIR, Cell
from benchmarks.bake_off.places import ROOT
from cap.base.settings import what_counts
from cap.runs.best import validations

_KEPT = (
    "config_hash",
    "environment",
    "seed",
    "data",
    "metric",
    "model",
    "scores",
    "teacher",
    "retention",
    "retention_reason",
    "retention_above_majority",
    "retention_above_majority_reason",
    "sparsity",
    "dynamics",
    "gradient_shares",
    "steps",
    "seconds_per_step",
    "seconds",
    "peak_memory_gb",
    "resumed_at",
    "warnings",
)
_LONGEST_LIST = 24
# Where the run lay and how it was shown.
_OF_THE_COMMAND = ("output_dir=", "cache_dir=", "resume=", "trainer.enable_progress_bar=")
# A path from the root, at the start of a text or behind a sign that ends a word.
_ABSOLUTE = re.compile(r"(?<![\w.:/)-])/(?:[^\s'\",;/]+/)*([^\s'\",;/]+)")


def small_record(
    record: dict[str, Any], cell: Cell, *, data_root: Path | None, commits: Sequence[str | None] = ()
) -> dict[str, Any]:
    """Shorten the record of a completed run.

    Args:
        record: What ``record.json`` holds.
        cell: What was run.
        data_root: The folder of all data, which is written DIR.
        commits: Of all attempts, the oldest first.

    Returns:
        A record that ``cap.report`` reads: without layers, levels and times that compare with nothing, the
        configuration without what changes no result, and with ``cell``, ``validations`` and ``commits``.
    """
    kept = {key: record[key] for key in _KEPT if key in record}
    command = [word for word in shlex.split(record["command"]) if not word.startswith(_OF_THE_COMMAND)]
    small = {
        "status": record["status"],
        "cell": {
            "name": cell.name,
            "arm": cell.arm,
            "variant": cell.variant,
            "block": cell.block,
            "task": cell.task,
            "overrides": list(cell.all_overrides),
        },
        "command": shlex.join(command),
        "config": what_counts(record["config"]),
        **kept,
        "validations": validations(record),
        # Another run had the next core.
        "seconds_comparable": False,
    }
    if len(set(commits)) > 1:
        small["commits"] = list(commits)
    shortened: dict[str, Any] = _without_long_lists(_without_places(small, data_root))
    # One word of a command may have been quoted for its folder's sake only.
    shortened["command"] = shlex.join(shlex.split(shortened["command"]))
    return shortened


def _without_places(value: Any, data_root: Path | None) -> Any:
    if isinstance(value, dict):
        return {key: _without_places(item, data_root) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item, data_root) for item in value]
    if not isinstance(value, str):
        return value
    if data_root is not None:
        value = value.replace(str(data_root), DIR)
    return _ABSOLUTE.sub(r"\1", value.replace(f"{ROOT}/", ""))


def _without_long_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_long_lists(item)
            for key, item in value.items()
            if not (isinstance(item, list) and len(item) > _LONGEST_LIST)
        }
    return value


__all__ = ["small_record"]
