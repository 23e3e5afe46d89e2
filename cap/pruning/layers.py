"""Prune whole encoder layers."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from cap.base.errors import RunError
from cap.models.depth import LayerGate, shortened, take_out, without_layers
from cap.models.families import Prunable, Stack
from cap.pruning.masks import n_to_prune
from cap.pruning.pruner import ImportancePass, MaskCounts, Pruner

log = logging.getLogger(__name__)

# What a sparsity may differ from a whole number of layers: 0.33 is a third. And what 0.33 loses to rounding.
_TOLERATED = 0.005 + 1e-9


class Layers(Pruner):
    """Prune whole encoder layers, and save a model that has fewer of them.

    As all layers have one size, the fraction of layers is the fraction of prunable weights: a target must be a whole
    number of layers, written with two decimals at least. A pruned layer computes nothing: its input is its output. It
    stays pruned. Where sparsity rises gradually, layers go one by one, as its rounded share of layers rises.

    Args:
        importance: ``even`` keeps the first and the last layer and evenly spaced ones between them; of those that go,
            the deepest go first. ``loss`` takes out the layer without which the loss is lowest, measures again, and so
            on.
        importance_rows: Training rows that each loss is measured on, rounded up to whole batches; None takes all.
        final_sparsity: Where the schedule ends, in [0, 1).

    Raises:
        ValueError: If an argument is out of range.

    Source: ``even`` is the choice of DistilBERT, arXiv:1910.01108, which takes every other layer of its teacher, and of
    the layer reduction that sentence-transformers documents. ``loss`` is greedy backward elimination. Ours: the first
    layer of a family in which no other can take its place stays, see ``cap.models.families``.
    """

    moves_within_levels: ClassVar[bool] = False
    is_monotone: ClassVar[bool] = True

    def __init__(
        self,
        *,
        final_sparsity: float,
        importance: Literal["even", "loss"] = "even",
        importance_rows: int | None = 1024,
    ) -> None:
        if importance not in ("even", "loss"):
            raise ValueError(f"pruning.importance must be 'even' or 'loss', got {importance!r}")
        if importance_rows is not None and importance_rows < 1:
            raise ValueError(f"pruning.importance_rows must be at least 1, or null for all, got {importance_rows}")
        self.importance = importance
        self.importance_rows = importance_rows
        self.final_sparsity: float = final_sparsity
        self._prunable = Prunable({})
        self._gates: list[LayerGate] = []
        self._losses: Tensor | None = None  # by layer that can go, the sum over batches without it
        self._n_seen = 0

    @property
    def importance_pass(self) -> ImportancePass | None:
        """Ask for the losses of training batches against the labels; even spacing needs none."""
        return ImportancePass(rows=self.importance_rows, loss="task") if self.importance == "loss" else None

    def needs_pass(self, sparsity: float) -> bool:
        """Say whether the importance pass has to run: only before a move by which a layer goes."""
        return self.importance == "loss" and self._n_to_go(sparsity) > 0

    def check(self, prunable: Prunable) -> None:
        """Refuse a target that is no whole number of layers, or all of them."""
        n = len(_stack(prunable).layers)
        n_pruned = n_to_prune(self.final_sparsity, n)
        is_met = n_pruned < n and (n_pruned > 0 or self.final_sparsity == 0)
        if not is_met or abs(n_pruned / n - self.final_sparsity) > _TOLERATED:
            possible = ", ".join(f"{round(k / n, 3):g}" for k in range(1, n)) or "0 alone"
            raise ValueError(
                f"pruning=layers takes out whole layers and leaves one at least, so that sparsity must be a share of "
                f"this model's {n} layers ({possible}; two decimals will do), got {self.final_sparsity}; set one of "
                f"them, or choose another pruning type"
            )

    def attach(self, prunable: Prunable, *, seed: int) -> None:
        """Put a gate on every layer."""
        self.check(prunable)
        self._prunable, stack = prunable, _stack(prunable)
        self._gates = [LayerGate(layer, gives_tuple=stack.family.layers_give_tuples) for layer in stack.layers]

    def measured(self, loss: Callable[[], Tensor]) -> Sequence[Tensor]:
        """Measure the loss of a batch without each layer that can go."""
        losses = []
        for number in self._candidates():
            with self._without(number):
                losses.append(loss().detach())
        return [torch.stack(losses).double()]

    def forget_importance(self) -> None:  # noqa: D102
        self._losses, self._n_seen = None, 0

    def observe_importance(self, measured: Sequence[Tensor]) -> None:
        """Add up the losses, batch by batch."""
        (losses,) = measured
        self._losses = losses if self._losses is None else self._losses + losses
        self._n_seen += 1

    def parts_of(self, sparsity: float) -> list[float]:
        """Take layers out one by one where the loss is measured in between."""
        n_kept, n_to_go = sum(self.is_kept), self._n_to_go(sparsity)
        n = len(self._gates)
        n_moves = n_to_go if self.importance == "loss" else 0
        return [*((n - n_kept + k) / n for k in range(1, n_moves)), sparsity]

    @property
    def is_kept(self) -> list[bool]:
        """Say which layers are kept, in order."""
        return [gate.is_kept for gate in self._gates]

    def modules(self) -> list[nn.Module]:
        """List the encoder layers."""
        return self._layers()

    @property
    def is_on(self) -> bool:
        """Whether its gates are on a model."""
        return bool(self._gates) and all(gate.is_on for gate in self._gates)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Masks by the name of the linear layer, True = kept: whole matrices."""
        keys = self.mask_keys
        return {
            name: keys[name].expand(linear.out_features, linear.in_features)
            for name, linear in self._prunable.linears.items()
        }

    @property
    def mask_keys(self) -> dict[str, Tensor]:
        """Say of each linear layer whether its encoder layer is kept."""
        kept = {
            id(module): gate.is_kept
            for gate, layer in zip(self._gates, self._layers(), strict=True)
            for module in layer.modules()
        }
        linears = self._prunable.linears
        return {
            name: linear.weight.new_full((1, 1), kept[id(linear)], dtype=torch.bool) for name, linear in linears.items()
        }

    def update_masks(self, sparsity: float) -> MaskCounts:
        """Take out as many layers as a target asks for, and reset the measured importance.

        Raises:
            RunError: If nothing was measured, or what was is not finite.
            ValueError: As ``require_movable``, or if more than one layer would go by what was measured once.
        """
        self.require_movable(sparsity)
        before = self._n_pruned()
        n_to_go = self._n_to_go(sparsity)
        if self.importance == "loss" and n_to_go > 1:
            raise ValueError(
                f"cap.Layers(importance='loss') measures the loss again behind every layer that goes, got a target of "
                f"{sparsity:g}, by which {n_to_go} would; move in parts: for part in pruner.parts_of({sparsity:g}): "
                f"cap.measure_importance(pruner, model, batches, loss=...); pruner.update_masks(part)"
            )
        for number in self._in_order(n_to_go)[:n_to_go]:
            self._gates[number].is_kept = False
        self.forget_importance()
        n, after = len(self._gates), self._n_pruned()
        n_weights = sum(linear.weight.numel() for linear in self._prunable.linears.values())
        return MaskCounts(
            n_weights=n_weights,
            n_pruned_before=n_weights * before // n,
            n_pruned=n_weights * after // n,
            units={"layers": (before, after, n)},
        )

    def fold(self) -> None:
        """Take the pruned layers out of the model, and the gates off the others."""
        if not self.is_on:
            return
        is_kept = self.is_kept
        for gate in self._gates:
            gate.remove()
        if not all(is_kept):
            take_out(_stack(self._prunable), is_kept)

    def folded_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Leave pruned layers out, and renumber the others."""
        return without_layers(model.state_dict(), _stack(self._prunable).path, self.is_kept)

    def folded_config(self, config: PretrainedConfig) -> PretrainedConfig:
        """Describe the model that has fewer layers."""
        return shortened(_stack(self._prunable), self.is_kept) if self._n_pruned() else super().folded_config(config)

    def state_dict(self) -> dict[str, int | float]:
        """Return which layers are kept."""
        return {f"layer.{number}": int(is_kept) for number, is_kept in enumerate(self.is_kept)}

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:
        """Take it back."""
        for number, gate in enumerate(self._gates):
            gate.is_kept = bool(state[f"layer.{number}"])

    def _layers(self) -> list[nn.Module]:
        return [gate.layer for gate in self._gates]

    def _n_pruned(self) -> int:
        return len(self._gates) - sum(self.is_kept)

    def _n_to_go(self, sparsity: float) -> int:
        """Count the layers that a target takes out beyond those that are out."""
        n = len(self._gates)
        return max(0, min(n_to_prune(sparsity, n), n - 1) - self._n_pruned())

    def _candidates(self) -> list[int]:
        """Number the layers that can go."""
        has_own_first = _stack(self._prunable).family.has_own_first_layer
        return [n for n, is_kept in enumerate(self.is_kept) if is_kept and not (n == 0 and has_own_first)]

    @contextmanager
    def _without(self, number: int) -> Iterator[None]:
        gate = self._gates[number]
        gate.is_kept = False
        try:
            yield
        finally:
            gate.is_kept = True

    def _in_order(self, n_to_go: int) -> list[int]:
        """Number the layers that can go in the order in which they do."""
        if n_to_go == 0:
            return []
        if self.importance == "loss":
            return self._by_loss()
        n = len(self._gates)
        kept_in_the_end = evenly_spaced(n, n - n_to_prune(self.final_sparsity, n))
        return [number for number in reversed(self._candidates()) if number not in kept_in_the_end]

    def _by_loss(self) -> list[int]:
        if self._losses is None:
            raise RunError(
                "pruning=layers with importance=loss ranks by the losses of training rows with labels, got none since "
                "a layer last went; give it rows with labels, or call cap.measure_importance(...) before update_masks"
            )
        losses = (self._losses / self._n_seen).tolist()
        if not all(math.isfinite(loss) for loss in losses):
            raise RunError(
                f"the losses that pruning=layers ranks by must be finite, got {losses}; lower learning_rate, or use "
                f"trainer.precision=32-true"
            )
        candidates = self._candidates()
        by_number = dict(zip(candidates, losses, strict=True))
        # Among equals the deepest layer goes first.
        order = sorted(candidates, key=lambda number: (by_number[number], -number))
        log.info(
            "layers: loss without each of them, in the order in which they would go: %s",
            ", ".join(f"{number}: {by_number[number]:.4f}" for number in order),
        )
        return order


def evenly_spaced(n: int, n_kept: int) -> list[int]:
    """Choose layers from the first to the last at equal distances, rounded to the nearest, halves up.

    Args:
        n: How many there are.
        n_kept: How many are chosen, 1 to ``n``; of one it is the first.
    """
    if n_kept == 1:
        return [0]
    gaps = n_kept - 1
    return [(2 * k * (n - 1) + gaps) // (2 * gaps) for k in range(n_kept)]


def _stack(prunable: Prunable) -> Stack:
    if prunable.stack is None:
        raise ValueError(
            "pruning=layers takes out encoder layers, which are known of transformers' encoders of a known family, got "
            "linear layers alone; leave linears out, or use a pruner of single weights"
        )
    return prunable.stack


__all__ = ["Layers", "evenly_spaced"]
