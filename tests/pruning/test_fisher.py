"""Blocks of the empirical Fisher against loops over blocks, gradients and weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cap.pruning.fisher import BlockFisher

ROWS, COLUMNS = 3, 11
N_GRADIENTS = 21  # two products of eight at once, and five more
DAMPING = 0.1


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHT = drawn(ROWS, COLUMNS, seed=0)
GRADIENTS = drawn(N_GRADIENTS, ROWS, COLUMNS, seed=1)
MASKS = {
    "all kept": torch.ones(ROWS, COLUMNS, dtype=torch.bool),
    "some pruned": drawn(ROWS, COLUMNS, seed=2) > -0.5,
    "one kept": torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS) == 20,
    "none kept": torch.zeros(ROWS, COLUMNS, dtype=torch.bool),
}
BLOCK_SIZES = [1, 4, 5, 11]

every_mask = pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
every_size = pytest.mark.parametrize("size", BLOCK_SIZES)


def measured(mask: Tensor, size: int, gradients: Tensor = GRADIENTS, dtype: torch.dtype = torch.float64) -> BlockFisher:
    fisher = BlockFisher(mask, int(mask.sum()), size, dtype)
    for gradient in gradients:
        fisher.add(gradient)
    return fisher


def blocks_of(mask: Tensor, size: int) -> list[list[int]]:
    """List the kept weights of each block, by their place in the flattened matrix."""
    places = mask.flatten().nonzero().squeeze(1).tolist()
    return [places[start : start + size] for start in range(0, len(places), size)]


def dense_block(places: list[int], gradients: Tensor = GRADIENTS) -> Tensor:
    fisher = DAMPING * torch.eye(len(places), dtype=torch.float64)
    for gradient in gradients:
        own = gradient.flatten()[places]
        fisher += torch.outer(own, own) / len(gradients)
    return fisher


@every_size
@every_mask
def test_costs_are_those_of_the_inverse_of_each_block(mask, size):
    costs = measured(mask, size).costs(WEIGHT, n_gradients=N_GRADIENTS, damping=DAMPING)
    expected = torch.full((ROWS * COLUMNS,), -math.inf, dtype=torch.float64)
    for places in blocks_of(mask, size):
        inverse = torch.linalg.inv(dense_block(places))
        for i, place in enumerate(places):
            expected[place] = WEIGHT.flatten()[place] ** 2 / (2 * inverse[i, i])
    torch.testing.assert_close(costs.flatten(), expected, atol=1e-12, rtol=1e-12)


def test_sum_and_factor_equal_updates_by_one_gradient_after_the_other():
    size = ROWS * COLUMNS
    inverse = torch.eye(size, dtype=torch.float64) / DAMPING
    for gradient in GRADIENTS.flatten(1):
        pulled = inverse @ gradient
        inverse -= torch.outer(pulled, pulled) / (N_GRADIENTS + gradient @ pulled)
    costs = measured(MASKS["all kept"], size).costs(WEIGHT, n_gradients=N_GRADIENTS, damping=DAMPING)
    expected = WEIGHT.square() / (2 * inverse.diagonal().view(ROWS, COLUMNS))
    torch.testing.assert_close(costs, expected, atol=1e-12, rtol=1e-11)


@every_size
@every_mask
def test_weights_that_stay_move_as_the_inverse_says(mask, size):
    is_removed = mask & (drawn(ROWS, COLUMNS, seed=3) > 0.2)
    found = measured(mask, size).compensate(WEIGHT, is_removed, n_gradients=N_GRADIENTS, damping=DAMPING)
    expected, flat = WEIGHT.flatten().clone(), WEIGHT.flatten()
    for places in blocks_of(mask, size):
        gone = [i for i, place in enumerate(places) if is_removed.flatten()[place]]
        inverse = torch.linalg.inv(dense_block(places))
        pull = torch.linalg.solve(inverse[gone][:, gone], flat[places][gone])
        expected[places] -= inverse[:, gone] @ pull
    expected[is_removed.flatten()] = 0.0
    torch.testing.assert_close(found.flatten(), expected, atol=1e-11, rtol=1e-11)
    assert not bool(found[is_removed].any())


def test_diagonal_moves_no_weight():
    is_removed = WEIGHT > 0.3
    found = measured(MASKS["all kept"], 1).compensate(WEIGHT, is_removed, n_gradients=N_GRADIENTS, damping=DAMPING)
    assert torch.equal(found, WEIGHT * ~is_removed)


@every_mask
def test_trace_is_the_sum_of_squares_of_kept_weights(mask):
    trace = measured(mask, 4).trace()
    torch.testing.assert_close(trace, GRADIENTS.square().sum(dim=0)[mask].sum())


def test_block_that_rounding_would_leave_indefinite_is_factorised():
    # One gradient in float32 whose products differ by fourteen orders, and next to no damping.
    gradient = torch.tensor([[1e4, 3e-3, 7e3, 1e-4]])
    fisher = measured(torch.ones(1, 4, dtype=torch.bool), 4, gradient.repeat(9, 1, 1), torch.float32)
    costs = fisher.costs(torch.ones(1, 4), n_gradients=9, damping=1e-30)
    assert bool(costs.isfinite().all())
    assert bool((costs > 0).all())
