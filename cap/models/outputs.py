"""Which of a model's outputs belongs to which of a task's labels."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PretrainedConfig

from cap.base.errors import InputError
from cap.base.kinds import Head


def output_order(
    config: PretrainedConfig, *, head: Head, name: str, key: str, hint: str
) -> tuple[list[int] | None, list[str]]:
    """Find which of a model's outputs belongs to which of the task's labels.

    Args:
        config: The model's own, which names its outputs.
        head: The task's labels in its order.
        name: How to call the model.
        key: The configuration key that named it, for the message.
        hint: What to do if they do not fit, for the message.

    Returns:
        The number of the output of every label, None where they are as they should be; and what a reader must know.

    Raises:
        InputError: If the model has another number of outputs, or other labels.
    """
    if head.n_outputs == 0:
        return None, []
    found, wanted = names_of_outputs(config), list(head.labels)
    if len(found) != head.n_outputs:
        raise InputError(
            f"{key} must hold a model with {head.n_outputs} output{'s' if head.n_outputs > 1 else ''} for this "
            f"task, got {name} with {len(found)}; {hint}"
        )
    if not wanted or are_same(found, wanted):
        return None, []
    if are_no_names(found):
        return None, [f"{name} does not name its labels; they are taken to be {wanted} in this order."]
    order = order_by_name(found, wanted)
    if order is None:
        raise InputError(
            f"{key} must hold a model with the labels {wanted}, got {name} with {found}; {hint}. If they mean the same "
            f"one by one, rename them: in the rows, or in id2label of the model's config.json"
        )
    return order, [f"{name} has its labels in the order {found}; its outputs are matched by name."]


def names_of_outputs(config: PretrainedConfig) -> list[str]:
    """List what a model's configuration calls its outputs, in their order."""
    names = {int(index): str(label) for index, label in (config.id2label or {}).items()}
    return [names[index] for index in sorted(names)]


def are_same(found: Sequence[str], wanted: Sequence[str]) -> bool:
    """Say whether two lists hold the same names in the same order; capitals count if names differ in nothing else."""
    small = _lowered(found)
    return list(found) == list(wanted) or (small is not None and small == _lowered(wanted))


def are_no_names(found: Sequence[str]) -> bool:
    """Say whether outputs are called as transformers calls those without names."""
    return are_same(found, [f"label_{i}" for i in range(len(found))])


def order_by_name(found: Sequence[str], wanted: Sequence[str]) -> list[int] | None:
    """Find the place of every wanted name among those found; None if they are others, or in their order already."""
    if are_same(found, wanted):
        return None
    for own, others in ((list(found), list(wanted)), (_lowered(found), _lowered(wanted))):
        if own is not None and others is not None and sorted(own) == sorted(others):
            return [own.index(name) for name in others]
    return None


def _lowered(names: Sequence[str]) -> list[str] | None:
    """Write names in small letters; None if that makes some of them equal."""
    small = [name.lower() for name in names]
    return small if len(set(small)) == len(small) else None


__all__ = ["are_no_names", "are_same", "names_of_outputs", "order_by_name", "output_order"]
