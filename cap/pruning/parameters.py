"""What an optimizer is given of a pruned model: weights, and scores with a learning rate of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from cap.base.errors import InputError
from cap.base.parts import Part
from cap.models.families import AnyPart, parameters_of
from cap.pruning.pruner import MASK, Pruner


def parameter_groups(
    model: nn.Module, pruner: Pruner | None, *, learning_rate: float, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Split what is trained into decayed weights, the rest, and scores, as optimizers take it.

    What a pruner only observes is left out.

    Args:
        model: The whole of what is trained, a head included.
        pruner: What ``cap.attach`` returned; None for a dense model.
        learning_rate: Of the weights; scores have the pruner's own.
        weight_decay: Of weights with two axes or more; biases, LayerNorm and scores have none.
    """
    scores = pruner.score_parameters() if pruner is not None else []
    own = own_parameters(pruner)
    weights = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    groups: list[dict[str, Any]] = [
        # Biases and LayerNorm are the 1-D parameters.
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": weight_decay, "lr": learning_rate},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0, "lr": learning_rate},
    ]
    if scores and pruner is not None:
        groups.append({"params": scores, "weight_decay": 0.0, "lr": pruner.score_learning_rate})
    return groups


def own_parameters(pruner: Pruner | None) -> set[int]:
    """Tell the parameters of a pruner, scores and what it only observes, from those of the model; by their ids."""
    return set() if pruner is None else {id(p) for p in (*pruner.score_parameters(), *pruner.auxiliary_parameters())}


def kept_parameters(model: PreTrainedModel, pruner: Pruner, parts: Sequence[Part] = ()) -> list[str]:
    """Name the parameters of a model that keep their values: those of some parts, and all that a type does not train.

    Args:
        model: With the pruner's masks on.
        pruner: Of a type that may leave the encoder's weights as they are; its scores are never among them.
        parts: What else is frozen.
    """
    wanted: list[AnyPart] = list(parts)
    if not pruner.trains_weights:
        wanted.append("encoder")
    own = own_parameters(pruner)
    return [name for name in parameters_of(model, wanted) if id(model.get_parameter(name)) not in own]


def require_full_precision(weights: Mapping[str, Tensor]) -> None:
    """Check that masks are on weights whose type holds scores and averages of gradients, too.

    Args:
        weights: By name.

    Raises:
        InputError: If some are in half precision, from the start or since a trainer has cast the model.
    """
    half = [name for name, weight in weights.items() if weight.dtype in (torch.float16, torch.bfloat16)]
    if half:
        raise InputError(
            f"masks go on weights in float32, since scores and averages of gradients have their type, but "
            f"{len(half)} of {len(weights)} are in half precision, {half[0]} first; load the model with "
            f"dtype=torch.float32, and train it in mixed precision: precision='bf16-mixed', not 'bf16-true'"
        )


def masked_weights(model: nn.Module) -> dict[str, Tensor]:
    """List the parameters that stand where masks are on, scores and gates among them, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if MASK in name}


def require_scores_learn(pruner: Pruner, optimizers: Iterable[Optimizer], *, warn: Callable[[str], None]) -> None:
    """Check that scores are in an optimizer; warn if their learning rate is not the pruner's.

    Args:
        pruner: Has scores, or none.
        optimizers: Those of the run, before its first step.
        warn: Told of another learning rate.

    Raises:
        ValueError: If a score is in no optimizer: the masks would never follow what is learned.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = {id(p): group.get("initial_lr", group["lr"]) for group in groups for p in group["params"]}
    found = [rates.get(id(scores)) for scores in pruner.score_parameters()]
    if None in found:
        raise ValueError(
            f"{type(pruner).__name__} learns scores, which must be in the optimizer, but {found.count(None)} of "
            f"{len(found)} are in none; attach the pruner first, then make the optimizer of "
            f"cap.parameter_groups(model, pruner, learning_rate=...)"
        )
    others = sorted({float(rate) for rate in found if rate is not None} - {pruner.score_learning_rate})
    if others:
        warn(
            f"The scores of {type(pruner).__name__} learn at {', '.join(f'{rate:g}' for rate in others)} and not at "
            f"score_learning_rate={pruner.score_learning_rate:g}; make the optimizer of cap.parameter_groups."
        )


def optimizer_of(pruner: Pruner, optimizers: Sequence[Optimizer]) -> Optimizer | None:
    """Find the optimizer whose steps a pruner counts: the first that trains what the masks are on, or scores.

    Args:
        pruner: Its masks are on.
        optimizers: Those of the run.

    Returns:
        None where there is one at most, or none trains anything of it.
    """
    if len(optimizers) < 2:
        return None
    own = {id(p) for module in pruner.modules() for p in module.parameters()} | own_parameters(pruner)
    return next((one for one in optimizers if any(id(p) in own for g in one.param_groups for p in g["params"])), None)


def add_regularizer(pruner: Pruner, optimizer: Optimizer, *, scale: float = 1.0) -> None:
    """Add the gradient of the pruner's regulariser to that of its scores, once per optimizer step.

    Args:
        pruner: Has a regulariser, or none.
        optimizer: About to step; nothing happens if the scores are in another one.
        scale: Factor that is still on the other gradients.
    """
    term = pruner.regularizer()
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if term is not None and all(id(scores) in own for scores in pruner.score_parameters()):
        (term * scale).backward()


__all__ = [
    "add_regularizer",
    "kept_parameters",
    "masked_weights",
    "optimizer_of",
    "own_parameters",
    "parameter_groups",
    "require_full_precision",
    "require_scores_learn",
]
