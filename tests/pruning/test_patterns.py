from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from cap.models.families import Prunable
from cap.pruning.first_order import FirstOrder
from cap.pruning.magnitude import Magnitude
from cap.pruning.movement import Movement
from cap.pruning.patterns import PATTERNS, Pattern, choose_by_pattern, follows_pattern, keep_best
from cap.pruning.random import Random
from cap.pruning.soft_movement import SoftMovement
from cap.pruning.weights import WeightPruner

Make = Callable[..., WeightPruner]
TYPES: dict[str, Make] = {
    "magnitude": Magnitude,
    "movement": partial(Movement, score_learning_rate=0.01, score_init="zero"),
    "first_order": partial(FirstOrder, scope="matrix"),
    "random": Random,
}
every_type = pytest.mark.parametrize("make", TYPES.values(), ids=TYPES)
every_pattern = pytest.mark.parametrize("name", PATTERNS)
every_scope = pytest.mark.parametrize("scope", ["matrix", "global"])
RISING = [0.0, 0.001, 0.07, 0.2, 0.333, 0.49, 0.5]


@pytest.fixture
def grouped() -> dict[str, nn.Linear]:
    """Make three matrices whose inputs are multiples of 8: 640, 960 and 80 weights."""
    torch.manual_seed(0)
    return {"query": nn.Linear(32, 20), "wide": nn.Linear(24, 40), "small": nn.Linear(8, 10)}


def attached(make: Make, linears: dict[str, nn.Linear], **options: str) -> WeightPruner:
    pruner = make(**options)
    pruner.attach(Prunable(linears), seed=3)
    return pruner


def kept_by_group(mask: Tensor, size: int) -> set[int]:
    return set(mask.reshape(-1, size).sum(dim=1).tolist())


def slow_masks(
    importance: dict[str, Tensor], weights: dict[str, Tensor], pattern: Pattern, n_groups: int
) -> dict[str, list[list[bool]]]:
    """Rank the groups of all given matrices together, one by one in plain Python."""
    masks = {name: [[True] * len(row) for row in scores.tolist()] for name, scores in importance.items()}
    groups = []
    for name, scores in importance.items():
        for row, values in enumerate(scores.tolist()):
            sizes = weights[name][row].abs().tolist()
            for start in range(0, len(values), pattern.size):
                places = range(start, start + pattern.size)
                ranked = sorted(places, key=lambda i, v=values, s=sizes: (-v[i], -s[i], i))
                goes = ranked[pattern.n_kept :]
                groups.append((sum(values[i] for i in goes), sum(sizes[i] for i in goes), name, row, goes))
    # Among equals the lower index is kept, so the last of them goes first.
    order = sorted(range(len(groups)), key=lambda g: (groups[g][0], groups[g][1], -g))
    for _, _, name, row, goes in (groups[g] for g in order[:n_groups]):
        for i in goes:
            masks[name][row][i] = False
    return masks


