from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from cap.base.errors import RunError
from cap.models.families import prunable, prunable_linears
from cap.pruning.magnitude import Magnitude
from cap.pruning.masks import (
    FixedMask,
    ScoredMask,
    count_matrix_zeros,
    count_zeros,
    fold,
    keep_highest,
    n_floor,
    n_to_prune,
    sparsity_fractions,
)
from tests.models.tiny_models import FAMILY_NAMES, HIDDEN, INTERMEDIATE, LAYERS, in_layers, n_prunable, tiny_classifier

both_masks = pytest.mark.parametrize("mask_type", [FixedMask, ScoredMask])
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
every_family = pytest.mark.parametrize("family", FAMILY_NAMES)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def few_values(n_values: int, seed: int) -> Tensor:
    values = torch.randint(0, n_values, (6, 10), generator=torch.Generator().manual_seed(seed))
    return (values - n_values // 2).float()


def kept_by_sorting(importance: Tensor, n_pruned: int, tie_breaker: Tensor) -> list[int]:
    """Sort all entries by importance, then by the tie breaker, then by index, and keep the first ones."""
    ranks = list(zip(importance.flatten().tolist(), tie_breaker.flatten().tolist(), strict=True))
    order = sorted(range(len(ranks)), key=lambda index: (-ranks[index][0], -ranks[index][1], index))
    return sorted(order[: len(order) - n_pruned])


def kept(mask: Tensor) -> list[int]:
    return mask.flatten().nonzero().squeeze(1).tolist()


def masked_linear(mask_type: type[FixedMask] | type[ScoredMask], mask: Tensor | None = None) -> nn.Linear:
    torch.manual_seed(0)
    linear = nn.Linear(5, 4)
    parametrize.register_parametrization(linear, "weight", mask_type(linear.weight))
    linear.parametrizations.weight[0].mask.copy_(random(4, 5, seed=1) > 0 if mask is None else mask)
    return linear


# --- keep_highest


@dtypes
def test_the_kept_entries_are_those_of_a_sort_whatever_their_number(dtype: torch.dtype) -> None:
    importance, ties = few_values(5, seed=0).to(dtype), few_values(4, seed=1).to(dtype)
    for n_pruned in range(61):
        mask = keep_highest(importance, n_pruned, tie_breaker=lambda: ties)
        assert kept(mask) == kept_by_sorting(importance, n_pruned, ties), n_pruned


@pytest.mark.parametrize("n_pruned", [0, 1, 30, 59, 60])
def test_the_kept_entries_are_those_of_a_sort_without_ties(n_pruned: int) -> None:
    importance = random(60)
    mask = keep_highest(importance, n_pruned, tie_breaker=lambda: importance)
    assert kept(mask) == kept_by_sorting(importance, n_pruned, importance)


@pytest.mark.parametrize("n_pruned", [0, 1, 7, 59, 60])
def test_all_equal_keeps_the_lowest_indices(n_pruned: int) -> None:
    mask = keep_highest(torch.zeros(6, 10), n_pruned, tie_breaker=lambda: torch.ones(6, 10))
    assert kept(mask) == list(range(60 - n_pruned))


@pytest.mark.parametrize("n_pruned", [50, 95])
def test_importance_that_is_no_number_is_refused_wherever_it_is(n_pruned: int) -> None:
    importance = random(10, 10)
    importance[3, 4] = torch.nan
    with pytest.raises(RunError, match=r"got 1 of 100 that are none \(NaN\)"):
        keep_highest(importance, n_pruned, tie_breaker=lambda: importance)


def test_zero_and_minus_zero_are_equal() -> None:
    mask = keep_highest(torch.tensor([-0.0, 0.0, -0.0]), 2, tie_breaker=lambda: torch.tensor([1.0, 2.0, 3.0]))
    assert mask.tolist() == [False, False, True]


def test_infinite_importance_is_kept_first() -> None:
    mask = keep_highest(torch.tensor([1.0, math.inf, -math.inf, math.inf]), 2, tie_breaker=lambda: torch.zeros(4))
    assert mask.tolist() == [False, True, False, True]


@dtypes
@pytest.mark.parametrize("n_pruned", [0, 1, 1234, 5000])
def test_the_count_is_exact_where_rounding_makes_ties(n_pruned: int, dtype: torch.dtype) -> None:
    importance = random(50, 100).to(dtype)
    mask = keep_highest(importance, n_pruned, tie_breaker=lambda: torch.zeros(50, 100))
    assert int((~mask).sum()) == n_pruned


@dtypes
def test_masks_are_boolean_and_have_the_shape_of_the_importance(dtype: torch.dtype) -> None:
    mask = keep_highest(random(6, 10).to(dtype), 7, tie_breaker=lambda: torch.zeros(6, 10))
    assert (mask.dtype, mask.shape) == (torch.bool, (6, 10))


@pytest.mark.parametrize("n_pruned", [0, 2, 4], ids=["none", "between_ties", "all"])
def test_the_tie_breaker_is_not_asked_where_no_tie_is_cut(n_pruned: int) -> None:
    def refuse() -> Tensor:
        raise AssertionError("no tie to break")

    mask = keep_highest(torch.tensor([1.0, 2.0, 1.0, 2.0]), n_pruned, tie_breaker=refuse)
    assert int((~mask).sum()) == n_pruned


def test_the_importance_is_not_changed() -> None:
    importance = random(6, 10)
    keep_highest(importance, 30, tie_breaker=lambda: importance)
    assert torch.equal(importance, random(6, 10))


def test_importance_with_a_gradient_is_taken() -> None:
    mask = keep_highest(nn.Parameter(random(6, 10)), 30, tie_breaker=lambda: random(6, 10))
    assert not mask.requires_grad


@pytest.mark.parametrize("n_pruned", [-1, 61])
def test_a_count_out_of_range_is_refused(n_pruned: int) -> None:
    with pytest.raises(ValueError, match=rf"n_pruned must lie in \[0, 60\], got {n_pruned}"):
        keep_highest(random(60), n_pruned, tie_breaker=lambda: random(60))


@pytest.mark.parametrize(("sparsity", "n", "expected"), [(0.0, 7, 0), (0.5, 8, 4), (0.97, 200, 194), (0.9, 14, 13)])
def test_a_sparsity_is_rounded_to_a_count(sparsity: float, n: int, expected: int) -> None:
    assert n_to_prune(sparsity, n) == expected


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (200, 1), (201, 2), (600, 3), (768 * 768, 2950)])
def test_the_floor_is_rounded_up(n: int, expected: int) -> None:
    assert n_floor(0.005, n) == expected


