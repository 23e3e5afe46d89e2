from __future__ import annotations

import pytest
import torch

import cap
from cap.pruning.parameters import add_regularizer, require_scores_learn
from tests.models.tiny_models import tiny_classifier


def test_groups_hold_every_parameter_once_with_its_rate_and_decay():
    model = tiny_classifier()
    pruner = cap.attach(model, cap.Movement(score_learning_rate=0.5))
    decayed, others, scores = cap.parameter_groups(model, pruner, learning_rate=1e-3, weight_decay=0.1)
    assert [(group["lr"], group["weight_decay"]) for group in (decayed, others, scores)] == [
        (1e-3, 0.1),
        (1e-3, 0.0),
        (0.5, 0.0),
    ]
    grouped = [id(p) for group in (decayed, others, scores) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    assert {p.ndim for p in others["params"]} == {1}


def test_groups_leave_out_what_is_only_observed():
    model = tiny_classifier()
    pruner = cap.attach(model, cap.FirstOrder())
    groups = cap.parameter_groups(model, pruner, learning_rate=1e-3)
    grouped = {id(p) for group in groups for p in group["params"]}
    assert not grouped & {id(p) for p in pruner.auxiliary_parameters()}


def test_groups_of_a_dense_model_have_no_scores():
    assert len(cap.parameter_groups(tiny_classifier(), None, learning_rate=1e-3)) == 2


def test_scores_in_no_optimizer_are_refused():
    model = tiny_classifier()
    optimizer = torch.optim.SGD(list(model.parameters()), lr=1.0)  # made too early
    pruner = cap.attach(model, cap.Movement())
    with pytest.raises(ValueError, match=r"12 of 12 are in none; attach the pruner first"):
        require_scores_learn(pruner, [optimizer], warn=print)


def test_scores_at_the_rate_of_the_weights_are_warned_of():
    model, said = tiny_classifier(), []
    pruner = cap.attach(model, cap.Movement())
    require_scores_learn(pruner, [torch.optim.SGD(model.parameters(), lr=0.3)], warn=said.append)
    assert len(said) == 1
    assert "learn at 0.3 and not at score_learning_rate=0.01" in said[0]


@pytest.mark.parametrize("scale", [1.0, 8.0])
def test_regulariser_adds_its_gradient_to_that_of_the_scores(scale):
    model = tiny_classifier()
    pruner = cap.attach(model, cap.SoftMovement(final_sparsity=0.5, regularizer_weight=3.0))
    pruner.update_masks(0.25)  # half of the way: half of the weight
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for scores in pruner.score_parameters():
        scores.grad = torch.ones_like(scores)
    add_regularizer(pruner, optimizer, scale=scale)
    n = len(pruner.score_parameters())
    for scores in pruner.score_parameters():
        slope = scores.sigmoid() * (1 - scores.sigmoid()) / scores.numel() / n
        torch.testing.assert_close(scores.grad, 1 + scale * 1.5 * slope)


def test_regulariser_waits_for_the_optimizer_of_its_scores():
    model = tiny_classifier()
    pruner = cap.attach(model, cap.SoftMovement(final_sparsity=0.5))
    pruner.update_masks(0.5)
    add_regularizer(pruner, torch.optim.SGD(model.classifier.parameters(), lr=1.0))
    assert not [scores for scores in pruner.score_parameters() if scores.grad is not None]
