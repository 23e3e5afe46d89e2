"""What every pruning type promises."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import nn

from cap.models.families import Prunable
from cap.pruning.first_order import FirstOrder
from cap.pruning.magnitude import Magnitude
from cap.pruning.movement import Movement
from cap.pruning.platon import Platon
from cap.pruning.pruner import MaskCounts, Pruner
from cap.pruning.random import Random
from cap.pruning.second_order import SecondOrder
from cap.pruning.soft_movement import SoftMovement
from cap.pruning.static_scores import StaticScores

Make = Callable[[], Pruner]


class Measured(SecondOrder):
    """Measure made-up gradients before each move, as a pass would."""

    def update_masks(self, sparsity: float) -> MaskCounts:
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            self.observe_importance(
                [torch.randn(mask.shape, generator=generator) * mask for mask in self.masks.values()]
            )
        return super().update_masks(sparsity)


PER_MATRIX: dict[str, Make] = {
    "magnitude": Magnitude,
    "random": Random,
    "first_order": lambda: FirstOrder(scope="matrix"),
    "movement": lambda: Movement(score_learning_rate=0.01, score_init="zero"),
    "platon": lambda: Platon(scope="matrix"),
    "static_scores": lambda: StaticScores(scope="matrix", final_sparsity=0.995),
    "second_order": lambda: Measured(scope="matrix"),
}
OVER_ALL: dict[str, Make] = {
    "magnitude_global": lambda: Magnitude(scope="global"),
    "random_global": lambda: Random(scope="global"),
    "first_order_global": lambda: FirstOrder(scope="global"),
    "movement_global": lambda: Movement(scope="global", score_learning_rate=0.01, score_init="zero"),
    "soft_movement": lambda: SoftMovement(
        score_learning_rate=0.01, score_init="zero", threshold="target", regularizer_weight=190.0, final_sparsity=0.995
    ),
    "platon_global": Platon,
    "second_order_global": Measured,
}
EVERY = PER_MATRIX | OVER_ALL
SPARSITIES = [0.0, 0.1, 0.5, 0.97, 0.995]

per_matrix = pytest.mark.parametrize("make", PER_MATRIX.values(), ids=PER_MATRIX)
over_all = pytest.mark.parametrize("make", OVER_ALL.values(), ids=OVER_ALL)
every_type = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
every_sparsity = pytest.mark.parametrize("sparsity", SPARSITIES)


def n_pruned(pruner: Pruner) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in pruner.masks.items()}


def copies(pruner: Pruner) -> dict[str, list]:
    return {name: mask.tolist() for name, mask in pruner.masks.items()}


@per_matrix
@every_sparsity
def test_every_matrix_hits_the_target_exactly(make: Make, sparsity: float, linears, randomise) -> None:
    pruner = make()
    pruner.attach(Prunable(linears), seed=0)
    randomise(linears)
    pruner.update_masks(sparsity)
    assert n_pruned(pruner) == {
        "query": round(sparsity * 600),
        "wide": round(sparsity * 2000),
        "small": round(sparsity * 200),
    }


@over_all
@every_sparsity
def test_all_matrices_together_hit_the_target_exactly(make: Make, sparsity: float, linears, randomise) -> None:
    pruner = make()
    pruner.attach(Prunable(linears), seed=0)
    randomise(linears)
    pruner.update_masks(sparsity)
    assert sum(n_pruned(pruner).values()) == round(sparsity * 2800)


@every_type
def test_equal_importance_hits_the_target_too(make: Make, linears) -> None:
    with torch.no_grad():
        for linear in linears.values():
            linear.weight.fill_(0.5)
    pruner = make()
    pruner.attach(Prunable(linears), seed=0)
    assert pruner.update_masks(0.97).n_pruned == round(0.97 * 600) + round(0.97 * 2000) + round(0.97 * 200)


@every_type
def test_all_weights_are_kept_before_the_first_move(make: Make, linears) -> None:
    pruner = make()
    pruner.attach(Prunable(linears), seed=0)
    assert sum(n_pruned(pruner).values()) == 0


@every_type
def test_the_outputs_do_not_change_before_the_first_move(make: Make, linears) -> None:
    before = linears["query"].weight.detach().clone()
    make().attach(Prunable(linears), seed=0)
    assert torch.equal(linears["query"].weight, before)


@every_type
def test_a_move_reports_the_counts_before_and_after(make: Make, linears, randomise) -> None:
    pruner = make()
    pruner.attach(Prunable(linears), seed=0)
    randomise(linears)
    pruner.update_masks(0.5)
    assert pruner.update_masks(0.97) == MaskCounts(n_weights=2800, n_pruned_before=1400, n_pruned=2716)


def test_the_counts_give_the_sparsity() -> None:
    assert MaskCounts(n_weights=2800, n_pruned_before=1400, n_pruned=2716).sparsity == pytest.approx(0.97)


@every_type
def test_the_same_target_twice_moves_nothing(make: Make, linears, randomise) -> None:
    pruner = make()
    pruner.attach(Prunable(linears), seed=0)
    randomise(linears)
    pruner.update_masks(0.5)
    before = copies(pruner)
    pruner.update_masks(0.5)
    assert copies(pruner) == before


@pytest.mark.parametrize("make", [EVERY[name] for name in EVERY if "second_order" not in name])
def test_a_move_leaves_the_weights_alone(make: Make, linears, randomise) -> None:
    before = {name: linear.weight.detach().clone() for name, linear in linears.items()}
    pruner = make()
    pruner.attach(Prunable(linears), seed=0)
    randomise(linears)
    pruner.update_masks(0.97)
    assert all(torch.equal(pruner.weight(name), before[name]) for name in linears)


@every_type
def test_what_a_checkpoint_holds_gives_the_same_next_masks(make: Make, linears, randomise) -> None:
    model = nn.ModuleDict(linears)
    pruner = make()
    pruner.attach(Prunable(linears), seed=4)
    randomise(linears)
    pruner.update_masks(0.3)
    resumed_linears = {name: nn.Linear(part.in_features, part.out_features) for name, part in linears.items()}
    resumed = make()
    resumed.attach(Prunable(resumed_linears), seed=4)
    nn.ModuleDict(resumed_linears).load_state_dict(model.state_dict())
    masks = copies(resumed)
    assert masks == copies(pruner)
    pruner.update_masks(0.5)
    resumed.update_masks(0.5)
    assert copies(resumed) == copies(pruner)


@every_type
def test_folding_leaves_stock_modules_with_the_masked_weights(make: Make, linears, randomise) -> None:
    pruner = make()
    pruner.attach(Prunable(linears), seed=0)
    randomise(linears)
    pruner.update_masks(0.5)
    masked = {name: linear.weight.detach().clone() for name, linear in linears.items()}
    pruner.fold()
    assert all(torch.equal(linear.weight, masked[name]) for name, linear in linears.items())
    assert {type(linear) for linear in linears.values()} == {nn.Linear}


# --- one rule each


@pytest.mark.parametrize("name", ["query", "wide", "small"])
def test_magnitude_keeps_the_largest_weights_of_each_matrix(name: str, linears) -> None:
    pruner = Magnitude()
    pruner.attach(Prunable(linears), seed=0)
    pruner.update_masks(0.6)
    size, mask = pruner.weight(name).abs(), pruner.masks[name]
    assert size[mask].min() >= size[~mask].max()


def test_global_magnitude_keeps_the_largest_weights_of_all_matrices(linears) -> None:
    with torch.no_grad():
        linears["wide"].weight *= 3
    pruner = Magnitude(scope="global")
    pruner.attach(Prunable(linears), seed=0)
    pruner.update_masks(0.6)
    size = torch.cat([pruner.weight(name).abs().flatten() for name in linears])
    mask = torch.cat([mask.flatten() for mask in pruner.masks.values()])
    assert size[mask].min() >= size[~mask].max()


def test_global_magnitude_may_prune_a_whole_matrix(linears) -> None:
    with torch.no_grad():
        linears["wide"].weight.fill_(100.0)
    pruner = Magnitude(scope="global")
    pruner.attach(Prunable(linears), seed=0)
    pruner.update_masks(800 / 2800)
    assert n_pruned(pruner) == {"query": 600, "wide": 0, "small": 200}


def test_magnitude_ranks_the_weights_behind_the_masks(linears) -> None:
    pruner = Magnitude()
    pruner.attach(Prunable(linears), seed=0)
    pruner.update_masks(0.97)
    pruner.update_masks(0.1)
    fresh = Magnitude()
    weights = {name: nn.Linear(part.in_features, part.out_features) for name, part in linears.items()}
    with torch.no_grad():
        for name, part in weights.items():
            part.weight.copy_(pruner.weight(name))
    fresh.attach(Prunable(weights), seed=0)
    fresh.update_masks(0.1)
    assert copies(pruner) == copies(fresh)


def test_magnitude_gives_pruned_weights_no_gradient(linears) -> None:
    pruner = Magnitude()
    pruner.attach(Prunable(linears), seed=0)
    pruner.update_masks(0.5)
    linears["query"](torch.ones(2, 30)).square().sum().backward()
    gradient = linears["query"].parametrizations.weight.original.grad
    assert torch.equal(gradient != 0, pruner.masks["query"])


@pytest.mark.parametrize("scope", ["matrix", "global"])
@pytest.mark.parametrize(("lower", "higher"), [(0.1, 0.5), (0.5, 0.97), (0.97, 0.995)])
def test_random_masks_nest(lower: float, higher: float, scope: str, linears) -> None:
    pruner = Random(scope=scope)
    pruner.attach(Prunable(linears), seed=0)
    pruner.update_masks(lower)
    wide = {name: mask.clone() for name, mask in pruner.masks.items()}
    pruner.update_masks(higher)
    assert not any(bool((mask & ~wide[name]).any()) for name, mask in pruner.masks.items())


def random_masks(linears: dict[str, nn.Linear], seed: int) -> dict[str, list]:
    fresh = {name: nn.Linear(part.in_features, part.out_features) for name, part in linears.items()}
    pruner = Random()
    pruner.attach(Prunable(fresh), seed=seed)
    pruner.update_masks(0.5)
    return copies(pruner)


def test_random_masks_are_fixed_by_the_seed_and_nothing_else(linears) -> None:
    assert random_masks(linears, seed=7) == random_masks(linears, seed=7)


def test_random_masks_of_two_seeds_differ(linears) -> None:
    assert random_masks(linears, seed=7) != random_masks(linears, seed=8)


def test_the_random_order_moves_to_the_weights_device_once(linears: dict[str, nn.Linear]) -> None:
    pruner = Random()
    pruner.attach(Prunable(linears), seed=0)
    for linear in linears.values():
        linear.to("meta")
    order = pruner.importance("query")
    assert order.device.type == "meta"
    assert pruner.importance("query") is order


def test_random_draws_nothing_from_the_global_generator(linears) -> None:
    torch.manual_seed(5)
    Random().attach(Prunable(linears), seed=0)
    assert torch.initial_seed() == 5
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)


# --- movement

both_scopes = pytest.mark.parametrize("scope", ["matrix", "global"])


@both_scopes
@every_sparsity
def test_equal_scores_keep_the_larger_weights(scope: str, sparsity: float, linears) -> None:
    plain = {name: nn.Linear(part.in_features, part.out_features) for name, part in linears.items()}
    with torch.no_grad():
        for name, part in plain.items():
            part.weight.copy_(linears[name].weight)
    movement, magnitude = Movement(scope=scope, score_learning_rate=0.01, score_init="zero"), Magnitude(scope=scope)
    movement.attach(Prunable(linears), seed=0)
    magnitude.attach(Prunable(plain), seed=0)
    movement.update_masks(sparsity)
    magnitude.update_masks(sparsity)
    assert copies(movement) == copies(magnitude)


def test_movement_keeps_the_highest_scores_not_the_largest(linears) -> None:
    pruner = Movement(score_learning_rate=0.01, score_init="zero")
    pruner.attach(Prunable(linears), seed=0)
    scores = pruner.scored("small").scores
    with torch.no_grad():
        scores.copy_(torch.linspace(-3, 1, 200).view(10, 20))
    pruner.update_masks(0.5)
    assert pruner.masks["small"].flatten().tolist() == [False] * 100 + [True] * 100


def test_a_weight_that_a_step_moves_away_from_zero_gains_score(linears) -> None:
    pruner = Movement(score_learning_rate=0.01, score_init="zero")
    pruner.attach(Prunable(linears), seed=0)
    weight = linears["query"].parametrizations.weight.original
    scores = pruner.scored("query").scores
    optimizer = torch.optim.SGD([{"params": [weight, scores], "lr": 1e-4}])
    before = weight.detach().abs()
    linears["query"](torch.randn(8, 30, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    optimizer.step()
    assert torch.equal(weight.detach().abs() > before, scores.detach() > 0)


def test_pruned_weights_return_when_their_scores_rise(linears) -> None:
    pruner = Movement(score_learning_rate=0.01, score_init="zero")
    pruner.attach(Prunable(linears), seed=0)
    pruner.update_masks(0.5)
    was_pruned = ~pruner.masks["query"].clone()
    with torch.no_grad():
        pruner.scored("query").scores[was_pruned] = 1.0
    pruner.update_masks(0.5)
    assert torch.equal(pruner.masks["query"], was_pruned)


@pytest.mark.parametrize("make", [EVERY["movement"], EVERY["soft_movement"]], ids=["movement", "soft_movement"])
def test_the_optimizer_trains_one_score_per_weight_at_the_score_learning_rate(make: Make, linears) -> None:
    pruner = make()
    pruner.attach(Prunable(linears), seed=0)
    assert [scores.shape for scores in pruner.score_parameters()] == [(20, 30), (40, 50), (10, 20)]
    assert pruner.score_learning_rate == 0.01
    assert pruner.auxiliary_parameters() == []


@pytest.mark.parametrize("rate", [0.0, -0.01])
def test_a_score_learning_rate_that_is_not_positive_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=rf"pruning\.score_learning_rate must be > 0, got {rate}"):
        Movement(score_learning_rate=rate, score_init="zero")


@pytest.mark.parametrize("make", [Magnitude, Random, SecondOrder], ids=lambda make: make.__name__)
def test_a_type_without_scores_trains_none(make: Make, linears) -> None:
    pruner = make()
    pruner.attach(Prunable(linears), seed=0)
    assert (pruner.score_parameters(), pruner.auxiliary_parameters(), pruner.regularizer()) == ([], [], None)


def test_a_type_without_scores_says_so(linears) -> None:
    pruner = Magnitude()
    pruner.attach(Prunable(linears), seed=0)
    with pytest.raises(TypeError, match="Magnitude keeps no scores"):
        pruner.scored("query")


@pytest.mark.parametrize(
    ("name", "learns"),
    [
        ("magnitude", False),
        ("random", False),
        ("second_order", False),
        ("first_order", True),
        ("platon", True),
        ("movement", True),
        ("soft_movement", True),
        ("static_scores", True),
    ],
)
def test_a_type_says_whether_its_importance_comes_from_training(name: str, learns: bool) -> None:
    assert EVERY[name]().learns_scores is learns


# --- first order


def gradient_of_masked_weight(linear: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """Differentiate with respect to weight * mask, taken as a variable of its own."""
    part = linear.parametrizations.weight
    masked = (part.original.detach() * part[0].mask).requires_grad_()
    nn.functional.linear(inputs, masked, linear.bias.detach()).square().sum().backward()
    return masked.grad


def inputs(seed: int) -> torch.Tensor:
    return torch.randn(4, 30, generator=torch.Generator().manual_seed(seed))


def backward(linear: nn.Linear, rows: torch.Tensor, factor: float = 1.0) -> None:
    (factor * linear(rows).square().sum()).backward()


def test_the_average_follows_its_formula_over_scaled_steps_and_micro_batches(linears) -> None:
    pruner = FirstOrder()
    pruner.attach(Prunable(linears), seed=0)
    linear = linears["query"]
    weight = linear.parametrizations.weight.original

    first = (pruner.weight("query") * gradient_of_masked_weight(linear, inputs(1))).abs()
    backward(linear, inputs(1), factor=1024.0)
    pruner.observe_gradients(scale=1024.0)
    torch.testing.assert_close(pruner.importance("query"), 0.1 * first)

    with torch.no_grad():
        weight += 0.1
    pruner.update_masks(0.5)
    both = sum(gradient_of_masked_weight(linear, inputs(seed)) for seed in (2, 3))
    second = (pruner.weight("query") * both).abs()
    backward(linear, inputs(2))
    backward(linear, inputs(3))
    pruner.observe_gradients(scale=None)
    torch.testing.assert_close(pruner.importance("query"), 0.9 * 0.1 * first + 0.1 * second, rtol=1e-4, atol=1e-6)


def test_pruned_weights_are_scored_so_that_they_can_return(linears) -> None:
    pruner = FirstOrder()
    pruner.attach(Prunable(linears), seed=0)
    pruner.update_masks(0.97)
    backward(linears["query"], inputs(1))
    pruner.observe_gradients(scale=None)
    assert bool((pruner.importance("query")[~pruner.masks["query"]] > 0).all())


def test_the_gradient_is_seen_once(linears) -> None:
    pruner = FirstOrder()
    pruner.attach(Prunable(linears), seed=0)
    backward(linears["query"], inputs(1))
    pruner.observe_gradients(scale=None)
    before = pruner.importance("query").clone()
    pruner.observe_gradients(scale=None)
    assert pruner.scored("query").scores.grad is None
    assert torch.equal(pruner.importance("query"), before)


def test_the_average_starts_at_0(linears) -> None:
    pruner = FirstOrder()
    pruner.attach(Prunable(linears), seed=0)
    assert all(pruner.importance(name).count_nonzero() == 0 for name in linears)


def test_no_optimizer_may_touch_the_scores_of_first_order(linears) -> None:
    pruner = FirstOrder()
    pruner.attach(Prunable(linears), seed=0)
    assert pruner.score_parameters() == []
    expected = [id(linear.parametrizations.weight[0].scores) for linear in linears.values()]
    assert [id(parameter) for parameter in pruner.auxiliary_parameters()] == expected


def test_first_order_keeps_the_highest_averages(linears) -> None:
    pruner = FirstOrder(scope="matrix")
    pruner.attach(Prunable(linears), seed=0)
    pruner.importance("small").copy_(torch.linspace(0, 1, 200).view(10, 20))
    pruner.update_masks(0.97)
    assert pruner.masks["small"].flatten().nonzero().squeeze(1).tolist() == list(range(194, 200))


def test_a_step_that_overflowed_under_a_loss_scaler_leaves_the_average_finite(linears) -> None:
    pruner = FirstOrder()
    pruner.attach(Prunable(linears), seed=0)
    pruner.scored("query").scores.grad = torch.full((20, 30), math.inf)
    pruner.observe_gradients(scale=65536.0)
    backward(linears["query"], inputs(1))
    pruner.observe_gradients(scale=32768.0)
    assert bool(pruner.importance("query").isfinite().all())


def test_scores_that_start_at_the_magnitude_prune_like_it_before_any_training(linears) -> None:
    movement, magnitude = Movement(score_learning_rate=0.01, score_init="magnitude"), Magnitude()
    masks = []
    for pruner in (movement, magnitude):
        copies = {name: deepcopy(linear) for name, linear in linears.items()}
        pruner.attach(Prunable(copies), seed=0)
        pruner.update_masks(0.4)
        masks.append(pruner.masks)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_matrix_of_zeros_starts_with_scores_of_zero(linears, scope) -> None:
    with torch.no_grad():
        linears["query"].weight.zero_()
    pruner = Movement(score_learning_rate=0.01, score_init="magnitude", scope=scope)
    pruner.attach(Prunable(linears), seed=0)
    assert not pruner.scored("query").scores.any()
    counts = pruner.update_masks(0.5)
    assert counts.n_pruned == counts.n_weights // 2


def test_magnitude_start_has_mean_one_in_every_matrix(linears) -> None:
    pruner = Movement(score_learning_rate=0.01, score_init="magnitude")
    pruner.attach(Prunable(linears), seed=0)
    means = [float(scores.detach().mean()) for scores in pruner.score_parameters()]
    assert means == pytest.approx([1.0] * len(means), abs=1e-5)


def test_a_gradient_that_is_no_number_stays_to_be_refused_without_a_loss_scaler(linears) -> None:
    from cap.base.errors import RunError

    for pruner in (FirstOrder(), Platon(window=1)):
        plain = {name: nn.Linear(part.in_features, part.out_features) for name, part in linears.items()}
        pruner.attach(Prunable(plain), seed=0)
        pruner.scored("query").scores.grad = torch.full((20, 30), math.nan)
        pruner.observe_gradients(scale=None)
        with pytest.raises(RunError, match="NaN"):
            pruner.update_masks(0.5)
