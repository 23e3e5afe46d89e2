"""Selection of the largest entries on an accelerator: of many rows at once, without a sort.

PyTorch's own selection, ``kthvalue``, is one thread block a call on CUDA and refuses to run deterministically. Here the
threshold of every row is found by bisection: floats are read as whole numbers that are ordered as they are, and each of
32 passes counts the entries below the middle of what is left. Counts are whole numbers, so the result is exact and the
same every time. The host waits for the device once, to learn whether there are ties to break.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor
from torch.nn import functional

from cap.base.errors import RunError

_LOWEST, _HIGHEST = -(2**31), 2**31 - 1
_N_BITS = 32
_MOST_OF_A_BYTE = 255
_N_COUNTED_TOGETHER = 8 * _MOST_OF_A_BYTE


def selects_on_host(values: Tensor) -> bool:
    """Say whether numpy's selection serves a tensor better; it is vectorised, but reads the host's memory only."""
    return values.device.type == "cpu"


def keep_highest_of_rows(
    importance: Float[Tensor, "rows n"], n_pruned: Sequence[int], *, tie_breaker: Callable[[], Float[Tensor, "rows n"]]
) -> Bool[Tensor, "rows n"]:
    """Prune exactly so many of the least important entries of each row.

    Args:
        importance: Larger = keep.
        n_pruned: By row, how many become False, 0 to n.
        tie_breaker: Called only if equal importance must be told apart: larger = keep; then the lower index is kept.

    Returns:
        The mask, True = kept.

    Raises:
        RunError: If importance is NaN somewhere.
    """
    keys = _ordered(importance)
    n_kept = keys.shape[1] - torch.tensor(n_pruned).to(keys.device, non_blocking=True)
    threshold = _kth_smallest(keys, keys.shape[1] - n_kept)
    mask = keys > threshold
    n_missing = n_kept - _count(_padded(mask, value=False))
    has_ties, is_broken = torch.stack([n_missing.any(), importance.isnan().any()]).tolist()
    if is_broken:
        raise not_a_number(importance)
    if not has_ties:
        return mask
    # Of those at the threshold the ones that are missing: first by the tie breaker, then by index.
    is_tied = keys == threshold
    del keys
    keys = _ordered(tie_breaker()).masked_fill_(~is_tied, _LOWEST)
    threshold = _kth_smallest(keys, keys.shape[1] - n_missing)
    mask |= keys > threshold
    is_tied &= keys == threshold
    n_missing = n_kept - _count(_padded(mask, value=False))
    mask |= is_tied & (is_tied.cumsum(dim=1, dtype=torch.int32) <= n_missing.unsqueeze(1))
    return mask


def not_a_number(importance: Tensor) -> RunError:
    """Say that importance is NaN somewhere, and what may help."""
    return RunError(
        f"importance must be a number for every weight, got {int(importance.isnan().sum())} of {importance.numel()} "
        "that are none (NaN); lower learning_rate or pruning.score_learning_rate, or use trainer.precision=32-true"
    )


def _ordered(values: Float[Tensor, "rows n"]) -> Int32[Tensor, "rows n"]:
    """Read floats as whole numbers of the same order."""
    # Adding zero makes -0.0 and 0.0 equal. The bits of a negative number but for its sign grow with its size.
    bits = (values.detach().float() + 0.0).view(torch.int32)
    return bits.bitwise_xor_((bits >> (_N_BITS - 1)).bitwise_and_(_HIGHEST))


def _kth_smallest(keys: Int32[Tensor, "rows n"], k: Int64[Tensor, " rows"]) -> Int32[Tensor, "rows 1"]:
    """Find the k-th smallest of each row, k from 1 to n; of k = 0 the lowest number there is."""
    low = torch.full_like(k, _LOWEST)
    high = torch.full_like(k, _HIGHEST)
    # What is added counts below the highest number alone, where there is enough in any case.
    keys = _padded(keys, value=_HIGHEST)
    for _ in range(_N_BITS):
        middle = (low + high) >> 1  # rounded down, below 0, too
        is_enough = _count(keys <= middle.to(torch.int32).unsqueeze(1)) >= k
        low, high = torch.where(is_enough, low, middle + 1), torch.where(is_enough, middle, high)
    return high.to(torch.int32).unsqueeze(1)


def _padded(values: Tensor, *, value: int) -> Tensor:
    """Make rows as long as ``_count`` needs them."""
    return functional.pad(values, (0, -values.shape[1] % _N_COUNTED_TOGETHER), value=value)


def _count(mask: Bool[Tensor, "rows n"]) -> Int64[Tensor, " rows"]:
    """Count each row, a multiple of ``_N_COUNTED_TOGETHER`` long, and read it once.

    ``mask.sum(dim=1)`` would write the mask as whole numbers of 8 bytes first, and read those.
    """
    # Of eight bytes in one number each grows to 255 at most, so that none flows over into the next.
    eights: Tensor = mask.view(torch.int64).view(len(mask), -1, _MOST_OF_A_BYTE).sum(dim=2)
    return eights.view(torch.uint8).sum(dim=1)


__all__ = ["keep_highest_of_rows", "not_a_number", "selects_on_host"]
