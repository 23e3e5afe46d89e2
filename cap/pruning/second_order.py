"""Keep the weights whose removal would change the loss most, to second order, and let the others make up for it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from cap.base.errors import RunError
from cap.base.memory_budget import BYTES_PER_GIB
from cap.models.families import Prunable
from cap.pruning.fisher import BlockFisher, bytes_of_pass
from cap.pruning.masks import count_kept
from cap.pruning.pruner import ImportancePass, Room
from cap.pruning.selection import selects_on_host
from cap.pruning.weights import Scope, WeightPruner

log = logging.getLogger(__name__)


class SecondOrder(WeightPruner):
    """Prune by w² / (2 [F⁻¹]_ii), and move the weights that stay to where the loss rises least.

    F is the empirical Fisher of the kept weights in blocks, measured before the masks move: the mean outer product of
    gradients of batches, of the loss against the labels, in eval mode. Pruned weights stay pruned.

    Args:
        scope: As in ``WeightPruner``; ``global`` by default (published).
        block_size: Kept weights of a block, at most the inputs of a row; 1 is the diagonal alone, and moves no weight.
            Memory grows with it: published is 50.
        n_gradients: Gradients of a pass, over all processes; published are 1024.
        gradient_rows: Training rows that each of them is the mean of; published are 16.
        damping: What is added to the diagonal of F, > 0: too little of it trusts noise, too much ranks by magnitude.
        damping_mode: ``relative`` counts in means of the diagonal of F over all kept weights, ``absolute`` as it is.
        weight_update: Whether the weights that stay make up for those that go (published).
        recomputations: Moves on the way to a target, each with a pass before it, >= 1; each prunes the same fraction
            of what the one before has left.
        pattern: As in ``WeightPruner``.

    Raises:
        ValueError: If an argument is out of range.

    Source: optimal BERT surgeon, arXiv:2203.07259. Ours: blocks are cut of kept weights alone, damping follows the
    gradients' size, and the update is that of all weights of a block that go at once.
    """

    moves_within_levels: ClassVar[bool] = False
    is_monotone: ClassVar[bool] = True

    def __init__(
        self,
        *,
        scope: Scope = "global",
        block_size: int = 16,
        n_gradients: int = 128,
        gradient_rows: int = 16,
        damping: float = 1e-3,
        damping_mode: Literal["relative", "absolute"] = "relative",
        weight_update: bool = True,
        recomputations: int = 1,
        pattern: str | None = None,
    ) -> None:
        super().__init__(scope=scope, pattern=pattern)
        counts = {
            "block_size": block_size,
            "n_gradients": n_gradients,
            "gradient_rows": gradient_rows,
            "recomputations": recomputations,
        }
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"pruning.{name} must be at least 1, got {value}")
        if not damping > 0:
            raise ValueError(
                f"pruning.damping keeps blocks of the Fisher invertible and must be > 0, got {damping}; set 1e-3, say"
            )
        if damping_mode not in ("relative", "absolute"):
            raise ValueError(f"pruning.damping_mode must be 'relative' or 'absolute', got {damping_mode!r}")
        self.block_size = block_size
        self.n_gradients = n_gradients
        self.gradient_rows = gradient_rows
        self.damping = damping
        self.damping_mode = damping_mode
        self.weight_update = weight_update
        self.recomputations = recomputations
        self._fisher: dict[str, BlockFisher] = {}
        self._costs: dict[str, Tensor] = {}
        self._n_seen = torch.zeros((), dtype=torch.float64)  # a tensor, so that processes can add it up

    def check(self, prunable: Prunable) -> None:
        """Refuse blocks that are longer than a row, too."""
        super().check(prunable)
        name, narrowest = min(prunable.linears.items(), key=lambda item: item[1].in_features)
        if self.block_size > narrowest.in_features:
            raise ValueError(
                f"pruning.block_size must be at most the inputs of a row, of which {name} has "
                f"{narrowest.in_features}, got {self.block_size}; lower it"
            )

    def check_memory(self, prunable: Prunable, room: Room) -> None:  # noqa: D102 - as the base class says
        n_weights = [linear.weight.numel() for linear in prunable.linears.values()]

        def needs(block_size: int) -> int:
            # Of all passes the first takes most, or the one after it: that has to know where the kept weights are.
            passes = (n_weights, [n - 1 for n in n_weights])
            found = (
                self._bytes_of_pass(n_weights, n, block_size, room.bytes_per_value, on_host=room.is_budget)
                for n in passes
            )
            return max(found)

        needed = needs(self.block_size)
        if needed <= room.n_bytes:
            return
        fitting = next((b for b in range(self.block_size, 0, -1) if needs(b) <= room.n_bytes), None)
        ways = [f"set pruning.block_size={fitting}"] if fitting else []
        if room.is_budget:
            ways.append(f"set memory.budget_gb={math.ceil(10 * needed * room.n_processes / BYTES_PER_GIB) / 10:g}")
        elif not ways:
            ways.append("choose another pruning type")
        leaves = "memory.budget_gb leaves" if room.is_budget else "the GPU has beside the student and its optimizer"
        raise ValueError(
            f"the pass of pruning=second_order needs {needed / BYTES_PER_GIB:.2f} GiB for pruning.block_size="
            f"{self.block_size}, and {leaves} {room.n_bytes / BYTES_PER_GIB:.2f}"
            f"{' to a process' if room.is_budget else ''}; {', or '.join(ways)}"
        )

    def _bytes_of_pass(
        self, n_weights: list[int], n_kept: list[int], block_size: int, bytes_per_value: int, *, on_host: bool = True
    ) -> int:
        return bytes_of_pass(
            n_weights,
            n_kept,
            block_size,
            is_global=self.scope == "global" and self.pattern is None,
            on_host=on_host,
            bytes_per_value=bytes_per_value,
        )

    @property
    def importance_pass(self) -> ImportancePass:
        """Ask for the gradients of batches of its own."""
        return ImportancePass(
            rows=self.n_gradients * self.gradient_rows,
            loss="task",
            batch_rows=self.gradient_rows,
            key="pruning.n_gradients x pruning.gradient_rows",
        )

    def gate_parameters(self) -> list[nn.Parameter]:
        """List the weights: masks let no gradient through to those that are pruned."""
        return [self.original(name) for name in self._linears]

    def forget_importance(self) -> None:  # noqa: D102
        self._fisher, self._costs = {}, {}
        self._n_seen.zero_()

    def observe_importance(self, gradients: Sequence[Tensor]) -> None:
        """Add the outer products of the gradients of a batch."""
        for fisher, gradient in zip(self._measured().values(), gradients, strict=True):
            fisher.add(gradient)
        self._n_seen += 1

    def importance_sums(self) -> list[Tensor]:
        """List the sums of outer products, and of how many gradients."""
        return [*(fisher.sums() for fisher in self._measured().values()), self._n_seen]

    def parts_of(self, sparsity: float) -> list[float]:  # noqa: D102
        now, then = 1 - self._n_pruned / self.n_weights, 1 - sparsity
        n = self.recomputations if then < now else 1
        return [*(1 - now * (then / now) ** (i / n) for i in range(1, n)), sparsity]

    def importance(self, name: str) -> Tensor:
        """Return the cost of removing each weight; minus infinity for those that are pruned."""
        return self._costs[name]

    def _choose(self, sparsity: float) -> dict[str, Tensor]:
        """Rank, let the weights that stay make up for the others, and forget the gradients."""
        n_gradients, damping = int(self._n_seen), self._damping()
        fisher, masks = self._measured(), self.masks
        self._costs = {
            name: one.costs(self.weight(name), n_gradients=n_gradients, damping=damping) for name, one in fisher.items()
        }
        chosen = super()._choose(sparsity)
        # A target below what is pruned gives nothing back.
        kept = {name: mask.clone() for name, mask in masks.items()}
        for name, own in self.by_matrix(kept.__getitem__).items():
            own.logical_and_(chosen[name])
        for name, one in fisher.items():
            weight, is_removed = self.weight(name), masks[name] & ~kept[name]
            if self.weight_update:
                weight.copy_(one.compensate(weight, is_removed, n_gradients=n_gradients, damping=damping))
            else:
                weight.masked_fill_(is_removed, 0.0)
        self.forget_importance()
        return self.by_matrix(kept.__getitem__)

    def _measured(self) -> dict[str, BlockFisher]:
        """Return the Fisher of each matrix; that of a pass which begins is empty."""
        if not self._fisher:
            masks = self.masks
            n_kept = count_kept(masks.values())
            dtypes = [torch.promote_types(self.weight(name).dtype, torch.float32) for name in masks]
            self._fisher = {
                name: BlockFisher(mask, n, self.block_size, dtype)
                for (name, mask), n, dtype in zip(masks.items(), n_kept, dtypes, strict=True)
            }
            log.info(
                "second order: this pass takes %.2f GiB at its peak, for blocks of %d of %s weights",
                self._bytes_of_pass(
                    [mask.numel() for mask in masks.values()],
                    n_kept,
                    self.block_size,
                    dtypes[0].itemsize,
                    on_host=all(selects_on_host(mask) for mask in masks.values()),
                )
                / BYTES_PER_GIB,
                self.block_size,
                f"{sum(n_kept):,}",
            )
        return self._fisher

    def _damping(self) -> float:
        """Return what is added to the diagonal of the Fisher; the host waits for the device here, once."""
        if not self._n_seen:
            raise RunError(
                "pruning=second_order ranks by gradients of training rows with labels, got none since the masks last "
                "moved; give it rows with labels, or call cap.measure_importance(...) before update_masks"
            )
        fisher = self._measured().values()
        n_squares = float(self._n_seen) * max(1, sum(one.n_kept for one in fisher))
        mean = float(torch.stack([one.trace() for one in fisher]).sum()) / n_squares
        if not math.isfinite(mean) or mean == 0:
            raise RunError(
                f"the gradients that pruning=second_order ranks by must be finite and not all 0, but the mean of their "
                f"squares is {mean}; lower learning_rate, or use trainer.precision=32-true"
            )
        damping = self.damping * (mean if self.damping_mode == "relative" else 1.0)
        log.info(
            "second order: %d gradients, whose squares are %.3g in the mean; damping %.3g",
            int(self._n_seen),
            mean,
            damping,
        )
        return damping


__all__ = ["SecondOrder"]
