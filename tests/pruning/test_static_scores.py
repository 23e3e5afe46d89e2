"""Scores that learn on weights that do not, with a budget for each type of matrix."""

from __future__ import annotations

import math
import random
from collections import defaultdict

import pytest
import torch

import cap
from cap.models.families import Prunable, prunable
from cap.pruning.parameters import kept_parameters
from cap.pruning.static_scores import StaticScores, split_budget
from tests.models.tiny_models import FAMILY_NAMES, in_layers, tiny_batch, tiny_classifier


def attached(family: str = "bert", *, shifts: tuple[float, ...] = (-2.0, 1.0), **options) -> StaticScores:
    """Attach a pruner and draw scores around another mean in each layer."""
    pruner = StaticScores(**{"final_sparsity": 0.9} | options)
    pruner.attach(prunable(tiny_classifier(family)), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, matrix in pruner._matrices.items():
            scores = matrix.of(pruner.scored(matrix.linear).scores)
            scores.copy_(torch.randn(scores.shape, generator=generator) + shifts["1." in name])
    return pruner


def by_matrix(pruner: StaticScores, of) -> dict[str, torch.Tensor]:
    return {name: matrix.of(of(matrix.linear)).detach() for name, matrix in pruner._matrices.items()}


def by_type(pruner: StaticScores) -> dict[str, list[str]]:
    names = defaultdict(list)
    for name, matrix in pruner._matrices.items():
        names[matrix.kind].append(name)
    return names


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.97])
@pytest.mark.parametrize("family", ["bert", "modernbert", "gte"])
def test_every_type_of_matrix_meets_the_target_to_the_weight(family: str, sparsity: float) -> None:
    pruner = attached(family, final_sparsity=sparsity)
    pruner.update_masks(sparsity)
    masks = by_matrix(pruner, pruner.masks.__getitem__)
    n = {kind: sum(masks[name].numel() for name in names) for kind, names in by_type(pruner).items()}
    pruned = {kind: sum(int((~masks[name]).sum()) for name in names) for kind, names in by_type(pruner).items()}
    assert pruned == {kind: round(sparsity * n[kind]) for kind in n}
    assert len(n) == (7 if family in ("modernbert", "gte") else 6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_densities_within_a_type_are_those_of_the_published_formula(temperature: float) -> None:
    pruner = attached(budget_temperature=temperature)
    pruner.update_masks(0.9)
    masks, scores = (by_matrix(pruner, of) for of in (pruner.masks.__getitem__, pruner.importance))
    for names in by_type(pruner).values():
        mean = {
            name: math.fsum(1 / (1 + math.exp(-s / temperature)) for s in scores[name].double().flatten().tolist())
            / scores[name].numel()
            for name in names
        }
        density = {name: 0.1 * len(names) * mean[name] / sum(mean.values()) for name in names}
        found = {name: float(masks[name].float().mean()) for name in names}
        assert found == pytest.approx(density, abs=1 / scores[names[0]].numel())


def test_every_matrix_keeps_its_own_highest_scores() -> None:
    pruner = attached()
    pruner.update_masks(0.9)
    masks, scores = (by_matrix(pruner, of) for of in (pruner.masks.__getitem__, pruner.importance))
    assert all(scores[name][mask].min() > scores[name][~mask].max() for name, mask in masks.items())


def test_matrix_of_high_scores_is_never_asked_for_more_than_it_has() -> None:
    pruner = attached(shifts=(-9.0, 9.0))
    pruner.update_masks(0.4)
    masks = by_matrix(pruner, pruner.masks.__getitem__)
    density = {name: float(mask.float().mean()) for name, mask in masks.items()}
    assert all(density[name] == pytest.approx(1.0 if "1." in name else 0.2, abs=1e-3) for name in masks)


def test_a_budget_is_split_in_proportion_and_rounded_to_the_largest_remainders() -> None:
    assert split_budget(10, [100, 100, 100], [0.2, 0.4, 0.2]) == [3, 5, 2]
    assert split_budget(90, [50, 50, 50], [0.1, 0.9, 0.1]) == [20, 50, 20]
    assert split_budget(0, [5, 5], [0.5, 0.5]) == [0, 0]
    assert split_budget(10, [5, 5], [0.5, 1e-30]) == [5, 5]
    assert split_budget(7, [5, 5], [0.0, 0.0]) == [4, 3]


def test_any_budget_is_spent_to_the_weight_and_within_every_matrix() -> None:
    draw = random.Random(0)
    for _ in range(500):
        sizes = [draw.randrange(1, 400) for _ in range(draw.randrange(1, 8))]
        shares = [draw.choice([draw.random(), 10 ** draw.uniform(-40, 0)]) for _ in sizes]
        n_kept = draw.randrange(sum(sizes) + 1)
        kept = split_budget(n_kept, sizes, shares)
        assert sum(kept) == n_kept
        assert all(0 <= n <= size for n, size in zip(kept, sizes, strict=True))


def test_masks_of_equal_scores_are_those_of_magnitude() -> None:
    found = []
    for pruner in (StaticScores(final_sparsity=0.5), cap.Magnitude()):
        cap.attach(tiny_classifier(), pruner)
        pruner.update_masks(0.5)
        found.append(pruner.masks)
    assert all(torch.equal(mask, found[1][name]) for name, mask in found[0].items())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_of_the_encoder_scores_alone_are_trained(family: str) -> None:
    model = tiny_classifier(family)
    pruner = cap.attach(model, StaticScores(final_sparsity=0.5))
    scores = {id(p) for p in pruner.score_parameters()}
    trained = {name for name, p in model.named_parameters() if p.requires_grad and id(p) not in scores}
    assert trained == set(kept_parameters(model, cap.Movement(), ["embeddings", "pooler", "head"]))
    assert not [name for name in trained if in_layers(name) or "final_norm" in name]
    pruner.update_masks(0.5)
    model(**tiny_batch()).logits.square().sum().backward()
    assert all(bool(p.grad.any()) for p in pruner.score_parameters())


def test_parts_that_are_frozen_beside_come_with_those_of_the_type() -> None:
    model = tiny_classifier()
    pruner = cap.attach(model, StaticScores(final_sparsity=0.5))
    others = {name for name, _ in model.named_parameters()} - set(kept_parameters(model, pruner, ["embeddings"]))
    wanted = ("scores", "pooler.dense.weight", "pooler.dense.bias", "classifier.weight", "classifier.bias")
    assert all(name.endswith(wanted) for name in others)
    assert len(others) == 12 + 4


def test_folded_weights_are_the_kept_ones_to_the_bit() -> None:
    model = tiny_classifier()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    pruner = cap.attach(model, StaticScores(final_sparsity=0.5))
    pruner.update_masks(0.5)
    masks = {f"{name}.weight": mask.clone() for name, mask in pruner.masks.items()}
    pruner.fold()
    after = dict(model.named_parameters())
    assert set(after) == set(before)
    assert all(torch.equal(after[name], weight * masks.get(name, 1.0)) for name, weight in before.items())


def test_matrices_of_no_known_type_need_another_scope() -> None:
    linear = torch.nn.Linear(20, 10)
    with pytest.raises(ValueError, match=r"pruning\.scope=type .* but 1 are not, mine first; set scope=matrix"):
        StaticScores(final_sparsity=0.5).attach(Prunable({"mine": linear}), seed=0)
    pruner = StaticScores(final_sparsity=0.5, scope="matrix")
    pruner.attach(Prunable({"mine": linear}), seed=0)
    assert pruner.update_masks(0.5).n_pruned == 100
    assert (linear.bias.requires_grad, pruner.original("mine").requires_grad) == (True, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget_temperature": 0.0}, r"pruning\.budget_temperature divides scores and must be > 0, got 0\.0"),
        ({"score_learning_rate": 0.0}, r"pruning\.score_learning_rate must be > 0, got 0\.0"),
        ({"regularizer_weight": -1.0}, r"pruning\.regularizer_weight must be >= 0, got -1\.0"),
    ],
    ids=["temperature", "rate", "regularizer"],
)
def test_argument_out_of_range_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StaticScores(final_sparsity=0.5, **options)


def test_the_regularizer_follows_the_published_cubic() -> None:
    pruner = attached()
    means = torch.stack([scores.sigmoid().mean() for scores in by_matrix(pruner, pruner.importance).values()])
    for progress in (0.25, 0.5, 1.0):
        pruner.update_masks(0.9 * (1 - (1 - progress) ** 3))
        expected = 400 * (1 - (1 - progress) ** 3) * float(means.mean())
        assert pruner.regularizer().item() == pytest.approx(expected, rel=1e-5)
