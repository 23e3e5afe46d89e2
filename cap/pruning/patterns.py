"""N:M patterns: at most N of every M consecutive weights along the input dimension are kept, as sparse kernels ask.

While sparsity rises, the target says how many groups of M weights are in the pattern already: those first that it costs
least, the cost of a group being the importance of what would go, added up. Every other group is dense. So the target is
met within half a group, and at its end every group of every matrix is in the pattern.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cap.pruning.masks import keep_highest, keep_highest_of_each
from cap.pruning.selection import not_a_number, selects_on_host


@dataclass(frozen=True)
class Pattern:
    """Say how many weights of a group are kept.

    Args:
        n_kept: N.
        size: M, the weights of a group.
    """

    n_kept: int
    size: int

    @property
    def sparsity(self) -> float:
        """Fraction of weights that are pruned where every group is in the pattern."""
        return 1 - self.n_kept / self.size

    def __str__(self) -> str:
        return f"{self.n_kept}:{self.size}"

    def problem(self, sparsity: float) -> str | None:
        """Say what is wrong with a final sparsity; None if it is the pattern's own."""
        if sparsity == self.sparsity:
            return None
        return (
            f"pruning.pattern={self} prunes {self.size - self.n_kept} of every {self.size} weights, so sparsity must "
            f"be {self.sparsity:g}, got {sparsity}; set sparsity={self.sparsity:g}, or pruning.pattern=null"
        )


PATTERNS = {"2:4": Pattern(2, 4), "4:8": Pattern(4, 8)}


def get_pattern(name: str) -> Pattern:
    """Look a pattern up.

    Raises:
        ValueError: If there is no such pattern.
    """
    if name not in PATTERNS:
        raise ValueError(
            f"pruning.pattern must be one of {', '.join(PATTERNS)}, or null for none, got {name!r}; "
            f"in a yaml file it needs quotes"
        )
    return PATTERNS[name]


def check_divisible(linears: Mapping[str, nn.Linear], pattern: Pattern) -> None:
    """Check that the rows of every matrix are whole groups.

    Raises:
        ValueError: If some are not, naming the matrices.
    """
    odd = [f"{name} ({linear.in_features})" for name, linear in linears.items() if linear.in_features % pattern.size]
    if odd:
        raise ValueError(
            f"pruning.pattern={pattern} needs matrices whose number of inputs is a multiple of "
            f"{pattern.size}, got {', '.join(odd)}; set pruning.pattern=null, or choose another model"
        )


def choose_by_pattern(
    importance: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    *,
    pattern: Pattern,
    sparsity: float,
    is_global: bool,
) -> dict[str, Tensor]:
    """Choose masks in which as many groups are in the pattern as the target asks for.

    Args:
        importance: By matrix name, larger = keep.
        weights: The unmasked weights by the same names; among equals the larger |w| is kept, then the lower index.
        pattern: Of every group.
        sparsity: The target, at most the pattern's own.
        is_global: True ranks the groups of all matrices together, False those of each matrix.

    Returns:
        Masks by matrix name, True = kept.

    Raises:
        ValueError: If the target is more than the pattern prunes.
    """
    groups = _grouped(importance, weights, pattern)
    masks = _masks(groups, sparsity / pattern.sparsity, is_global=is_global)
    return {name: mask.view_as(importance[name]) for name, mask in masks.items()}


def keep_best(
    importance: Float[Tensor, "groups size"], weights: Float[Tensor, "groups size"], n_kept: int
) -> tuple[Bool[Tensor, "groups size"], Float[Tensor, " groups"]]:
    """Keep the most important weights of each group; among equals the larger |w|, then the lower index.

    Args:
        importance: Larger = keep.
        weights: The weights themselves.
        n_kept: How many of each group.

    Returns:
        The mask, True = kept, with exactly ``n_kept`` in every row; and the importance of what goes, added up.
    """
    ranked = _sorted_columns(importance)
    mask = importance >= ranked[n_kept - 1].unsqueeze(1)
    if int(mask.count_nonzero()) > n_kept * len(mask):
        is_tied = mask.sum(dim=1) > n_kept
        # Only these groups are sorted by index: by |w| first, then stably by importance.
        by_size = weights[is_tied].abs().argsort(dim=1, descending=True, stable=True)
        scores = importance[is_tied].gather(1, by_size)
        order = by_size.gather(1, scores.argsort(dim=1, descending=True, stable=True))
        mask[is_tied] = torch.zeros_like(mask[is_tied]).scatter(1, order[:, :n_kept], True)
    return mask, torch.stack(ranked[n_kept:]).sum(dim=0)


