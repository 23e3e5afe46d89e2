from __future__ import annotations

import pytest
import torch

import cap
from cap.base.errors import InputError
from cap.pruning.importance import require_a_pass
from tests.models.tiny_models import tiny_batch, tiny_classifier


def test_importance_is_the_absolute_gradient_of_the_gates_in_eval_mode():
    model = tiny_classifier().train()
    pruner = cap.attach(model, cap.Structured(final_sparsity=0.5))
    seen = []

    def loss(batch):
        seen.append((model.training, model.classifier.weight.requires_grad))
        return model(**batch, labels=torch.tensor([0, 1, 1])).loss

    for gated in pruner._gated():
        gated.importance.fill_(7.0)  # what an interrupted pass has left
    cap.measure_importance(pruner, model, [tiny_batch()] * 2, loss=loss)
    assert seen == [(False, False)] * 2
    assert (model.training, model.classifier.weight.requires_grad) == (True, True)
    gates = pruner.gate_parameters()
    model.eval()
    for gate in gates:
        gate.requires_grad_(True)
    gradients = torch.autograd.grad(loss(tiny_batch()), gates)
    for gated, gradient in zip(pruner._gated(), gradients, strict=True):
        torch.testing.assert_close(gated.importance, 2 * gradient.abs())


def test_pruner_that_asks_for_no_pass_gets_none():
    model = tiny_classifier()
    pruner = cap.attach(model, cap.Magnitude())
    cap.measure_importance(pruner, model, [tiny_batch()], loss=lambda batch: pytest.fail("nobody asked"))


def test_batches_that_a_generator_has_given_already_are_missed():
    model = tiny_classifier()
    pruner = cap.attach(model, cap.Structured(final_sparsity=0.5))
    batches = (batch for batch in [tiny_batch()])

    def measure():
        cap.measure_importance(pruner, model, batches, loss=lambda batch: model(**batch).logits.square().mean())

    measure()
    with pytest.raises(InputError, match=r"Structured ranks by .* got none; give a list or a DataLoader"):
        measure()


def test_missing_pass_is_refused():
    with pytest.raises(ValueError, match=r"give importance=lambda: cap.measure_importance"):
        require_a_pass(cap.Structured(final_sparsity=0.5), is_measured=False)


def test_gradients_that_wait_for_the_optimizer_are_left_alone():
    model = tiny_classifier()
    pruner = cap.attach(model, cap.Structured(final_sparsity=0.5))
    labels = torch.tensor([0, 1, 1])
    model(**tiny_batch(), labels=labels).loss.backward()
    before = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    cap.measure_importance(pruner, model, [tiny_batch()], loss=lambda batch: model(**batch, labels=labels).loss)
    after = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    torch.testing.assert_close(after, before, atol=0, rtol=0)
