"""The best validation of a run, beside its last one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def validations(record: Mapping[str, Any]) -> dict[str, Any]:
    """Pick the validations of a run that a table shows.

    Args:
        record: What ``record.json`` holds; ``levels`` are its validations, the end of the run included.

    Returns:
        ``best``: the highest score of the task's first metric, at whatever sparsity; ``best_at_target``: the highest of
        those whose target was the last one's, chosen on the rows that it is scored on; ``last``. Each is an item of
        ``levels``, the earliest of equals, or null where there is none. Validations of fewer rows than the last one
        (``trainer.limit_val_batches``) are passed over: they are scores of other rows.
    """
    metric = str(record.get("metric"))
    levels = [level for level in record.get("levels") or [] if _score(level, metric) is not None]
    levels = [level for level in levels if level.get("share", 1.0) == levels[-1].get("share", 1.0)]
    if not levels:
        return {"best": None, "best_at_target": None, "last": None}
    at_target = [level for level in levels if level.get("target") == levels[-1].get("target")]
    return {"best": _best(levels, metric), "best_at_target": _best(at_target, metric), "last": levels[-1]}


def best_at_target(record: Mapping[str, Any]) -> float | None:
    """Read the best score at the final sparsity, of a whole record or of one that was shortened."""
    kept = record.get("validations") or validations(record)
    return _score(kept.get("best_at_target"), str(record.get("metric")))


def _best(levels: Sequence[Mapping[str, Any]], metric: str) -> Mapping[str, Any]:
    return max(levels, key=lambda level: float(level["scores"][metric]))  # the first of equals


def _score(level: object, metric: str) -> float | None:
    scores = level.get("scores") if isinstance(level, Mapping) else None
    score = scores.get(metric) if isinstance(scores, Mapping) else None
    return float(score) if isinstance(score, int | float) else None


__all__ = ["best_at_target", "validations"]
