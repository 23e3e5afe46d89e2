"""Masks on the weights of stock modules, and the choice of what they keep.

Sparsity is the fraction of prunable weights that are zero; which weights are prunable is said once, by
``cap.models.families.prunable_linears``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from cap.models.depth import as_in_dense, read_removed
from cap.models.families import MatrixKind, Units, encoder_layers, prunable
from cap.pruning.selection import keep_highest_of_rows, not_a_number, selects_on_host


class FixedMask(nn.Module):
    """Multiply a weight with its mask; autograd then gives pruned weights no gradient.

    Args:
        weight: The weight to mask, for its shape and device.
    """

    mask: Tensor

    def __init__(self, weight: Float[Tensor, "rows columns"]) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Return the masked weight."""
        return weight * self.mask


class ScoredMask(nn.Module):
    """Multiply a weight with its mask and give one score per weight the straight-through gradient.

    Args:
        weight: The weight to mask, for its shape and device.

    Source: movement pruning, arXiv:2005.07683, equation 3: the derivative of the loss with respect to a score is that
    with respect to the masked weight, times the weight, for pruned weights too.
    """

    mask: Tensor

    def __init__(self, weight: Float[Tensor, "rows columns"]) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))
        self.scores = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Return the masked weight."""
        masked: Tensor = _StraightThrough.apply(weight, self.scores, self.mask)  # type: ignore[no-untyped-call]
        return masked


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (gradient,) = gradients  # with respect to weight * mask
        weight, mask = ctx.saved_tensors
        to_weight = gradient * mask if ctx.needs_input_grad[0] else None
        to_scores = gradient * weight if ctx.needs_input_grad[1] else None
        return to_weight, to_scores, None


def keep_highest(
    importance: Float[Tensor, "*shape"], n_pruned: int, *, tie_breaker: Callable[[], Float[Tensor, "*shape"]]
) -> Bool[Tensor, "*shape"]:
    """Prune exactly the ``n_pruned`` least important entries.

    Args:
        importance: Larger = keep.
        n_pruned: How many become False, 0 to the number of entries.
        tie_breaker: Called only if equal importance must be told apart: larger = keep; then the lower index is kept.

    Returns:
        The mask, True = kept.

    Raises:
        RunError: If importance is NaN somewhere.
        ValueError: If ``n_pruned`` is out of range.
    """
    flat = importance.detach().flatten().float()
    if not 0 <= n_pruned <= len(flat):
        raise ValueError(f"n_pruned must lie in [0, {len(flat)}], got {n_pruned}")
    if n_pruned in (0, len(flat)):
        return torch.full_like(importance, n_pruned == 0, dtype=torch.bool)
    if not selects_on_host(flat):
        rows = keep_highest_of_rows(flat[None], [n_pruned], tie_breaker=lambda: tie_breaker().flatten()[None])
        return rows.view_as(importance)
    if bool(flat.amin().isnan()):  # numpy would take it for the largest, and the comparison below would prune it
        raise not_a_number(flat)
    # numpy's selection is vectorised: ten times faster than torch.kthvalue on two CPU threads, the same number.
    threshold = float(np.partition(flat.numpy(), n_pruned - 1)[n_pruned - 1])
    mask = flat > threshold
    n_missing = len(flat) - n_pruned - int(mask.count_nonzero())
    if n_missing > 0:
        where = (flat == threshold).nonzero().squeeze(1)  # ascending, so a stable sort keeps the lower index first
        order = tie_breaker().detach().flatten()[where].float().sort(descending=True, stable=True).indices
        mask[where[order[:n_missing]]] = True
    return mask.view_as(importance)


def keep_highest_of_each(
    importance: Mapping[str, Tensor], n_pruned: Mapping[str, int], *, tie_breaker: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """Prune each of many tensors on its own, as ``keep_highest`` does; on an accelerator all of one size at once.

    Args:
        importance: By name, larger = keep.
        n_pruned: By the same names, how many become False.
        tie_breaker: Called with a name if equal importance must be told apart: larger = keep.

    Returns:
        The masks by name, True = kept.
    """
    if all(selects_on_host(scores) for scores in importance.values()):
        return {
            name: keep_highest(scores, n_pruned[name], tie_breaker=partial(tie_breaker, name))
            for name, scores in importance.items()
        }
    masks: dict[str, Tensor] = {}
    for size in {scores.numel() for scores in importance.values()}:
        names = [name for name, scores in importance.items() if scores.numel() == size]
        counts = [n_pruned[name] for name in names]
        rows = keep_highest_of_rows(
            _rows(names, importance.__getitem__), counts, tie_breaker=partial(_rows, names, tie_breaker)
        )
        masks |= {name: row.view_as(importance[name]) for name, row in zip(names, rows, strict=True)}
    return {name: masks[name] for name in importance}


def _rows(names: Sequence[str], values: Callable[[str], Tensor]) -> Float[Tensor, "names n"]:
    return torch.stack([values(name).detach().flatten() for name in names])


def count_kept(masks: Iterable[Tensor]) -> list[int]:
    """Count what each mask keeps, and wait for the device once for all of them."""
    counts = [mask.count_nonzero() for mask in masks]
    kept: list[int] = torch.stack(counts).tolist() if counts else []
    return kept


def n_to_prune(sparsity: float, n: int) -> int:
    """Turn a sparsity into a count: round(sparsity · n)."""
    return round(sparsity * n)


def n_floor(fraction: float, n: int) -> int:
    """Turn the least kept fraction into a count, rounded up."""
    return math.ceil(fraction * n)


def is_on(linear: nn.Linear, mask: nn.Module) -> bool:
    """Say whether a mask, or what else stands before a weight, is on a module."""
    if not parametrize.is_parametrized(linear, "weight"):
        return False
    return any(module is mask for module in linear.get_submodule("parametrizations.weight").children())


def fold(linear: nn.Linear) -> None:
    """Write the masked weight into the module and take the mask off; exact, pruned weights are zero."""
    if parametrize.is_parametrized(linear, "weight"):
        # A deep copy shares the class that was made for this layer, from which torch removes the weight.
        shared = type(linear)
        own = {name: value for name, value in vars(shared).items() if name not in ("__dict__", "__weakref__")}
        linear.__class__ = type(shared.__name__, shared.__bases__, own)
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)
        with torch.no_grad():
            linear.weight += 0.0  # turns -0.0, a masked negative weight, into 0.0


def count_zeros(linears: dict[str, nn.Linear]) -> dict[str, tuple[int, int]]:
    """Count zeros and weights of each matrix as the forward pass sees them."""
    with torch.no_grad():
        return {
            name: (int((linear.weight == 0).count_nonzero()), linear.weight.numel()) for name, linear in linears.items()
        }


def count_matrix_zeros(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Count zeros and weights of each prunable matrix of a model; those of one linear layer are counted apart.

    Encoder layers that were taken out count as zeros; all names are those of the dense model.
    """
    found = prunable(model)
    weights = {name: matrix.of(found.linears[matrix.linear].weight) for name, matrix in found.matrices.items()}
    counts = {name: (int((weight == 0).count_nonzero()), weight.numel()) for name, weight in weights.items()}
    return as_in_dense(model, counts, gone=lambda count: (count[1], count[1]))


