"""Prune whole attention heads and FFN units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from cap.base.errors import RunError
from cap.models.families import Prunable, Units
from cap.pruning.masks import n_to_prune
from cap.pruning.pruner import ImportancePass, MaskCounts, Pruner
from cap.pruning.units import GatedUnits, choose_units

Kind = Literal["attention heads", "FFN units"]


class Structured(Pruner):
    """Prune the same fraction of attention heads and of FFN units, ranked over all layers, each kind on its own.

    A unit's importance is the sum over batches of |d(batch-mean loss)/d(gate)| in eval mode, L2-normalised over the
    units of its layer. Pruned units stay pruned; the best live head and FFN unit of every layer is kept. As all heads
    have one size, and all FFN units, the fraction of units is the fraction of prunable weights.

    Args:
        importance: ``gradient``, or ``random``: the control, an order drawn once.
        importance_rows: Training rows that importance is measured on, rounded up to whole batches; None takes all.
        importance_loss: ``total`` (published) differentiates everything the student trains on, distillation and
            contrast included, but for the first level: as in the released code it is ranked before its banks exist, so
            without contrast. ``task`` differentiates the loss against the labels alone.
        final_sparsity: Where the schedule ends, in [0, 1).

    Raises:
        ValueError: If an argument is out of range.

    Source: CAP, arXiv:2112.07198 (CAP-f); the criterion is that of arXiv:1905.10650 with the normalisation of
    arXiv:1611.06440. The released code protects dead units, too, and has no floor for FFN units.
    """

    needs_levels: ClassVar[bool] = True
    moves_within_levels: ClassVar[bool] = False
    is_monotone: ClassVar[bool] = True

    def __init__(
        self,
        *,
        final_sparsity: float,
        importance: Literal["gradient", "random"] = "gradient",
        importance_rows: int | None = None,
        importance_loss: Literal["total", "task"] = "total",
    ) -> None:
        if importance_rows is not None and importance_rows < 1:
            raise ValueError(f"pruning.importance_rows must be at least 1, or null for all, got {importance_rows}")
        if importance not in ("gradient", "random"):
            raise ValueError(f"pruning.importance must be 'gradient' or 'random', got {importance!r}")
        if importance_loss not in ("total", "task"):
            raise ValueError(f"pruning.importance_loss must be 'total' or 'task', got {importance_loss!r}")
        self.importance = importance
        self.importance_rows = importance_rows
        self.importance_loss: Literal["total", "task"] = importance_loss
        self.final_sparsity: float = final_sparsity
        self._kinds: dict[Kind, list[GatedUnits]] = {}
        self._linears: dict[str, nn.Linear] = {}
        self._n_seen = 0  # batches that were measured since the masks last moved

    @property
    def importance_pass(self) -> ImportancePass | None:
        """Ask for a pass over the training rows before the masks move; a random order needs none."""
        if self.importance == "random":
            return None
        return ImportancePass(rows=self.importance_rows, loss=self.importance_loss)

    def check(self, prunable: Prunable) -> None:
        """Refuse a target that the floors make unreachable, or that rounds to no unit at all."""
        self._check_target(_kinds(prunable))

    def attach(self, prunable: Prunable, *, seed: int) -> None:
        """Put the gates on."""
        self.check(prunable)
        self._linears = prunable.linears
        self._kinds = {kind: [GatedUnits(units) for units in layers] for kind, layers in _kinds(prunable).items()}
        if self.importance == "random":
            generator = torch.Generator().manual_seed(seed)
            for gated in self._gated():
                gated.importance.copy_(torch.rand(gated.units.n, generator=generator))

    def _check_target(self, kinds: dict[Kind, list[Units]]) -> None:
        counts = {kind: sum(units.n for units in layers) for kind, layers in kinds.items()}
        if self.final_sparsity > 0 and all(n_to_prune(self.final_sparsity, n) == 0 for n in counts.values()):
            raise ValueError(
                f"pruning=structured prunes whole units, and sparsity={self.final_sparsity} of "
                f"{_listed(counts)} rounds to none; raise sparsity, or use another pruning type"
            )
        for kind, layers in kinds.items():
            most = counts[kind] - len(layers)
            if n_to_prune(self.final_sparsity, counts[kind]) > most:
                # Rounded down, so that the number in the message works.
                highest = int(10_000 * min((counts[k] - len(v)) / counts[k] for k, v in kinds.items())) / 10_000
                raise ValueError(
                    f"pruning=structured keeps one head and one FFN unit in every layer, so that this model "
                    f"({_listed(counts)} in {len(layers)} layers) reaches sparsity {highest} at most, "
                    f"got {self.final_sparsity}; lower sparsity, or use another pruning type"
                )

    def forget_importance(self) -> None:
        """Zero what was measured; an order that was drawn once stays."""
        self._n_seen = 0
        if self.importance != "random":
            for gated in self._gated():
                gated.importance.zero_()

    def observe_importance(self, gradients: Sequence[Tensor]) -> None:
        """Add up the absolute gradients of the gates, batch by batch."""
        for gated, gradient in zip(self._gated(), gradients, strict=True):
            gated.collect(gradient)
        self._n_seen += 1

    def gate_parameters(self) -> list[nn.Parameter]:
        """List the gates, which only get a gradient during an importance pass."""
        return [gated.gates for gated in self._gated()]

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """List the gates: no optimizer may touch them."""
        return self.gate_parameters()

    def modules(self) -> list[nn.Module]:
        """List the linear layers of its units."""
        return [*self._linears.values()]

    @property
    def is_on(self) -> bool:
        """Whether its gates are on a model."""
        return bool(self._kinds) and all(gated.is_on for gated in self._gated())

    @property
    def masks(self) -> dict[str, Tensor]:
        """Masks by the name of the linear layer, True = kept: whole rows and columns."""
        by_module = {id(linear): mask for gated in self._gated() for linear, mask in gated.masks()}
        return {name: by_module[id(linear)] for name, linear in self._linears.items()}

    @property
    def mask_keys(self) -> dict[str, Tensor]:
        """Say which units are kept, by the name of the linear layer that their gates are on."""
        names = {id(linear): name for name, linear in self._linears.items()}
        return {names[id(gated.units.outgoing)]: gated.is_kept for gated in self._gated()}

    def update_masks(self, sparsity: float) -> MaskCounts:
        """Prune units up to a target sparsity, and reset the measured importance.

        Raises:
            RunError: If units are about to go and nothing was measured, or what was is not finite.
            ValueError: As ``require_movable``.
        """
        self.require_movable(sparsity)
        if self.importance == "gradient" and self._n_seen == 0 and self._prunes_at(sparsity):
            raise RunError(
                "pruning=structured ranks by the gradients of training rows, got none since the masks last moved; call "
                "cap.measure_importance(pruner, model, batches, loss=...) before each update_masks"
            )
        broken = [number for number, gated in enumerate(self._gated()) if not bool(gated.importance.isfinite().all())]
        if broken:
            raise RunError(
                f"the importance of units must be finite, but in {len(broken)} of {len(self._gated())} groups of units "
                f"it is not: a gradient of the pass over the training rows overflowed; lower learning_rate, or use "
                f"trainer.precision=32-true"
            )
        before = self._counts()
        for layers in self._kinds.values():
            n = sum(gated.units.n for gated in layers)
            kept = choose_units(
                [gated.importance if self.importance == "random" else gated.normalised() for gated in layers],
                [gated.is_kept for gated in layers],
                n_to_prune(sparsity, n),
                tie_breaker=partial(_magnitude, layers),
            )
            with torch.no_grad():
                for gated, mask in zip(layers, kept, strict=True):
                    gated.gates.copy_(mask)
        self.forget_importance()
        after = self._counts()
        units: dict[str, tuple[int, int, int]] = {
            kind: (before[kind].n_pruned, after[kind].n_pruned, after[kind].n) for kind in self._kinds
        }
        return MaskCounts(
            n_weights=sum(count.n * count.weights_per_unit for count in after.values()),
            n_pruned_before=sum(count.n_pruned * count.weights_per_unit for count in before.values()),
            n_pruned=sum(count.n_pruned * count.weights_per_unit for count in after.values()),
            units=units,
        )

    def fold(self) -> None:
        """Zero both sides of every pruned unit with the biases of its rows, and take the gates off."""
        for gated in self._gated():
            gated.fold()

    def folded_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Zero the biases of pruned rows, too."""
        state = super().folded_state(model)
        names = {id(linear): name for name, linear in self._linears.items()}
        for gated in self._gated():
            for linear in gated.units.incoming:
                if linear.bias is not None:
                    key = f"{names[id(linear)]}.bias"
                    state[key] = state[key] * gated.units.rows(gated.is_kept, linear)
        return state

    def _prunes_at(self, sparsity: float) -> bool:
        """Say whether a target asks for more units than have gone."""
        return any(n_to_prune(sparsity, count.n) > count.n_pruned for count in self._counts().values())

    def _gated(self) -> list[GatedUnits]:
        return [gated for layers in self._kinds.values() for gated in layers]

    def _counts(self) -> dict[Kind, _Count]:
        return {
            kind: _Count(
                n=sum(gated.units.n for gated in layers),
                n_pruned=sum(int((~gated.is_kept).count_nonzero()) for gated in layers),
                weights_per_unit=layers[0].units.weights_per_unit,
            )
            for kind, layers in self._kinds.items()
        }


def _kinds(prunable: Prunable) -> dict[Kind, list[Units]]:
    return {"attention heads": list(prunable.heads.values()), "FFN units": list(prunable.ffn.values())}


@dataclass(frozen=True)
class _Count:
    n: int
    n_pruned: int
    weights_per_unit: int


def _magnitude(layers: list[GatedUnits], layer: int) -> Tensor:
    return layers[layer].magnitude()


def _listed(counts: dict[Kind, int]) -> str:
    return " and ".join(f"{n:,} {kind}" for kind, n in counts.items())


__all__ = ["Structured"]