def _sorted_columns(values: Float[Tensor, "groups size"]) -> list[Tensor]:
    """Sort every row, the largest first, and return the columns.

    Neighbours that stand wrongly are exchanged in all rows at once: for rows as short as these four times as fast on a
    CPU as torch's own sort and topk, and masks move in every step.
    """
    columns = list(values.t().contiguous())
    for turn in range(len(columns)):
        for left in range(turn % 2, len(columns) - 1, 2):
            one, other = columns[left], columns[left + 1]
            columns[left], columns[left + 1] = torch.maximum(one, other), torch.minimum(one, other)
    return columns


def follows_pattern(weight: Float[Tensor, "rows columns"], n: int, m: int) -> bool:
    """Say whether at most ``n`` of every ``m`` consecutive weights of each row are not zero."""
    if weight.shape[1] % m:
        return False
    return bool(((weight.detach().reshape(-1, m) != 0).sum(dim=1) <= n).all())


@dataclass(frozen=True)
class _Groups:
    """Hold the groups of one matrix, row by row: what the pattern would keep of them, and what that would cost."""

    kept: Bool[Tensor, "groups size"]
    cost: Float[Tensor, " groups"]
    weights: Float[Tensor, "groups size"]

    @classmethod
    def of(cls, importance: Tensor, weight: Tensor, pattern: Pattern) -> _Groups:
        scores = importance.detach().float().reshape(-1, pattern.size)
        weights = weight.detach().reshape(-1, pattern.size)
        return cls(*keep_best(scores, weights, pattern.n_kept), weights)

    def pruned_size(self) -> Tensor:
        return self.weights.abs().masked_fill(self.kept, 0.0).sum(dim=1)


def _grouped(importance: Mapping[str, Tensor], weights: Mapping[str, Tensor], pattern: Pattern) -> dict[str, _Groups]:
    if all(selects_on_host(scores) for scores in importance.values()):
        return {name: _Groups.of(scores, weights[name], pattern) for name, scores in importance.items()}
    # On an accelerator all at once: the host waits to learn whether there are ties.
    flat = [torch.cat([tensors[name].detach().flatten() for name in importance]) for tensors in (importance, weights)]
    groups = _Groups.of(flat[0], flat[1], pattern)
    sizes = [scores.numel() // pattern.size for scores in importance.values()]
    parts = zip(groups.kept.split(sizes), groups.cost.split(sizes), groups.weights.split(sizes), strict=True)
    return {name: _Groups(*part) for name, part in zip(importance, parts, strict=True)}


def _masks(groups: Mapping[str, _Groups], fraction: float, *, is_global: bool) -> dict[str, Tensor]:
    """Return the masks of matrices with ``fraction`` of their groups in the pattern, of all together or of each."""
    costs = {name: one.cost for name, one in groups.items()}
    n_groups = sum(map(len, costs.values()))
    if round(fraction * n_groups) == n_groups:
        # Then no group is ranked against others, where a cost that is no number would be found.
        flat = torch.cat(list(costs.values()))
        if bool(flat.isnan().any()):
            raise not_a_number(flat)
    if not is_global:
        n_sparse = {name: round(fraction * len(cost)) for name, cost in costs.items()}
        is_dense = keep_highest_of_each(costs, n_sparse, tie_breaker=lambda name: groups[name].pruned_size())
    else:
        cost = torch.cat(list(costs.values()))
        flat = keep_highest(
            cost,
            round(fraction * len(cost)),
            tie_breaker=lambda: torch.cat([one.pruned_size() for one in groups.values()]),
        )
        is_dense = dict(zip(costs, flat.split([len(one) for one in costs.values()]), strict=True))
    return {name: one.kept | is_dense[name].unsqueeze(1) for name, one in groups.items()}


__all__ = [
    "PATTERNS",
    "Pattern",
    "check_divisible",
    "choose_by_pattern",
    "follows_pattern",
    "get_pattern",
    "keep_best",
]
