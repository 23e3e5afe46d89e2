"""A linear layer that holds several matrices is pruned as if each were a layer of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cap.models.families import Prunable
from cap.pruning.first_order import FirstOrder
from cap.pruning.magnitude import Magnitude
from cap.pruning.movement import Movement
from cap.pruning.random import Random
from cap.pruning.soft_movement import SoftMovement
from cap.pruning.weights import WeightPruner

ROWS, COLUMNS = 20, 40
KINDS = ("query", "key", "value")

TYPES: dict[str, Callable[[], WeightPruner]] = {
    "magnitude": Magnitude,
    "magnitude over all": lambda: Magnitude(scope="global"),
    "magnitude, 2:4": lambda: Magnitude(pattern="2:4"),
    "first_order": lambda: FirstOrder(scope="matrix"),
    "random": Random,
    "movement": Movement,
    "movement over all": lambda: Movement(scope="global"),
    "soft_movement": lambda: SoftMovement(final_sparsity=0.99),
    "soft_movement, published": lambda: SoftMovement(final_sparsity=0.99, threshold="published", score_init="zero"),
}
every_type = pytest.mark.parametrize("make", TYPES.values(), ids=TYPES)


def fused() -> nn.Linear:
    """Make three matrices, one below the other, whose weights differ in size by orders of magnitude."""
    torch.manual_seed(0)
    linear = nn.Linear(COLUMNS, 3 * ROWS, bias=False)
    with torch.no_grad():
        linear.weight *= torch.tensor([0.01, 1.0, 100.0]).repeat_interleave(ROWS)[:, None]
    return linear


def apart() -> dict[str, nn.Linear]:
    linears = {kind: nn.Linear(COLUMNS, ROWS, bias=False) for kind in KINDS}
    with torch.no_grad():
        for linear, weight in zip(linears.values(), fused().weight.chunk(3), strict=True):
            linear.weight.copy_(weight)
    return linears


def trained(pruner: WeightPruner, linears: dict[str, nn.Linear]) -> WeightPruner:
    """Let one step's gradients reach the scores, and what follows them."""
    targets = torch.randn(3 * ROWS, COLUMNS, generator=torch.Generator().manual_seed(1))
    weight = torch.cat([linear.weight for linear in linears.values()])
    ((weight - targets) * targets).sum().backward()
    pruner.observe_gradients(scale=None)
    with torch.no_grad():
        for scores in pruner.score_parameters():
            scores -= scores.grad
    return pruner


def pair(make: Callable[[], WeightPruner]) -> tuple[WeightPruner, WeightPruner]:
    """Attach one type to the layer that holds three matrices, and to three layers."""
    one, three = {"qkv": fused()}, apart()
    first, second = make(), make()
    first.attach(Prunable(one, held={"qkv": KINDS}), seed=0)
    second.attach(Prunable(three, held={kind: (kind,) for kind in KINDS}), seed=0)
    return trained(first, one), trained(second, three)


@every_type
def test_masks_are_those_of_the_matrices_apart(make) -> None:
    first, second = pair(make)
    for sparsity in (0.3, 0.5):
        assert first.update_masks(sparsity) == second.update_masks(sparsity)
        assert torch.equal(first.masks["qkv"], torch.cat(list(second.masks.values())))
    assert bool((~first.masks["qkv"]).any())


@every_type
def test_regularizers_are_those_of_the_matrices_apart(make) -> None:
    first, second = pair(make)
    first.update_masks(0.5)
    second.update_masks(0.5)
    assert (first.regularizer() is None) == (second.regularizer() is None)
    torch.testing.assert_close(first.regularizer(), second.regularizer())


def test_every_matrix_weighs_alike_in_the_regularizer_wherever_it_is_held() -> None:
    one = {"qkv": fused(), "out": nn.Linear(COLUMNS, ROWS, bias=False)}
    pruner = SoftMovement(final_sparsity=0.9)
    pruner.attach(Prunable(one, held={"qkv": KINDS, "out": ("attention output",)}), seed=0)
    pruner.update_masks(0.45)
    matrices = [*pruner.scored("qkv").scores.chunk(3), pruner.scored("out").scores]
    expected = 190 * 0.5 * sum(scores.sigmoid().mean().item() for scores in matrices) / 4
    assert pruner.regularizer().item() == pytest.approx(expected, rel=1e-5)


def test_every_matrix_meets_the_target() -> None:
    first, _ = pair(Magnitude)
    first.update_masks(0.97)
    assert [int((~part).sum()) for part in first.masks["qkv"].chunk(3)] == [round(0.97 * ROWS * COLUMNS)] * 3


def test_every_matrix_keeps_its_floor() -> None:
    first, _ = pair(lambda: SoftMovement(final_sparsity=0.99, score_learning_rate=1.0))
    with torch.no_grad():
        first.scored("qkv").scores.copy_(fused().weight)  # all that is kept would lie in the values
    first.update_masks(0.99)
    assert [int(part.sum()) for part in first.masks["qkv"].chunk(3)] == [4, 4, 16]


def test_a_target_that_the_floors_of_all_matrices_forbid_is_refused() -> None:
    linear = nn.Linear(10, 9)  # one weight of 30 is more than 0.5 %, and so is one of 90
    SoftMovement(final_sparsity=0.98).check(Prunable({"qkv": linear}))
    with pytest.raises(ValueError, match=r"reaches sparsity 0\.9667 at most"):
        SoftMovement(final_sparsity=0.98).check(Prunable({"qkv": linear}, held={"qkv": KINDS}))