# --- gradients


def gradient_of_masked_weight(linear: nn.Linear, inputs: Tensor) -> Tensor:
    """Differentiate the same loss with respect to weight * mask, taken as a variable of its own."""
    part = linear.parametrizations.weight
    masked = (part.original.detach() * part[0].mask).requires_grad_()
    functional.linear(inputs, masked, linear.bias.detach()).tanh().square().sum().backward()
    return masked.grad


def backward(linear: nn.Linear, inputs: Tensor) -> None:
    linear(inputs).tanh().square().sum().backward()


@both_masks
def test_the_forward_pass_multiplies_with_the_mask(mask_type: type) -> None:
    linear, inputs = masked_linear(mask_type), random(3, 5, seed=2)
    part = linear.parametrizations.weight
    by_hand = torch.stack(
        [
            torch.stack([sum(x[j] * w[j] for j in range(5) if m[j]) + b for w, m, b in rows])
            for x in inputs
            for rows in [list(zip(part.original, part[0].mask, linear.bias, strict=True))]
        ]
    )
    torch.testing.assert_close(linear(inputs), by_hand)


@both_masks
def test_the_gradient_of_the_weights_is_masked(mask_type: type) -> None:
    linear, inputs = masked_linear(mask_type), random(3, 5, seed=2)
    backward(linear, inputs)
    part = linear.parametrizations.weight
    torch.testing.assert_close(part.original.grad, part[0].mask * gradient_of_masked_weight(linear, inputs))


def test_the_gradient_of_the_scores_is_that_of_the_masked_weight_times_the_weight() -> None:
    linear, inputs = masked_linear(ScoredMask), random(3, 5, seed=2)
    backward(linear, inputs)
    part = linear.parametrizations.weight
    expected = gradient_of_masked_weight(linear, inputs) * part.original.detach()
    torch.testing.assert_close(part[0].scores.grad, expected)


def test_pruned_weights_have_a_gradient_of_their_scores() -> None:
    linear = masked_linear(ScoredMask)
    backward(linear, random(3, 5, seed=2))
    module = linear.parametrizations.weight[0]
    assert bool((module.scores.grad[~module.mask] != 0).all())


def test_scores_learn_where_the_weights_are_frozen() -> None:
    linear = masked_linear(ScoredMask)
    linear.parametrizations.weight.original.requires_grad_(False)
    backward(linear, random(3, 5, seed=2))
    assert int(linear.parametrizations.weight[0].scores.grad.count_nonzero()) == 20


