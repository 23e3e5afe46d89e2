"""What a sparsity would buy: size and speed of the model that is left, before anything is trained.

Neither depends on the weights: heads and FFN units are drawn, layers are evenly spaced, and they are taken out as by an
export.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass

from transformers import PreTrainedModel

from cap.formats.compact import compact
from cap.formats.cost import count_cost
from cap.formats.latency import paired_latency
from cap.models.families import longest_input, prunable
from cap.pruning.layers import Layers
from cap.pruning.pruner import Pruner
from cap.pruning.structured import Structured
from cap.pruning.weights import WeightPruner

log = logging.getLogger(__name__)

_OF_PARTS = (0.25, 0.5, 0.75)
_OF_WEIGHTS = (0.5, 0.9, 0.97)
_TOKENS = 128
_SECONDS = 1.0
_BITS, _BITS_PER_MB = 32, 8e6


@dataclass(frozen=True)
class Left:
    """Hold what a sparsity leaves.

    Args:
        sparsity: The fraction of prunable weights, or of layers, that is gone.
        megabytes: Of the weights, 10^6 bytes.
        speed_up: How many times as fast as the dense model; None where zeros stay, which make nothing faster.
    """

    sparsity: float
    megabytes: float
    speed_up: float | None


def say_what_is_left(model: PreTrainedModel, pruner: Pruner, *, sparsity: float) -> None:
    """Log size and speed at some sparsities, the one that was asked for among them.

    Args:
        model: The dense model, which is not changed.
        pruner: The pruning type of the run.
        sparsity: The one that was asked for.
    """
    takes_parts_out = isinstance(pruner, Structured | Layers)
    if not takes_parts_out and not isinstance(pruner, WeightPruner):
        return  # what a type of a user's own takes out is not known
    levels = sorted({*(_OF_PARTS if takes_parts_out else _OF_WEIGHTS), sparsity} - {0.0})
    dense = copy.deepcopy(model).cpu().eval()  # timed steps may have left it on a GPU
    found = [left for level in levels if (left := what_is_left(dense, pruner, level)) is not None]
    how = (
        f"as smaller matrices, and how much faster one text of {_tokens(dense)} tokens is read on this CPU"
        if takes_parts_out
        else "in a file of format=sparse; zeros make nothing faster"
    )
    size = _BITS * count_cost(dense, tokens=1).parameters / _BITS_PER_MB
    lines = [f"  {left.sparsity:<6g}  {left.megabytes:7.1f} MB{_faster(left)}" for left in found]
    log.info("what a sparsity leaves of the weights' %.1f MB %s:\n%s", size, how, "\n".join(lines))


def what_is_left(dense: PreTrainedModel, pruner: Pruner, sparsity: float) -> Left | None:
    """Find out what a sparsity leaves of a model.

    Args:
        dense: The model, in eval mode on the CPU; it is not changed.
        pruner: Of the type that would prune it.
        sparsity: The target, > 0.

    Returns:
        Size and speed; None where the model cannot be pruned so far.
    """
    cost = count_cost(dense, tokens=1)
    if not isinstance(pruner, Structured | Layers):
        kept = round((1 - sparsity) * cost.prunable_parameters)
        n_bits = cost.prunable_parameters + _BITS * (cost.parameters - cost.prunable_parameters + kept)
        return Left(sparsity, n_bits / _BITS_PER_MB, None)
    smaller = copy.deepcopy(dense)
    other = (
        Structured(final_sparsity=sparsity, importance="random")
        if isinstance(pruner, Structured)
        else Layers(final_sparsity=sparsity)
    )
    found = prunable(smaller)
    try:
        other.check(found)
    except ValueError:
        return None
    other.attach(found, seed=0)
    other.update_masks(sparsity)
    other.fold()
    smaller = compact(smaller).model
    (measured,) = paired_latency(
        {"dense": dense, "smaller": smaller},
        reference="dense",
        vocabulary_size=int(dense.config.vocab_size),
        batch_sizes=(1,),
        lengths=(_tokens(dense),),
        budget_seconds=_SECONDS,
    )
    n_bits = _BITS * count_cost(smaller, tokens=1).parameters
    return Left(sparsity, n_bits / _BITS_PER_MB, measured.models["smaller"].speed_up.median)


def _tokens(model: PreTrainedModel) -> int:
    return min(_TOKENS, longest_input(model.config) or _TOKENS)


def _faster(left: Left) -> str:
    return "" if left.speed_up is None else f"  {left.speed_up:4.1f} times as fast"


__all__ = ["Left", "say_what_is_left", "what_is_left"]