def small_numbers(linears: dict[str, nn.Linear], seed: int) -> dict[str, Tensor]:
    """Draw few different whole numbers, so that sums are exact and ties abound."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {name: linear.weight.shape for name, linear in linears.items()}
    return {name: torch.randint(-2, 3, shape, generator=draw).float() for name, shape in shapes.items()}


@every_type
@every_pattern
@every_scope
def test_every_group_is_in_the_pattern_at_the_final_sparsity(make, name, scope, grouped, randomise):
    pruner = attached(make, grouped, pattern=name, scope=scope)
    randomise(grouped)
    counts = pruner.update_masks(0.5)
    pattern = PATTERNS[name]
    assert [kept_by_group(mask, pattern.size) for mask in pruner.masks.values()] == [{pattern.n_kept}] * 3
    assert counts.sparsity == 0.5


@every_pattern
@pytest.mark.parametrize("sparsity", RISING)
@every_scope
def test_masks_are_those_of_a_slow_ranking_with_all_its_ties(name, sparsity, scope, grouped):
    pattern, importance, weights = PATTERNS[name], small_numbers(grouped, 1), small_numbers(grouped, 2)
    masks = choose_by_pattern(importance, weights, pattern=pattern, sparsity=sparsity, is_global=scope == "global")
    parts = [list(importance)] if scope == "global" else [[matrix] for matrix in importance]
    expected: dict[str, list[list[bool]]] = {}
    for part in parts:
        n_weights = sum(importance[matrix].numel() for matrix in part)
        n_groups = round(sparsity * n_weights / (pattern.size - pattern.n_kept))
        of_part = {matrix: importance[matrix] for matrix in part}
        expected |= slow_masks(of_part, weights, pattern, n_groups)
    assert {matrix: mask.tolist() for matrix, mask in masks.items()} == expected


@every_type
@every_pattern
@pytest.mark.parametrize("sparsity", [0.0, 0.07, 0.49])
def test_target_is_met_within_one_group_of_every_matrix_on_the_way(make, name, sparsity, grouped, randomise):
    pruner = attached(make, grouped, pattern=name)
    randomise(grouped)
    pruner.update_masks(sparsity)
    n_off = [abs(int((~mask).sum()) - sparsity * mask.numel()) for mask in pruner.masks.values()]
    assert max(n_off) <= PATTERNS[name].size - PATTERNS[name].n_kept


@every_scope
def test_masks_nest_as_sparsity_rises_over_weights_that_stay(scope, grouped):
    pruner = attached(Magnitude, grouped, pattern="2:4", scope=scope)
    seen = []
    for sparsity in RISING:
        pruner.update_masks(sparsity)
        seen.append(torch.cat([mask.flatten() for mask in pruner.masks.values()]))
    assert not any(bool((later & ~earlier).any()) for earlier, later in pairwise(seen))


@every_type
def test_groups_are_dense_or_in_the_pattern_and_nothing_between(make, grouped, randomise):
    pruner = attached(make, grouped, pattern="2:4")
    randomise(grouped)
    pruner.update_masks(0.2)
    assert [kept_by_group(mask, 4) for mask in pruner.masks.values()] == [{2, 4}] * 3


def test_group_that_costs_least_goes_first(grouped):
    linear = nn.Linear(8, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[9.0, 9.0, 1.0, 2.0, 5.0, 4.0, 0.5, 2.0]]))
    pruner = attached(Magnitude, {"one": linear}, pattern="2:4")
    pruner.update_masks(0.25)
    assert pruner.masks["one"].tolist() == [[True] * 6 + [False] * 2]


def test_equal_importance_keeps_the_larger_weight_then_the_lower_index():
    weights = torch.tensor([[1.0, -3.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0], [5.0, 0.0, 0.0, 4.0]])
    importance = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    expected = [[False, True, False, True], [True, True, False, False], [True, True, False, False]]
    mask, cost = keep_best(importance, weights, 2)
    assert mask.tolist() == expected
    assert cost.tolist() == [0.0, 0.0, 0.0]


def test_among_equal_groups_the_smaller_weights_go_then_the_higher_index():
    weights = {"w": torch.tensor([[1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0]])}
    masks = choose_by_pattern(
        {"w": torch.zeros(1, 12)}, weights, pattern=PATTERNS["2:4"], sparsity=1 / 6, is_global=False
    )
    assert masks["w"].tolist() == [[True] * 10 + [False] * 2]


def test_global_scope_takes_the_cheap_matrix_first(grouped):
    with torch.no_grad():
        grouped["wide"].weight *= 100
    pruner = attached(Magnitude, grouped, pattern="2:4", scope="global")
    pruner.update_masks(360 / 1680)
    n_pruned = {name: int((~mask).sum()) for name, mask in pruner.masks.items()}
    assert n_pruned == {"query": 320, "wide": 0, "small": 40}


@pytest.mark.parametrize("size", [4, 8])
def test_cost_of_a_group_is_the_importance_of_what_goes(size):
    importance = torch.randn(50, size, generator=torch.Generator().manual_seed(0))
    mask, cost = keep_best(importance, importance, size // 2)
    assert importance[mask].view(50, -1).amin(dim=1).ge(importance[~mask].view(50, -1).amax(dim=1)).all()
    torch.testing.assert_close(cost, importance[~mask].view(50, -1).sum(dim=1))


@every_type
def test_folded_model_follows_the_pattern(make, grouped, randomise):
    pruner = attached(make, grouped, pattern="4:8")
    randomise(grouped)
    pruner.update_masks(0.5)
    pruner.fold()
    assert all(follows_pattern(linear.weight, 4, 8) for linear in grouped.values())


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ([[0.0, 1.0, 2.0, 0.0]], True),
        ([[0.0, 1.0, 0.0, 0.0]], True),
        ([[0.0, 1.0, 2.0, 3.0]], False),
        ([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 1.0, -1.0]], False),
        ([[0.0, 1.0, 1.0, 0.0, 0.0, 1.0]], False),
        ([[0.0], [0.0], [1.0], [1.0]], False),
    ],
    ids=["two of four", "fewer", "three of four", "second row", "no whole groups", "along the outputs"],
)
def test_dense_weight_follows_a_pattern_where_every_group_along_the_inputs_does(weight, expected):
    assert follows_pattern(torch.tensor(weight), 2, 4) is expected


def test_two_of_four_is_four_of_eight_but_not_the_other_way_round():
    weight = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    assert follows_pattern(weight, 4, 8)
    assert not follows_pattern(weight, 2, 4)


def test_lower_target_gives_every_group_back(grouped):
    pruner = attached(Magnitude, grouped, pattern="2:4")
    pruner.update_masks(0.5)
    pruner.update_masks(0.0)
    assert all(bool(mask.all()) for mask in pruner.masks.values())


@every_pattern
def test_a_pattern_is_written_as_it_is_given(name):
    assert str(PATTERNS[name]) == name


@every_type
def test_unknown_pattern_is_refused_with_those_there_are(make):
    for name in ("1:4", "2-4", "4:2", ""):
        with pytest.raises(ValueError, match=r"pruning.pattern must be one of 2:4, 4:8, or null for none, got"):
            make(pattern=name)


@every_type
def test_matrices_without_whole_groups_are_named(make):
    linears = {"good": nn.Linear(8, 3), "odd": nn.Linear(30, 4), "odder": nn.Linear(5, 4)}
    expected = r"pruning.pattern=2:4 needs .* multiple of 4, got odd \(30\), odder \(5\); set pruning.pattern=null"
    with pytest.raises(ValueError, match=expected):
        attached(make, linears, pattern="2:4")


def test_matrices_without_whole_groups_are_refused_before_a_mask_is_put_on():
    odd = nn.Linear(30, 4)
    with pytest.raises(ValueError, match="multiple of 4"):
        Magnitude(pattern="2:4").check(Prunable({"odd": odd}))
    assert not hasattr(odd, "parametrizations")


def test_target_beyond_the_pattern_is_refused(grouped):
    pruner = attached(Magnitude, grouped, pattern="2:4")
    with pytest.raises(ValueError, match=r"as it was made ends at a sparsity of 0.5"):
        pruner.update_masks(0.6)


@pytest.mark.parametrize("sparsity", [0.25, 0.5])
@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_importance_that_is_no_number_is_refused_at_every_sparsity(grouped, scope, sparsity):
    from cap.base.errors import RunError

    pruner = attached(Magnitude, grouped, pattern="2:4", scope=scope)
    name = next(iter(pruner.masks))
    pruner.weight(name)[0, 1] = float("nan")
    with pytest.raises(RunError, match=r"importance must be a number for every weight"):
        pruner.update_masks(sparsity)


def test_soft_movement_takes_no_pattern():
    with pytest.raises(TypeError, match="pattern"):
        SoftMovement(
            score_learning_rate=0.01,
            score_init="zero",
            threshold="target",
            regularizer_weight=1.0,
            final_sparsity=0.5,
            pattern="2:4",
        )