@both_masks
def test_all_weights_are_kept_at_first(mask_type: type) -> None:
    assert mask_type(random(4, 5)).mask.tolist() == [[True] * 5] * 4


def test_scores_start_at_0() -> None:
    assert torch.equal(ScoredMask(random(4, 5)).scores, torch.zeros(4, 5))


# --- fold


@both_masks
def test_folded_weights_equal_the_masked_ones(mask_type: type) -> None:
    linear = masked_linear(mask_type)
    before = linear.weight.detach().clone()
    fold(linear)
    assert torch.equal(linear.weight, before)


@both_masks
def test_kept_weights_keep_their_bits(mask_type: type) -> None:
    linear = masked_linear(mask_type)
    part = linear.parametrizations.weight
    mask, weight = part[0].mask, part.original.detach().clone()
    fold(linear)
    assert torch.equal(linear.weight[mask], weight[mask])


@both_masks
def test_pruned_weights_are_zero_without_a_sign(mask_type: type) -> None:
    linear = masked_linear(mask_type, torch.zeros(4, 5, dtype=torch.bool))
    fold(linear)
    assert linear.weight.count_nonzero() == 0
    assert not linear.weight.signbit().any()


@both_masks
def test_a_folded_module_is_a_stock_one(mask_type: type) -> None:
    linear = masked_linear(mask_type)
    fold(linear)
    assert type(linear) is nn.Linear
    assert set(linear.state_dict()) == {"weight", "bias"}


@both_masks
def test_a_folded_weight_is_a_trainable_parameter(mask_type: type) -> None:
    linear = masked_linear(mask_type)
    fold(linear)
    assert {name for name, p in linear.named_parameters() if p.requires_grad} == {"weight", "bias"}


def test_folding_twice_changes_nothing() -> None:
    linear = masked_linear(FixedMask)
    fold(linear)
    before = linear.weight.detach().clone()
    fold(linear)
    assert torch.equal(linear.weight, before)


# --- fractions


@both_masks
def test_zeros_are_counted_as_the_forward_pass_sees_them(mask_type: type) -> None:
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1] = False
    assert count_zeros({"dense": masked_linear(mask_type, mask)}) == {"dense": (5, 20)}


@every_family
def test_the_zeros_of_every_matrix_are_counted_apart(family: str) -> None:
    model = tiny_classifier(family)
    pruner = Magnitude()
    pruner.attach(prunable(model), seed=0)
    pruner.update_masks(0.25)
    pruner.fold()
    counts = count_matrix_zeros(model)
    assert list(counts) == list(prunable(model).matrices)
    assert sum(n for _, n in counts.values()) == n_prunable(family)
    assert all(n_zero == n // 4 for n_zero, n in counts.values())


@every_family
def test_the_three_fractions_are_what_counting_gives(family: str) -> None:
    model = tiny_classifier(family)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for linear in prunable_linears(model).values():
            linear.weight *= torch.rand(linear.weight.shape, generator=generator) > 0.7
    encoder = {name: weight for name, weight in model.named_parameters() if in_layers(name)}
    n_zero = sum(value == 0.0 for w in encoder.values() for value in w.flatten().tolist())
    assert sparsity_fractions(model) == {
        "prunable": n_zero / sum(weight.numel() for weight in encoder.values() if weight.ndim == 2),
        "encoder": n_zero / sum(weight.numel() for weight in encoder.values()),
        "model": n_zero / sum(weight.numel() for weight in model.parameters()),
    }


def test_a_fully_pruned_encoder_still_has_its_biases_and_layer_norms() -> None:
    model = tiny_classifier()
    with torch.no_grad():
        for linear in prunable_linears(model).values():
            linear.weight.zero_()
    n_matrices = n_prunable()
    n_vectors = LAYERS * (4 * HIDDEN + INTERMEDIATE + HIDDEN + 2 * 2 * HIDDEN)
    assert sparsity_fractions(model)["encoder"] == n_matrices / (n_matrices + n_vectors)
    assert sparsity_fractions(model)["prunable"] == 1.0


def test_zeros_outside_the_prunable_weights_do_not_count() -> None:
    model = tiny_classifier()
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.zero_()
        model.bert.encoder.layer[0].output.dense.bias.zero_()
    assert sparsity_fractions(model) == {"prunable": 0.0, "encoder": 0.0, "model": 0.0}
