from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cap.models.families import Prunable
from cap.pruning.soft_movement import SoftMovement

FLOORS = {"query": 3, "wide": 10, "small": 1}  # 0.5 % of 600, 2000 and 200


def soft(**options: Any) -> SoftMovement:
    defaults: dict[str, Any] = {
        "score_learning_rate": 0.01,
        "threshold": "target",
        "regularizer_weight": 190.0,
        "final_sparsity": 0.97,
        "score_init": "zero",
    }
    return SoftMovement(**defaults | options)


def attached(linears: dict[str, nn.Linear], seed: int = 1, **options: Any) -> SoftMovement:
    """Attach a pruner and give it scores that are all different."""
    pruner = soft(**options)
    pruner.attach(Prunable(linears), seed=0)
    order = torch.randperm(2800, generator=torch.Generator().manual_seed(seed)) / 400 - 3.5
    with torch.no_grad():
        for scores, values in zip(pruner.score_parameters(), order.split([600, 2000, 200]), strict=True):
            scores.copy_(values.view_as(scores))
    return pruner


def shift(pruner: SoftMovement, name: str, by: float) -> None:
    with torch.no_grad():
        pruner.scored(name).scores.add_(by)


def n_kept(pruner: SoftMovement) -> dict[str, int]:
    return {name: int(mask.sum()) for name, mask in pruner.masks.items()}


def ranked(pruner: SoftMovement) -> list[tuple[str, int, float]]:
    """List every weight of every matrix, highest score first."""
    weights = [
        (name, index, value)
        for name in pruner.masks
        for index, value in enumerate(pruner.scored(name).scores.flatten().tolist())
    ]
    return sorted(weights, key=lambda weight: -weight[2])


def kept_by_sorting(pruner: SoftMovement, n: int) -> set[tuple[str, int]]:
    """Keep the best of each matrix up to its floor, then the best of what is left."""
    protected = []
    for name, floor in FLOORS.items():
        protected += [weight for weight in ranked(pruner) if weight[0] == name][:floor]
    rest = [weight for weight in ranked(pruner) if weight not in protected]
    return {(name, index) for name, index, _ in [*protected, *rest[: n - len(protected)]]}


def kept(pruner: SoftMovement) -> set[tuple[str, int]]:
    return {
        (name, index) for name, mask in pruner.masks.items() for index in mask.flatten().nonzero().view(-1).tolist()
    }


# --- the threshold that meets the target


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.97])
def test_one_threshold_holds_for_all_matrices(sparsity: float, linears) -> None:
    pruner = attached(linears)
    pruner.update_masks(sparsity)
    scores = torch.cat([values.detach().flatten() for values in pruner.score_parameters()])
    mask = torch.cat([mask.flatten() for mask in pruner.masks.values()])
    assert scores[mask].min() > scores[~mask].max()


@pytest.mark.parametrize("by", [0.0, -1.0, -100.0], ids=["mixed", "lower", "far_below"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 0.97])
def test_the_masks_are_those_of_a_sort_with_a_floor(sparsity: float, by: float, linears) -> None:
    pruner = attached(linears)
    shift(pruner, "query", by)
    pruner.update_masks(sparsity)
    assert kept(pruner) == kept_by_sorting(pruner, 2800 - round(sparsity * 2800))


@pytest.mark.parametrize("name", FLOORS)
def test_a_matrix_far_below_the_others_keeps_its_best_half_percent(name: str, linears) -> None:
    pruner = attached(linears)
    shift(pruner, name, -100.0)
    pruner.update_masks(0.97)
    best = pruner.scored(name).scores.flatten().topk(FLOORS[name]).indices.sort().values
    assert torch.equal(pruner.masks[name].flatten().nonzero().squeeze(1), best)


@pytest.mark.parametrize("name", FLOORS)
def test_the_floor_does_not_cost_the_target(name: str, linears) -> None:
    pruner = attached(linears)
    shift(pruner, name, -100.0)
    assert pruner.update_masks(0.97).n_pruned == 2716


def test_matrices_find_their_own_sparsity(linears) -> None:
    pruner = attached(linears)
    shift(pruner, "small", 100.0)
    pruner.update_masks(0.9)
    assert n_kept(pruner)["small"] == 200


def test_at_the_highest_sparsity_every_matrix_is_at_its_floor(linears) -> None:
    pruner = attached(linears, final_sparsity=0.995)
    pruner.update_masks(0.995)
    assert n_kept(pruner) == FLOORS


def test_equal_scores_with_a_floor_hit_the_target(linears) -> None:
    with torch.no_grad():
        linears["small"].weight.fill_(0.0)
    pruner = soft()
    pruner.attach(Prunable(linears), seed=0)
    assert pruner.update_masks(0.97).n_pruned == 2716
    assert n_kept(pruner)["small"] == FLOORS["small"]


