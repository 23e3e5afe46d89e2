"""Gates on attention heads and FFN units, and the choice of which units are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from cap.models.families import Units
from cap.pruning.masks import fold, is_on, keep_highest


class Gates(nn.Module):
    """Multiply the columns of a unit's outgoing matrix with the unit's gate: 1 = kept, 0 = pruned.

    A gate on the columns is a gate on the unit's output, and its gradient is the same: both are the sum of output times
    gradient over all tokens. Gradients only reach the gates while they are asked for.

    Args:
        units: The units of one kind in one layer.
    """

    def __init__(self, units: Units) -> None:
        super().__init__()
        weight = units.outgoing.weight
        self.size = units.size
        self.gates = nn.Parameter(torch.ones(units.n, dtype=weight.dtype, device=weight.device), requires_grad=False)
        # A buffer, so that it goes where the model goes, and into checkpoints.
        self.register_buffer("importance", torch.zeros_like(self.gates.data))

    def forward(self, weight: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
        """Return the gated weight."""
        return weight * self.gates.repeat_interleave(self.size)


class GatedUnits:
    """Hold the units of one kind in one layer with their gates and importance.

    Args:
        units: The units; the outgoing matrix gets the gates.
    """

    def __init__(self, units: Units) -> None:
        self.units = units
        module = Gates(units)
        parametrize.register_parametrization(units.outgoing, "weight", module)
        self.module = module

    @property
    def is_on(self) -> bool:
        """Whether the gates are on their matrix."""
        return is_on(self.units.outgoing, self.module)

    @property
    def gates(self) -> nn.Parameter:
        """The gates themselves."""
        return self.module.gates

    @property
    def importance(self) -> Float[Tensor, " units"]:
        """What has been measured since the masks last moved, or drawn once."""
        return self.module.get_buffer("importance")

    @property
    def is_kept(self) -> Bool[Tensor, " units"]:
        """Say which units are kept."""
        return self.gates.detach() > 0

    def collect(self, gradient: Float[Tensor, " units"]) -> None:
        """Add the absolute gradient of the gates to the importance."""
        self.importance.add_(gradient.abs())

    def normalised(self) -> Float[Tensor, " units"]:
        """Return the importance, L2-normalised over all units of this layer."""
        norm: Tensor = torch.linalg.vector_norm(self.importance)
        return self.importance / norm.clamp(min=torch.finfo(norm.dtype).tiny)

    def magnitude(self) -> Float[Tensor, " units"]:
        """Return the sum of |w| of each unit's columns, which tells equally important units apart."""
        weight = self.units.outgoing.get_parameter("parametrizations.weight.original").detach()
        return weight.abs().sum(dim=0).view(self.units.n, self.units.size).sum(dim=1)

    def masks(self) -> list[tuple[nn.Linear, Bool[Tensor, "rows columns"]]]:
        """Return the masks of all matrices of these units, True = kept."""
        units, kept = self.units, self.is_kept
        rows = [(linear, units.rows(kept, linear)[:, None].expand_as(linear.weight)) for linear in units.incoming]
        return [*rows, (units.outgoing, units.columns(kept)[None, :].expand_as(units.outgoing.weight))]

    def fold(self) -> None:
        """Zero both sides of every pruned unit, with the biases of its rows, and take the gates off."""
        if not self.is_on:
            return
        with torch.no_grad():
            for linear in self.units.incoming:
                is_pruned = self.units.rows(~self.is_kept, linear)
                linear.weight[is_pruned] = 0.0
                if linear.bias is not None:
                    linear.bias[is_pruned] = 0.0
        fold(self.units.outgoing)


def choose_units(
    importance: list[Float[Tensor, " units"]],
    is_kept: list[Bool[Tensor, " units"]],
    n_pruned: int,
    *,
    tie_breaker: Callable[[int], Float[Tensor, " units"]],
) -> list[Bool[Tensor, " units"]]:
    """Rank the units of one kind over all layers; pruned ones stay pruned, and every layer keeps its best.

    Args:
        importance: By layer, larger = keep, already comparable across layers.
        is_kept: By layer, what is kept so far; one unit of each layer at least.
        n_pruned: How many units of all layers together are pruned afterwards; at least as many as are pruned already.
        tie_breaker: Called with the number of a layer, only among equals: larger = keep; then the lower index is kept.

    Returns:
        What is kept, by layer.
    """
    ranked: list[Tensor] = []
    for layer, (values, kept) in enumerate(zip(importance, is_kept, strict=True)):
        live = values.masked_fill(~kept, -math.inf)
        best = keep_highest(live, len(live) - 1, tie_breaker=partial(tie_breaker, layer))
        ranked.append(live.masked_fill(best, math.inf))
    n_dead = sum(int((~kept).count_nonzero()) for kept in is_kept)
    mask = keep_highest(
        torch.cat(ranked),
        max(n_pruned, n_dead),
        tie_breaker=lambda: torch.cat([tie_breaker(layer) for layer in range(len(ranked))]),
    )
    return list(mask.split([len(values) for values in ranked]))


__all__ = ["GatedUnits", "Gates", "choose_units"]
