"""CapModule on encodings: alignment with the dense encoder, and gradients to rank by where the two agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.training.small_modules import SIZES

N_ROWS, DIM, WIDTH = 6, 32, 7


def batch(ids: list[int]) -> dict[str, Tensor]:
    tokens = torch.randint(5, 20, (N_ROWS, WIDTH), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(WIDTH) < torch.tensor([7, 4, 5, 3, 6, 2])[ids, None]).long()
    return {"input_ids": tokens[ids] * mask, "attention_mask": mask, "example_id": torch.tensor(ids)}


@pytest.fixture
def make_module(tmp_path):
    """Make a CapModule around a two-layer BERT; its teacher is itself, or others' vectors."""

    def make(*, is_teacher: bool, pruner: Any = None, **changes: Any):
        from transformers import BertConfig, BertModel

        from cap.models.families import prunable
        from cap.models.pooled import PooledModel, evaluating
        from cap.objectives.memory import Memory
        from cap.training.module import CapModule, Distill, Optimisation

        torch.manual_seed(0)
        student = PooledModel(BertModel(BertConfig(vocab_size=20, **SIZES)), "mean")
        with evaluating(student):
            own = student(batch(list(range(N_ROWS)))).logits
        drawn = torch.nn.functional.normalize(torch.randn(N_ROWS, DIM), dim=1)
        np.save(tmp_path / "encodings.npy", (own if is_teacher else drawn).half().numpy())
        memory = Memory(n_examples=N_ROWS)
        memory.set_teacher_logits(tmp_path / "encodings.npy")
        if pruner is not None:
            pruner.attach(prunable(student.model), seed=0)
        settings: dict[str, Any] = {
            "pruner": pruner,
            "distill": Distill(weight=0.9, ce_weight=0.0, temperature=2.0, compares="encodings"),
            "optimisation": Optimisation(learning_rate=1e-3, weight_decay=0.0, warmup=0.0),
            "metrics": {},
            "memory": memory,
        }
        return CapModule(student, **(settings | changes)).eval()

    return make


def test_the_only_term_is_twice_one_minus_the_cosine_similarity(make_module):
    module, ids = make_module(is_teacher=False), [0, 3, 5]
    made = batch(ids)
    output = module(made)
    stored = module.memory.teacher_logits(torch.tensor(ids)).float()
    cosines = torch.cosine_similarity(output.pooled.detach(), stored)
    terms = module.loss_terms(output, made)
    assert list(terms) == ["kd"]
    assert terms["kd"].item() == pytest.approx(0.9 * float((2 - 2 * cosines).mean()), rel=1e-3)


def test_loss_without_labels_is_the_alignment_alone(make_module):
    from cap.training.parallel.ranks import Share

    module, made = make_module(is_teacher=False), batch([1, 2, 4])
    loss = module.task_loss(module(made), made, Share(rank=0, counts=(3,)))
    assert 0.9 * loss.item() == pytest.approx(module.loss_terms(module(made), made)["kd"].item(), rel=1e-6)


def gradient_norm(module, made: dict[str, Tensor]) -> float:
    module.zero_grad()
    sum(module.loss_terms(module(made), made).values()).backward()
    squares = [p.grad.square().sum() for p in module.student.parameters() if p.grad is not None]
    return float(torch.stack(squares).sum().sqrt())


def test_student_that_agrees_with_its_teacher_has_a_gradient_through_the_noise_alone(make_module):
    import dataclasses

    module, made = make_module(is_teacher=True), batch(list(range(N_ROWS)))
    without = gradient_norm(module, made)
    module.distill = dataclasses.replace(module.distill, is_noisy=True)
    assert gradient_norm(module, made) > 100 * without  # what is left is the rounding of float16


def test_pass_before_anything_is_pruned_ranks_by_more_than_rounding(make_module, tmp_path, monkeypatch):
    from contextlib import nullcontext

    from cap.pruning.structured import Structured
    from tests.training.test_importance import measure

    def measured() -> float:
        module = make_module(is_teacher=True, pruner=Structured(final_sparsity=0.5))
        loader = DataLoader([batch([0, 1, 2]), batch([3, 4, 5])], batch_size=None)
        found = measure(module, loader, tmp_path)
        assert not module.distill.is_noisy
        return float(torch.cat(found).mean())

    with_noise = measured()
    monkeypatch.setattr("cap.training.importance._with_noise", lambda module: nullcontext())
    assert with_noise > 100 * measured() > 0


def test_noise_belongs_to_its_example_and_has_length_one_in_the_mean():
    from cap.training.distill import noise_of

    drawn = noise_of(torch.arange(400), 64)
    torch.testing.assert_close(noise_of(torch.tensor([7, 3]), 64), drawn[[7, 3]], atol=0, rtol=0)
    assert float(drawn.square().sum(dim=1).mean()) == pytest.approx(1, abs=0.05)
    assert abs(float(torch.nn.functional.normalize(drawn, dim=1).mean(dim=0).square().sum())) < 0.02


def test_squared_gradients_through_the_noise_are_the_curvature():
    from cap.objectives.distillation import encoding_loss
    from cap.training.distill import noise_of

    # A gate that scales what it adds to an encoding: d(encoding)/d(gate) is its direction.
    dim, n = 16, 4000
    direction = torch.linspace(-1, 2, dim)
    start = torch.nn.functional.normalize(torch.ones(1, dim), dim=1)
    gates = torch.zeros(n, 1, requires_grad=True)  # one for each text, whose losses are averaged
    encoding_loss(start + gates * direction, start.expand(n, -1), noise=noise_of(torch.arange(n), dim)).backward()
    squares = (n * gates.grad).square()
    assert float(squares.mean()) == pytest.approx(4 * float(direction.square().sum()) / dim, rel=0.1)