def test_more_than_the_floor_allows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keeps at least 0\.5% .* at most 0\.995, got 0\.996; use pruning=movement"):
        soft(final_sparsity=0.996)


def four_small_matrices() -> dict[str, nn.Linear]:
    return {f"matrix{number}": nn.Linear(10, 10) for number in range(4)}


def test_a_floor_that_rounding_makes_too_high_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reaches sparsity 0\.9900 at most, got 0\.995; lower sparsity"):
        soft(final_sparsity=0.995).attach(Prunable(four_small_matrices()), seed=0)


def test_what_the_rounded_floor_just_allows_is_reached() -> None:
    pruner = soft(final_sparsity=0.99)
    pruner.attach(Prunable(four_small_matrices()), seed=0)
    assert pruner.update_masks(0.99).n_pruned == 396


def test_a_negative_regularizer_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"pruning\.regularizer_weight must be >= 0, got -1\.0"):
        soft(regularizer_weight=-1.0)


# --- the published threshold


@pytest.mark.parametrize(("share", "threshold"), [(0.25, 0.025), (0.5, 0.05), (1.0, 0.1)])
def test_the_published_mask_is_sigmoid_above_the_threshold(share: float, threshold: float, linears) -> None:
    pruner = attached(linears, threshold="published")
    pruner.update_masks(share * 0.97)
    expected = {name: pruner.scored(name).scores.sigmoid() > threshold for name in linears}
    assert all(torch.equal(mask, expected[name]) for name, mask in pruner.masks.items())


def test_the_published_threshold_prunes_some_and_keeps_some(linears) -> None:
    pruner = attached(linears, threshold="published")
    assert 0 < pruner.update_masks(0.97).n_pruned < 2800


def test_the_published_threshold_starts_at_0(linears) -> None:
    pruner = attached(linears, threshold="published")
    assert pruner.update_masks(0.0).n_pruned == 0


def test_equal_scores_of_0_are_all_above_the_published_threshold(linears) -> None:
    pruner = soft(threshold="published")
    pruner.attach(Prunable(linears), seed=0)
    assert pruner.update_masks(0.97).n_pruned == 0


@pytest.mark.parametrize("name", FLOORS)
def test_the_published_threshold_keeps_half_a_percent_of_each_matrix(name: str, linears) -> None:
    pruner = attached(linears, threshold="published")
    shift(pruner, name, -100.0)
    pruner.update_masks(0.97)
    best = pruner.scored(name).scores.flatten().topk(FLOORS[name]).indices.sort().values
    assert torch.equal(pruner.masks[name].flatten().nonzero().squeeze(1), best)


# --- the regularizer


def mean_of_means(pruner: SoftMovement) -> float:
    means = []
    for scores in pruner.score_parameters():
        values = [1 / (1 + math.exp(-value)) for value in scores.flatten().tolist()]
        means.append(sum(values) / len(values))
    return sum(means) / len(means)


@pytest.mark.parametrize("threshold", ["target", "published"])
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_the_regularizer_is_the_mean_of_means_times_its_weight_so_far(share: float, threshold: str, linears) -> None:
    pruner = attached(linears, threshold=threshold)
    pruner.update_masks(share * 0.97)
    assert pruner.regularizer().item() == pytest.approx(190 * share * mean_of_means(pruner), rel=1e-5)


def test_scores_of_0_cost_half_the_weight(linears) -> None:
    pruner = soft(regularizer_weight=8.0)
    pruner.attach(Prunable(linears), seed=0)
    pruner.update_masks(0.97)
    assert pruner.regularizer().item() == pytest.approx(4.0)


def test_the_gradient_of_the_regularizer_is_that_of_the_formula(linears) -> None:
    pruner = attached(linears)
    pruner.update_masks(0.5 * 0.97)
    pruner.regularizer().backward()

    def expected(scores: Tensor) -> Tensor:
        sigmoid = 1 / (1 + torch.exp(-scores.detach()))
        return 190 * 0.5 / 3 / scores.numel() * sigmoid * (1 - sigmoid)

    pairs = [(scores.grad, expected(scores)) for scores in pruner.score_parameters()]
    torch.testing.assert_close([gradient for gradient, _ in pairs], [formula for _, formula in pairs])


def test_there_is_no_regularizer_before_the_first_move(linears) -> None:
    assert attached(linears).regularizer() is None


def test_there_is_no_regularizer_at_sparsity_0(linears) -> None:
    pruner = attached(linears, final_sparsity=0.0)
    pruner.update_masks(0.0)
    assert pruner.regularizer() is None


def test_there_is_no_regularizer_with_weight_0(linears) -> None:
    pruner = attached(linears, regularizer_weight=0.0)
    pruner.update_masks(0.97)
    assert pruner.regularizer() is None


def test_published_threshold_is_refused_for_scores_that_do_not_start_at_zero() -> None:
    with pytest.raises(ValueError, match="score_init must be zero"):
        soft(threshold="published", score_init="magnitude")
