"""Which of a model's outputs belongs to which of a task's labels."""

from __future__ import annotations

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
    names = {int(index): str(label) for index, label in (config.id2label or {}).items()}
    found, wanted = [names[i].lower() for i in sorted(names)], [label.lower() for label in head.labels]
    if len(found) != head.n_outputs:
        raise InputError(
            f"{key} must hold a model with {head.n_outputs} output{'s' if head.n_outputs > 1 else ''} for this "
            f"task, got {name} with {len(found)}; {hint}"
        )
    if not wanted or found == wanted:
        return None, []
    if found == [f"label_{i}" for i in range(len(found))]:
        return None, [f"{name} does not name its labels; they are taken to be {list(head.labels)} in this order."]
    if sorted(found) != sorted(wanted):
        raise InputError(
            f"{key} must hold a model with the labels {list(head.labels)}, got {name} with "
            f"{[names[i] for i in sorted(names)]}; {hint}"
        )
    return [found.index(label) for label in wanted], [
        f"{name} has its labels in the order {[names[i] for i in sorted(names)]}; its outputs are matched by name."
    ]


__all__ = ["output_order"]
