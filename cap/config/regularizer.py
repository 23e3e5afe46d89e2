"""The regulariser's weight of soft movement, looked up in a table of weights that are known to reach a sparsity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def weight_for(table: Any, *, task: str, sparsity: float) -> tuple[float, str | None]:
    """Choose the regulariser's weight for a sparsity, as ``pruning.threshold=published`` needs it.

    Args:
        table: By task, a mapping of sparsities to the weights that are known to reach them. A task that it lacks takes
            those of its first one.
        task: The task.
        sparsity: The target, in [0, 1).

    Returns:
        The weight, and what a reader of the result must know of it: None if the table has this very one. Between and
        beyond two known sparsities it follows the power of the kept fraction that both lie on.

    Raises:
        ValueError: If the table is none.

    Source: the values are those of the released scripts; the power law is ours.
    """
    if not _is_table(table):
        raise ValueError(
            f"pruning.regularizer_weights must give weights > 0 by task and sparsity, like {{qqp: {{0.9: 190}}}}, "
            f"got {table}"
        )
    source = task if task in table else next(iter(table))
    known = sorted((1 - target, weight) for target, weight in table[source].items())
    (low, at_low), (high, at_high) = known[0], known[-1]
    exact = next((weight for kept, weight in known if math.isclose(kept, 1 - sparsity)), None)
    power = math.log(at_high / at_low) / math.log(high / low) if high > low else 0.0
    weight = float(f"{at_low * ((1 - sparsity) / low) ** power:.3g}") if exact is None else exact
    if source == task and exact is not None:
        return weight, None
    how = "is known" if exact is not None else f"follows a power law through {dict(table[source])}, known"
    return weight, (
        f"pruning.regularizer_weight={weight:g} {how} for task={source} and not for task={task} at "
        f"sparsity={sparsity:g}, which may be missed; pruning.threshold=target meets it exactly."
    )


def _is_table(table: object) -> bool:
    return (
        isinstance(table, Mapping)
        and bool(table)
        and all(
            isinstance(row, Mapping) and row and all(0 <= target < 1 and weight > 0 for target, weight in row.items())
            for row in table.values()
        )
    )


__all__ = ["weight_for"]
