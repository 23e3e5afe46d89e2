"""The empirical Fisher information of a matrix, in blocks: what removing a weight costs, and how others make up for it.

The Fisher stands for the Hessian of the loss. Within a block F of the weights w, damped so that it is positive
definite, removing weight i costs w_i² / (2 [F⁻¹]_ii), and removing the weights Q at once moves the others, S, by
F_SS⁻¹ F_SQ w_Q, which equals the more common -F⁻¹ E_Q ([F⁻¹]_QQ)⁻¹ w_Q.

Source: optimal BERT surgeon, arXiv:2203.07259, section 3. There the inverse is updated by one gradient after the other;
here outer products are added up and factorised once, which gives the same inverse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# Gradients whose outer products are added up by one batched product: measured on a CPU, eight at once take a quarter of
# the time that each on its own takes, and half as much memory as blocks of 16.
_AT_ONCE = 8
# Entries of the blocks that are factorised at once, in float64: 8 MB, of which so many copies are alive.
_ENTRIES = 2**20
_COPIES, _COPIES_OF_DIAGONAL = 4, 5
_BYTES_OF_FLOAT64 = _BYTES_OF_INT64 = 8
# Least damping of a block, in units of what rounding may take from its eigenvalues: below, it might be indefinite.
_ROUNDING = 4


class BlockFisher:
    """Add up the outer products of a matrix's gradients, within blocks of kept weights.

    Kept weights are laid end to end, row by row, and cut into blocks, the last of which is filled up with zeros: the
    memory shrinks as sparsity rises.

    Args:
        mask: True = kept; the others are in no block.
        n_kept: How many those are, so that the host need not wait for the device to learn it.
        block_size: Kept weights of a block, >= 1; 1 is the diagonal alone.
        dtype: Of the sums; float32 or float64.
    """

    def __init__(self, mask: Bool[Tensor, "rows columns"], n_kept: int, block_size: int, dtype: torch.dtype) -> None:
        self.block_size = block_size
        self._shape = mask.shape
        self.n_kept = n_kept
        self._places = None if n_kept == mask.numel() else mask.flatten().nonzero_static(size=n_kept).squeeze(1)
        n_blocks = math.ceil(n_kept / block_size)
        self._gram = torch.zeros(n_blocks, block_size, block_size, dtype=dtype, device=mask.device)
        self._waiting: Tensor | None = None
        self._n_waiting = 0

    def add(self, gradient: Float[Tensor, "rows columns"]) -> None:
        """Add the outer product of a gradient."""
        blocks = self._cut(gradient.detach().to(self._gram.dtype))
        if self.block_size == 1:
            self._gram.addcmul_(blocks.unsqueeze(2), blocks.unsqueeze(2))
            return
        if self._waiting is None:
            self._waiting = self._gram.new_zeros(len(self._gram), _AT_ONCE, self.block_size)
        self._waiting[:, self._n_waiting] = blocks
        self._n_waiting += 1
        if self._n_waiting == _AT_ONCE:
            self._add_waiting(self._waiting)

    def sums(self) -> Float[Tensor, "blocks size size"]:
        """Return the sum of the outer products so far, not a copy."""
        if self._waiting is not None:
            self._add_waiting(self._waiting)
            self._waiting = None  # what comes next needs the memory
        return self._gram

    def trace(self) -> Float[Tensor, ""]:
        """Return the sum of the diagonal of ``sums``, in float64."""
        return self.sums().diagonal(dim1=1, dim2=2).sum(dtype=torch.float64)

    def costs(
        self, weight: Float[Tensor, "rows columns"], *, n_gradients: int, damping: float
    ) -> Float[Tensor, "rows columns"]:
        """Return the increase of the loss if a weight is removed and the others of its block make up for it.

        Args:
            weight: The unmasked weights.
            n_gradients: How many were added; the Fisher is their mean.
            damping: What is added to its diagonal, > 0.

        Returns:
            In units of the loss; minus infinity for weights that are in no block.
        """
        weights = self._cut(weight)
        costs = torch.empty_like(weights, dtype=self._gram.dtype)
        for part, fisher in self._damped(n_gradients, damping):
            costs[part] = weights[part].double().square() / (2 * _inverse_diagonal(fisher))
        return self._put_back(costs, torch.full(self._shape, -math.inf, dtype=costs.dtype, device=costs.device))

    def compensate(
        self,
        weight: Float[Tensor, "rows columns"],
        is_removed: Bool[Tensor, "rows columns"],
        *,
        n_gradients: int,
        damping: float,
    ) -> Float[Tensor, "rows columns"]:
        """Remove weights, and move the others of their blocks to where the loss rises least.

        Args:
            weight: The unmasked weights.
            is_removed: What goes; what is in no block stays as it is.
            n_gradients: As in ``costs``.
            damping: Likewise.

        Returns:
            The new weights; those removed are 0.
        """
        weights, removed = self._cut(weight), self._cut(is_removed)
        moved = weights.masked_fill(removed, 0.0)
        if self.block_size > 1:
            for part, fisher in self._damped(n_gradients, damping):
                moved[part] += _response(fisher, weights[part].double(), removed[part]).to(moved.dtype)
        return self._put_back(moved, weight.clone())

    def _add_waiting(self, waiting: Float[Tensor, "blocks gradients size"]) -> None:
        waiting[:, self._n_waiting :] = 0.0
        self._gram.baddbmm_(waiting.transpose(1, 2), waiting)
        self._n_waiting = 0

    def _cut(self, values: Tensor) -> Tensor:
        """Cut what belongs to kept weights into blocks, (blocks, size)."""
        flat = values.reshape(-1)
        if self._places is not None:
            flat = flat[self._places]
        n_missing = len(self._gram) * self.block_size - self.n_kept
        padded = torch.nn.functional.pad(flat, (0, n_missing)) if n_missing else flat
        return padded.view(len(self._gram), self.block_size)

    def _put_back(self, blocks: Tensor, others: Tensor) -> Tensor:
        """Undo ``_cut``; weights that are in no block have the values of ``others``."""
        flat = blocks.reshape(-1)[: self.n_kept]
        if self._places is None:
            return flat.view(self._shape)
        return others.view(-1).index_copy_(0, self._places, flat).view(self._shape)

    def _damped(self, n_gradients: int, damping: float) -> Iterator[tuple[slice, Tensor]]:
        """Yield some blocks at a time, as mean and in float64, with their damping."""
        sums = self.sums()
        epsilon = torch.finfo(sums.dtype).eps
        n_at_once = max(1, _ENTRIES // self.block_size**2)
        for start in range(0, len(sums), n_at_once):
            part = slice(start, start + n_at_once)
            fisher = sums[part].to(torch.float64, copy=True).div_(n_gradients)
            diagonal = fisher.diagonal(dim1=1, dim2=2)
            rounding = _ROUNDING * self.block_size * epsilon * diagonal.amax(dim=1, keepdim=True)
            diagonal += damping + rounding
            yield part, fisher


def bytes_of_pass(
    n_weights: Sequence[int],
    n_kept: Sequence[int],
    block_size: int,
    *,
    is_global: bool = True,
    on_host: bool = True,
    bytes_per_value: int = 4,
) -> int:
    """Say what the Fisher of some matrices takes at its peak, in bytes, beside the model and its activations.

    Args:
        n_weights: Weights of each matrix: gradients, costs and ranks have its shape, however much of it is pruned.
        n_kept: How many of these are kept.
        block_size: As in ``BlockFisher``.
        is_global: Whether the weights of all matrices are ranked together.
        on_host: Whether they are ranked by the host's selection; that of an accelerator holds a copy more.
        bytes_per_value: Of the sums, and of gradients.
    """
    n_all, largest = sum(n_weights), max(n_weights, default=0)
    in_blocks = [math.ceil(n / block_size) * block_size for n in n_kept]
    places = _BYTES_OF_INT64 * sum(kept for kept, n in zip(n_kept, n_weights, strict=True) if kept < n)
    # While gradients come, themselves and those that wait, of one matrix in two copies.
    waiting = _AT_ONCE * (sum(in_blocks) + max(in_blocks, default=0)) if block_size > 1 else 0
    passing = bytes_per_value * (n_all + waiting)
    # While costs are computed, themselves and what is factorised, or inverted; while weights make up for others, masks
    # of before and after, too; while costs are ranked, copies of them and a mask.
    part = _BYTES_OF_FLOAT64 * min(_ENTRIES, block_size * max(in_blocks, default=0))
    costing = bytes_per_value * n_all + (_COPIES if block_size > 1 else _COPIES_OF_DIAGONAL) * part
    moving = (bytes_per_value + 2) * n_all + (_COPIES * part if block_size > 1 else 0)
    ranking = (bytes_per_value + 1) * n_all + (2 if on_host else 3) * bytes_per_value * (
        n_all if is_global else largest
    )
    return bytes_per_value * block_size * sum(in_blocks) + places + max(passing, costing, moving, ranking)


def _inverse_diagonal(fisher: Float[Tensor, "blocks size size"]) -> Float[Tensor, "blocks size"]:
    """Return the diagonal of the inverse of each block, which is overwritten nowhere."""
    if fisher.shape[1] == 1:
        return fisher.squeeze(2).reciprocal()
    factor = torch.linalg.cholesky_ex(fisher).L  # without a check, for which the host would wait
    identity = torch.eye(fisher.shape[1], dtype=fisher.dtype, device=fisher.device)
    inverse: Tensor = torch.linalg.solve_triangular(factor, identity.expand_as(fisher), upper=False)
    return inverse.square().sum(dim=1)  # F⁻¹ = L⁻ᵀ L⁻¹


def _response(
    fisher: Float[Tensor, "blocks size size"],
    weights: Float[Tensor, "blocks size"],
    removed: Bool[Tensor, "blocks size"],
) -> Float[Tensor, "blocks size"]:
    """Return how the weights that stay move when others are removed; 0 for those. Overwrites the blocks."""
    pull = fisher @ (weights * removed).unsqueeze(2)
    pull.masked_fill_(removed.unsqueeze(2), 0.0)
    # What is removed becomes an identity of its own, so that every block keeps its size.
    fisher.masked_fill_(removed.unsqueeze(1) | removed.unsqueeze(2), 0.0)
    fisher.diagonal(dim1=1, dim2=2).masked_fill_(removed, 1.0)
    return torch.cholesky_solve(pull, torch.linalg.cholesky_ex(fisher).L).squeeze(2)


__all__ = ["BlockFisher", "bytes_of_pass"]
