"""Prune whole models, fold, save, and load with stock transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from cap.models.families import prunable, prunable_linears
from cap.pruning.magnitude import Magnitude
from cap.pruning.masks import count_zeros, sparsity_fractions
from cap.pruning.movement import Movement
from cap.pruning.pruner import Pruner
from tests.models.tiny_models import FAMILY_NAMES, in_layers, n_prunable, tiny_batch, tiny_classifier

every_family = pytest.mark.parametrize("family", FAMILY_NAMES)
both_masks = pytest.mark.parametrize(
    "make",
    [Magnitude, lambda: Movement(score_learning_rate=0.01, score_init="zero")],
    ids=["fixed_masks", "scored_masks"],
)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(**tiny_batch()).logits


def pruned(model: PreTrainedModel, pruner: Pruner, sparsity: float = 0.9) -> Pruner:
    pruner.attach(prunable(model), seed=0)
    pruner.update_masks(sparsity)
    return pruner


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def is_prunable(name: str, tensor: Tensor) -> bool:
    return in_layers(name) and tensor.ndim == 2


@every_family
@both_masks
def test_folding_keeps_the_names_and_only_zeroes_prunable_weights(family: str, make) -> None:
    model = tiny_classifier(family)
    before = state(model)
    pruned(model, make()).fold()
    after = model.state_dict()
    assert set(after) == set(before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name, tensor in before.items() if is_prunable(name, tensor)}
    assert all(bool(((tensor == before[name]) | (tensor == 0)).all()) for name, tensor in after.items())


@every_family
def test_folding_does_not_change_the_logits(family: str) -> None:
    model = tiny_classifier(family)
    pruner = pruned(model, Magnitude())
    before = logits(model)
    pruner.fold()
    assert torch.equal(logits(model), before)


def test_pruning_does_change_the_logits() -> None:
    model = tiny_classifier()
    before = logits(model)
    pruned(model, Magnitude())
    assert not torch.allclose(logits(model), before)


@every_family
@both_masks
def test_a_saved_model_loads_in_stock_transformers_with_equal_logits(family: str, make, tmp_path: Path) -> None:
    model = tiny_classifier(family)
    pruner = pruned(model, make())
    before = logits(model)
    pruner.fold()
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()), before)


@every_family
def test_a_saved_model_has_the_same_zeros(family: str, tmp_path: Path) -> None:
    model = tiny_classifier(family)
    pruner = pruned(model, Magnitude())
    masks = {f"{name}.weight": mask.clone() for name, mask in pruner.masks.items()}
    pruner.fold()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(loaded[name] != 0, mask) for name, mask in masks.items())


@every_family
def test_a_saved_model_has_the_sparsity_that_was_asked_for(family: str, tmp_path: Path) -> None:
    model = tiny_classifier(family)
    pruned(model, Magnitude(scope="global"), 0.97).fold()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    n_zero = round(0.97 * n_prunable(family))
    assert sum(zeros for zeros, _ in count_zeros(prunable_linears(loaded)).values()) == n_zero
    assert sparsity_fractions(loaded)["prunable"] == n_zero / n_prunable(family)


@both_masks
def test_a_folded_model_can_be_trained_on(make) -> None:
    model = tiny_classifier()
    pruned(model, make()).fold()
    model(**tiny_batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