def matrix_kinds(model: PreTrainedModel) -> dict[str, MatrixKind | None]:
    """Say what each prunable matrix of a model is, by the names of ``count_matrix_zeros``."""
    kinds = {name: matrix.kind for name, matrix in prunable(model).matrices.items()}
    return as_in_dense(model, kinds, gone=lambda kind: kind)


def count_pruned_units(model: PreTrainedModel) -> dict[str, dict[str, list[int]]]:
    """Count the attention heads and FFN units that a folded model can do without.

    Returns:
        For ``heads`` and ``ffn``, by layer name in the dense model: units all of whose outgoing weights are zero, or
        whose layer was taken out, and all units.
    """
    found = prunable(model)
    kinds = {"heads": found.heads, "ffn": found.ffn}
    return {
        kind: as_in_dense(
            model,
            {name: [_n_silent(units), units.n] for name, units in layers.items()},
            gone=lambda count: [count[1], count[1]],
        )
        for kind, layers in kinds.items()
    }


def _n_silent(units: Units) -> int:
    is_zero = (units.outgoing.weight.detach() == 0).all(dim=0)  # (columns,)
    return int(is_zero.view(units.n, units.size).all(dim=1).count_nonzero())


def sparsity_fractions(model: PreTrainedModel) -> dict[str, float]:
    """State the sparsity of a folded model over three denominators.

    Returns:
        ``prunable``: over the prunable weights. ``encoder``: over all parameters of the encoder layers, biases and
        LayerNorm counted as kept. ``model``: over all parameters, embeddings and head included. Encoder layers that
        were taken out count as zeros, their biases and LayerNorm too.
    """
    counts = count_matrix_zeros(model)
    n_zero, n_prunable = (sum(values) for values in zip(*counts.values(), strict=True))
    n_encoder = sum(p.numel() for layer in encoder_layers(model).values() for p in layer.parameters())
    n_model = sum(p.numel() for p in model.parameters())
    removed = read_removed(model.config)
    if removed is None:
        return {"prunable": n_zero / n_prunable, "encoder": n_zero / n_encoder, "model": n_zero / n_model}
    n_layers_gone = removed.n_dense - len(removed.kept)
    n_gone = removed.n_parameters
    # What was prunable of the layers that are gone is among the zeros already.
    n_zero_or_gone = n_zero - n_prunable * n_layers_gone // removed.n_dense + n_gone
    return {
        "prunable": n_zero / n_prunable,
        "encoder": n_zero_or_gone / (n_encoder + n_gone),
        "model": n_zero_or_gone / (n_model + n_gone),
    }


__all__ = [
    "FixedMask",
    "ScoredMask",
    "count_kept",
    "count_matrix_zeros",
    "count_pruned_units",
    "count_zeros",
    "fold",
    "is_on",
    "keep_highest",
    "keep_highest_of_each",
    "matrix_kinds",
    "n_floor",
    "n_to_prune",
    "sparsity_fractions",
]
