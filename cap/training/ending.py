"""What the end of a run adds to its record: its level, its model among the kept ones, its parts; what to warn of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from cap.models.depth import read_removed
from cap.pruning.masks import count_matrix_zeros, count_pruned_units, matrix_kinds
from cap.runs.folder import MODEL

# What a reached sparsity may differ from the one that was asked for without a word.
_TOLERATED = 0.005


def missed_sparsity(sparsity: Mapping[str, Any], pruning: Mapping[str, Any]) -> str | None:
    """Say that a run missed the sparsity that was asked for, and why; None if it did not.

    Args:
        sparsity: The ``asked`` one, and that of the ``prunable`` weights.
        pruning: The settings of the pruning type.
    """
    asked, reached = sparsity["asked"], sparsity["prunable"]
    if abs(reached - asked) <= _TOLERATED:
        return None
    message = f"Sparsity {asked:g} was asked for and {reached:.4f} was reached"
    if pruning.get("threshold") != "published":
        return f"{message}."
    return (
        f"{message}: with pruning.threshold=published it follows from pruning.regularizer_weight, which was "
        f"{pruning['regularizer_weight']:g}; {'raise' if reached < asked else 'lower'} that, or set "
        f"pruning.threshold=target."
    )


def kept_without_training(kept: Sequence[Mapping[str, Any]]) -> str | None:
    """Say which kept models were not trained at their sparsity; None if all were.

    Args:
        kept: The lines of the record about kept models.
    """
    levels = [f"{line['sparsity']['asked']:g}" for line in kept if not line.get("is_retrained", False)]
    if not levels:
        return None
    return (
        f"The models kept at {', '.join(levels)} were saved as the schedule passed these sparsities, without "
        f"training at them: a run of its own may score higher there."
    )


def end_levels(record: Mapping[str, Any], pruned: Mapping[str, float]) -> None:
    """Add the end of the run to the levels, unless a validation on the last step was like it.

    Args:
        record: Of the run; its levels are changed.
        pruned: Scores of the saved model.
    """
    levels, step = record["levels"], record["steps"]
    kind = {"share": 1.0, "precision": "32-true"}
    if not levels or levels[-1]["step"] != step or any(levels[-1].get(key) != kind[key] for key in kind):
        sparsity = record["sparsity"]
        reached = {"target": sparsity["asked"], "sparsity": sparsity["prunable"]}
        levels.append({"step": step, **reached, "scores": pruned, **kind})


def end_kept(record: Mapping[str, Any], pruned: Mapping[str, float], *, asked_for: Sequence[float | None]) -> None:
    """End the list of kept models with the run's own, if its sparsity was asked for.

    Args:
        record: Of the run; its kept models are changed.
        pruned: Scores of the saved model.
        asked_for: The levels that ``keep_levels`` means.
    """
    kept, sparsity = record.get("kept"), record["sparsity"]
    if kept is not None and sparsity["asked"] in asked_for:
        line = {"step": record["steps"], "sparsity": sparsity, "scores": pruned, "folder": MODEL}
        kept.append({**line, "is_retrained": True})


def end_parts(record: dict[str, Any], saved: PreTrainedModel) -> None:
    """Write down what the saved model has left of its matrices and units, and which layers, if some are gone.

    Args:
        record: Of the run; it is changed.
        saved: The model.
    """
    record["matrices"] = {name: list(count) for name, count in count_matrix_zeros(saved).items()}
    record["matrix_kinds"] = matrix_kinds(saved)
    record["units"] = count_pruned_units(saved)
    removed = read_removed(saved.config)
    if removed is not None:
        record["layers"] = {"kept": list(removed.kept), "n_dense": removed.n_dense}


__all__ = ["end_kept", "end_levels", "end_parts", "kept_without_training", "missed_sparsity"]
