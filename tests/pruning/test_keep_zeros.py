from __future__ import annotations

import pytest
import torch
from torch import nn

from cap.models.families import Prunable
from cap.pruning.attach import attach
from cap.pruning.keep_zeros import KeepZeros
from cap.pruning.moves import MaskMoves
from cap.pruning.schedule import Cubic, OneShot

N = 2800


def sparse(linears: dict[str, nn.Linear], share: float = 0.6) -> dict[str, torch.Tensor]:
    """Set a part of every weight to zero, and return where."""
    generator = torch.Generator().manual_seed(3)
    zeros = {}
    with torch.no_grad():
        for name, linear in linears.items():
            order = torch.rand(linear.weight.shape, generator=generator)
            zeros[name] = (order.flatten().argsort().argsort() < round(share * order.numel())).view(order.shape)
            linear.weight[zeros[name]] = 0.0
    return zeros


def trained(linears: dict[str, nn.Linear], n_steps: int = 5) -> None:
    """Move every weight that can move, with a decay that would move any."""
    parameters = [parameter for linear in linears.values() for parameter in linear.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)
    for step in range(n_steps):
        optimizer.zero_grad()
        sum(linear(torch.ones(linear.in_features) + step).square().sum() for linear in linears.values()).backward()
        optimizer.step()


def test_zeros_stay_and_every_other_weight_learns(linears) -> None:
    zeros = sparse(linears)
    before = {name: linear.weight.detach().clone() for name, linear in linears.items()}
    pruner = attach(nn.ModuleDict(linears), KeepZeros(), linears=linears)
    trained(linears)
    pruner.fold()
    for name, linear in linears.items():
        assert torch.equal(linear.weight == 0, zeros[name])
        assert bool((linear.weight != before[name])[~zeros[name]].all())


def test_masks_are_on_before_any_move_and_no_move_changes_them(linears) -> None:
    zeros = sparse(linears)
    pruner = attach(nn.ModuleDict(linears), KeepZeros(), linears=linears)
    trained(linears)
    for target in (0.0, 0.3, 0.99):
        counts = pruner.update_masks(target)
        assert (counts.n_weights, counts.n_pruned_before, counts.n_pruned) == (N, 1680, 1680)
        assert all(torch.equal(~mask, zeros[name]) for name, mask in pruner.masks.items())


def test_a_weight_that_happens_to_reach_zero_is_no_zero_to_keep(linears) -> None:
    sparse(linears)
    pruner = attach(nn.ModuleDict(linears), KeepZeros(), linears=linears)
    with torch.no_grad():
        pruner.original("query").zero_()
    assert pruner.update_masks(0.6).n_pruned == 1680


def test_what_a_checkpoint_holds_gives_the_masks_back(linears) -> None:
    zeros = sparse(linears)
    module = nn.ModuleDict(linears)
    first = attach(module, KeepZeros(), linears=linears)
    state, own = {key: value.clone() for key, value in module.state_dict().items()}, first.state_dict()
    others = nn.ModuleDict({name: nn.Linear(one.in_features, one.out_features) for name, one in linears.items()})
    sparse(dict(others.items()), share=0.5)
    second = attach(others, KeepZeros(), linears=dict(others.items()))
    others.load_state_dict(state)
    second.load_state_dict(own)
    assert all(torch.equal(~mask, zeros[name]) for name, mask in second.masks.items())
    assert second.update_masks(0.6).n_pruned == 1680


@pytest.mark.parametrize("asked", [0.6, 0.601, 0.599])
def test_the_sparsity_of_the_model_is_met_to_within_a_weight_of_each_matrix(linears, asked) -> None:
    sparse(linears)
    KeepZeros(final_sparsity=asked).check(Prunable(linears))


@pytest.mark.parametrize(
    ("share", "asked", "expected"),
    [
        (0.0, 0.6, "none of its 2,800 prunable weights is zero; give a model that single weights or units were pruned"),
        (0.001, 0.6, "but 3 of its 2,800 prunable weights is zero; give a model that"),
        (0.999, 0.6, "2,797 of its 2,800 prunable weights are zero; give another model"),
        (0.6, 0.7, "1,680 of its 2,800 prunable weights, got sparsity=0.7; set sparsity=0.6, or"),
        (0.625, 0.6, "1,750 of its 2,800 prunable weights, got sparsity=0.6; set sparsity=0.625, or"),
        (0.6, 0.602, "got sparsity=0.602; set sparsity=0.6, or"),
    ],
)
def test_a_model_with_other_zeros_is_refused(linears, share, asked, expected) -> None:
    sparse(linears, share)
    with pytest.raises(ValueError, match="keeps the zeros that a model comes with") as caught:
        KeepZeros(final_sparsity=asked).check(Prunable(linears))
    assert expected in str(caught.value)


def test_a_dense_module_is_refused_when_the_masks_go_on(linears) -> None:
    with pytest.raises(ValueError, match="none of its 2,800 prunable weights is zero"):
        attach(nn.ModuleDict(linears), KeepZeros(), linears=linears)


@pytest.mark.parametrize("plan", [OneShot(sparsity=0.6, flat_before=0.0), Cubic(sparsity=0.6001)])
def test_what_moves_masks_knows_from_the_start_what_they_are(linears, plan) -> None:
    sparse(linears)
    moves = MaskMoves(attach(nn.ModuleDict(linears), KeepZeros(), linears=linears), plan)
    moves.begin(10)
    assert moves.reached == 0.6
    moves.advance(0)
    assert moves.reached == 0.6


def test_a_schedule_that_ends_elsewhere_is_refused(linears) -> None:
    sparse(linears)
    moves = MaskMoves(attach(nn.ModuleDict(linears), KeepZeros(), linears=linears), Cubic(sparsity=0.9))
    with pytest.raises(
        ValueError, match=r"a sparsity of 0\.6000, got a schedule that ends at 0\.9; give it cap\.OneSh"
    ):
        moves.begin(10)
