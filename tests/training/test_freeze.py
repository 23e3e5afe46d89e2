from __future__ import annotations

import pytest
import torch

from tests.models.tiny_models import FAMILY_NAMES, in_layers, tiny_batch, tiny_classifier


def module_of(family: str, freeze: list[str]):
    """Make a module that learns from labels, with movement scores, and say which names were frozen."""
    from cap.models.families import parameters_of, prunable
    from cap.models.pooled import PooledModel
    from cap.pruning.movement import Movement
    from cap.training.module import CapModule, Distill, Optimisation

    model = tiny_classifier(family)
    names = parameters_of(model, freeze)
    pruner = Movement(score_learning_rate=1e-2, score_init="zero")
    pruner.attach(prunable(model), seed=0)
    module = CapModule(
        PooledModel(model, "first_token"),
        distill=Distill(weight=0.0, ce_weight=1.0, temperature=1.0),
        optimisation=Optimisation(learning_rate=1e-3, weight_decay=0.1, warmup=0.0),
        metrics={},
        pruner=pruner,
        freeze=names,
    )
    return module, names


def backward(module) -> None:
    batch = {**tiny_batch(), "labels": torch.tensor([0, 1, 0]), "example_id": torch.arange(3)}
    torch.stack(list(module.loss_terms(module(batch), batch).values())).sum().backward()


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_no_gradient_is_computed_for_what_is_frozen(family):
    module, names = module_of(family, ["embeddings"])
    backward(module)
    parameters = dict(module.student.model.named_parameters())
    without = {name for name, parameter in parameters.items() if parameter.grad is None}
    assert without >= set(names)
    assert not [name for name in without - set(names) if in_layers(name)]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_no_optimizer_has_what_is_frozen(family):
    module, names = module_of(family, ["embeddings", "head"])
    optimised = {id(p) for group in module.parameter_groups() for p in group["params"]}
    parameters = dict(module.student.model.named_parameters())
    assert {name for name, parameter in parameters.items() if id(parameter) not in optimised} == set(names)


def test_gradient_norm_is_that_of_what_trains(monkeypatch):
    module, _ = module_of("bert", ["embeddings"])
    backward(module)
    optimizer = torch.optim.SGD(module.parameter_groups(), lr=1.0)
    frozen = module.student.model.bert.embeddings.word_embeddings.weight
    frozen.grad = torch.full_like(frozen, 1e6)  # as if somebody had left one there
    monkeypatch.setattr(type(module), "trainer", None)
    monkeypatch.setattr("cap.training.module.has_scaler", lambda trainer: False)
    module.configure_gradient_clipping(optimizer, gradient_clip_val=1e-3)
    norm = torch.stack([p.grad.norm() for group in optimizer.param_groups for p in group["params"]]).norm()
    assert norm == pytest.approx(1e-3, rel=1e-3)
