"""Sensitivity times uncertainty, against a loop over steps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from cap.models.families import Prunable
from cap.pruning.platon import Platon

N_STEPS, WINDOW = 30, 4  # the last window is cut short


def attached(linears: dict[str, nn.Linear], **options) -> Platon:
    pruner = Platon(**options)
    pruner.attach(Prunable(linears), seed=0)
    return pruner


def inputs(linear: nn.Linear, seed: int) -> Tensor:
    return torch.randn(4, linear.in_features, generator=torch.Generator().manual_seed(seed))


def gradient_of_masked_weight(linear: nn.Linear, rows: Tensor) -> Tensor:
    """Differentiate with respect to weight * mask, taken as a variable of its own."""
    part = linear.parametrizations.weight
    masked = (part.original.detach() * part[0].mask).requires_grad_()
    nn.functional.linear(rows, masked, linear.bias.detach()).square().sum().backward()
    return masked.grad


def test_importance_is_that_of_a_slow_loop_while_masks_move_and_weights_are_trained(linears):
    pruner = attached(linears, window=WINDOW, sensitivity_decay=0.8, uncertainty_decay=0.6)
    optimizer = torch.optim.SGD([linear.parametrizations.weight.original for linear in linears.values()], lr=1e-3)
    mean = {name: torch.zeros(mask.shape) for name, mask in pruner.masks.items()}
    average, uncertainty = ({name: zeros.clone() for name, zeros in mean.items()} for _ in range(2))
    for step in range(N_STEPS):
        for name, linear in linears.items():
            observed = (pruner.weight(name) * gradient_of_masked_weight(linear, inputs(linear, step))).abs()
            mean[name] += observed / WINDOW
            if step % WINDOW == WINDOW - 1:
                average[name] = 0.8 * average[name] + 0.2 * mean[name]
                uncertainty[name] = 0.6 * uncertainty[name] + 0.4 * (mean[name] - average[name]).abs()
                mean[name] = torch.zeros_like(mean[name])
        optimizer.zero_grad()
        sum(linear(inputs(linear, step)).square().sum() for linear in linears.values()).backward()
        pruner.observe_gradients(scale=None)
        optimizer.step()
        for name in linears:
            torch.testing.assert_close(pruner.importance(name), average[name] * uncertainty[name], rtol=1e-4, atol=1e-9)
        if step % WINDOW == WINDOW - 1:
            pruner.update_masks(step / N_STEPS)
    assert all(bool(uncertainty[name].all()) for name in linears)


def test_factor_of_a_loss_scaler_and_micro_batches_are_taken_as_one_step(linears):
    pruner, linear = attached(linears, window=1), linears["query"]
    both = sum(gradient_of_masked_weight(linear, inputs(linear, seed)) for seed in (0, 1))
    for seed in (0, 1):
        (1024.0 * linear(inputs(linear, seed)).square().sum()).backward()
    pruner.observe_gradients(scale=1024.0)
    observed = (pruner.weight("query") * both).abs()
    # From averages of 0: 0.15 · I, and 0.15 · |I - 0.15 · I|.
    torch.testing.assert_close(pruner.importance("query"), 0.15 * observed * 0.15 * 0.85 * observed)


def test_step_that_overflowed_leaves_the_averages_finite(linears):
    pruner = attached(linears, window=2)
    for value in (math.inf, math.nan):
        pruner.scored("query").scores.grad = torch.full((20, 30), value)
        pruner.observe_gradients(scale=65536.0)
    assert not bool(pruner.importance("query").any())


def test_pruned_weights_return_when_they_matter(linears):
    pruner = attached(linears, scope="matrix", window=1)
    pruner.update_masks(0.5)
    was_pruned = ~pruner.masks["query"].clone()
    pruner.scored("query").scores.grad = torch.rand(20, 30) + was_pruned
    pruner.observe_gradients(scale=None)
    pruner.update_masks(0.5)
    assert torch.equal(pruner.masks["query"], was_pruned)


def test_place_within_a_window_is_part_of_the_state(linears):
    pruner = attached(linears, window=3)
    pruner.observe_gradients(scale=None)
    other = Platon(window=3)
    other.load_state_dict(pruner.state_dict())
    assert other.state_dict() == {"n_pruned": 0, "n_seen": 1}


def test_no_optimizer_may_touch_the_scores(linears):
    pruner = attached(linears)
    assert pruner.score_parameters() == []
    assert [id(p) for p in pruner.auxiliary_parameters()] == [id(pruner.scored(name).scores) for name in linears]


@pytest.mark.parametrize("decay", [-0.1, 1.0])
@pytest.mark.parametrize("name", ["sensitivity_decay", "uncertainty_decay"])
def test_decay_out_of_range_is_refused(name, decay):
    with pytest.raises(ValueError, match=rf"pruning\.{name} is what a window leaves .* lies in \[0, 1\), got {decay}"):
        Platon(**{name: decay})


def test_window_without_steps_is_refused():
    with pytest.raises(ValueError, match=r"pruning\.window counts optimizer steps and must be at least 1, got 0"):
        Platon(window=0)
