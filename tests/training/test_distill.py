"""What the student learns from its teacher's hidden states, as terms of a CapModule."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.models.tiny_models import FAMILY_NAMES, LAYERS, tiny_batch, tiny_classifier, without_last_norm

N_TOKENS = (7, 4, 1)  # of tiny_batch
forms = pytest.mark.parametrize("form", ["pooled", "tokens"])


def batch(*, width: int = 7) -> dict[str, Tensor]:
    """Make three rows, padded to a width; what stands behind the real tokens means nothing."""
    made = tiny_batch()
    padded = {name: nn.functional.pad(value, (0, width - 7)) for name, value in made.items()}
    padded["input_ids"] = torch.where(padded["attention_mask"].bool(), padded["input_ids"], width)
    return padded | {"labels": torch.tensor([0, 1, 0]), "example_id": torch.tensor([2, 0, 1])}


def states(model: nn.Module) -> list[list[Tensor]]:
    """Let transformers itself give the hidden states of each row alone, without padding: by layer, then by row."""
    model, made, rows = without_last_norm(model), tiny_batch(), []
    for row, n in enumerate(N_TOKENS):
        alone = {name: value[row : row + 1, :n] for name, value in made.items()}
        with torch.no_grad():
            rows.append([layer[0] for layer in model.eval()(**alone, output_hidden_states=True).hidden_states[1:]])
    return [[row[layer] for row in rows] for layer in range(LAYERS)]


def slow_loss(student: nn.Module, teacher: nn.Module, form: str) -> float:
    """Walk through layers, rows and tokens one at a time."""
    total = 0.0
    for own_layer, wanted_layer in zip(states(student), states(teacher), strict=True):
        error = size = 0.0
        for own, wanted in zip(own_layer, wanted_layer, strict=True):
            n = len(own)
            if form == "pooled":
                own, wanted = (sum(tokens) / n for tokens in (own, wanted))
            error += float((own.double() - wanted.double()).square().sum())
            size += float(wanted.double().square().sum())
        total += error / size
    return total


def memory_of(teacher: nn.Module, folder: Path):
    from cap.base.memory_budget import MemoryBudget
    from cap.objectives.memory import Memory

    layers = [[row.mean(dim=0) for row in rows] for rows in states(teacher)]
    rows = torch.stack([torch.stack(layer) for layer in layers], dim=1).half()  # (rows, layers, dim)
    order = batch()["example_id"].argsort()
    np.save(folder / "hidden.npy", rows[order].numpy())
    memory = Memory(n_examples=3, budget=MemoryBudget(1.0))
    memory.set_hidden(folder / "hidden.npy")
    return memory


def module_of(student: nn.Module, teacher: nn.Module, form: str, folder: Path, **weights: Any):
    from cap.models.pooled import PooledModel
    from cap.training.module import CapModule, Distill, Optimisation

    return CapModule(
        PooledModel(student, "first_token"),
        distill=Distill(weight=0.0, ce_weight=0.0, temperature=1.0, **({"hidden_weight": 1.0} | weights), hidden=form),
        optimisation=Optimisation(learning_rate=1e-3, weight_decay=0.0, warmup=0.0),
        metrics={},
        memory=memory_of(teacher, folder),
        teacher=PooledModel(teacher, "first_token"),
    )


def hidden_term(module, made: dict[str, Tensor] | None = None) -> Tensor:
    made = made or batch()
    return module.eval().loss_terms(module(made), made)["hidden"]


@forms
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_term_agrees_with_a_loop_over_layers_rows_and_tokens(family, form, tmp_path):
    student, teacher = tiny_classifier(family), tiny_classifier(family, seed=1)
    module = module_of(student, teacher, form, tmp_path, hidden_weight=0.5)
    assert hidden_term(module).item() == pytest.approx(0.5 * slow_loss(student, teacher, form), rel=2e-3)


@pytest.mark.parametrize(("form", "tolerance"), [("pooled", 1e-5), ("tokens", 0.0)])
def test_student_that_is_its_teacher_has_nothing_to_learn(form, tolerance, tmp_path):
    student = tiny_classifier()
    module = module_of(student, copy.deepcopy(student), form, tmp_path)
    assert hidden_term(module).item() == pytest.approx(0.0, abs=tolerance)


@forms
def test_padding_of_a_batch_changes_nothing(form, tmp_path):
    module = module_of(tiny_classifier(), tiny_classifier(seed=1), form, tmp_path)
    assert hidden_term(module, batch(width=12)).item() == pytest.approx(hidden_term(module).item(), rel=1e-5)


@forms
def test_every_layer_of_the_student_gets_a_gradient_and_the_teacher_none(form, tmp_path):
    from cap.models.families import prunable_linears

    student, teacher = tiny_classifier(), tiny_classifier(seed=1)
    hidden_term(module_of(student, teacher, form, tmp_path)).backward()
    assert all(linear.weight.grad.abs().sum() > 0 for linear in prunable_linears(student).values())
    assert not [name for name, p in teacher.named_parameters() if p.grad is not None]


def test_teacher_answers_without_dropout_while_the_student_trains(tmp_path):
    teacher = tiny_classifier(seed=1, hidden_dropout_prob=0.5).train()
    module = module_of(tiny_classifier(hidden_dropout_prob=0.0), teacher, "tokens", tmp_path).train()
    module.student.eval()
    made = batch()
    first, second = (module.loss_terms(module(made), made)["hidden"].item() for _ in range(2))
    assert first == second


def test_teacher_is_no_part_of_the_module(tmp_path):
    module = module_of(tiny_classifier(), tiny_classifier(seed=1), "tokens", tmp_path)
    assert {name.partition(".")[0] for name in module.state_dict()} == {"student"}
    assert {name.partition(".")[0] for name, _ in module.named_parameters()} == {"student"}


@forms
def test_hidden_states_are_kept_only_where_a_loss_is_wanted(form, tmp_path):
    module = module_of(tiny_classifier(), tiny_classifier(seed=1), form, tmp_path)
    assert module(batch(), for_loss=False).hidden == ()
    assert len(module(batch()).hidden) == LAYERS
    with torch.no_grad():  # as a pass may run that needs no gradient
        assert hidden_term(module).item() > 0
    module = module_of(tiny_classifier(), tiny_classifier(seed=1), form, tmp_path, hidden_weight=0.0)
    assert module(batch()).hidden == ()


@forms
@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
def test_half_precision_changes_the_term_little(form, dtype, tmp_path):
    module = module_of(tiny_classifier(), tiny_classifier(seed=1), form, tmp_path)
    expected = hidden_term(module).item()
    with torch.autocast("cpu", dtype=dtype):
        assert hidden_term(module).item() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("form", "missing"), [("pooled", "a memory is required"), ("tokens", "runs the teacher: it is required")]
)
def test_what_the_hidden_states_come_from_is_required(form, missing):
    from cap.models.pooled import PooledModel
    from cap.training.module import CapModule, Distill, Optimisation

    with pytest.raises(ValueError, match=missing):
        CapModule(
            PooledModel(tiny_classifier(), "first_token"),
            distill=Distill(weight=0.0, ce_weight=1.0, temperature=1.0, hidden_weight=1.0, hidden=form),
            optimisation=Optimisation(learning_rate=1e-3, weight_decay=0.0, warmup=0.0),
            metrics={},
        )


# --- logits of the newest snapshot


def snapshot_module(folder: Path, logits: Tensor, *, weight: float, **sizes: Any):
    """Make a module that is distilled from these logits alone, given in the order of the batch."""
    from cap.base.memory_budget import MemoryBudget
    from cap.models.pooled import PooledModel
    from cap.objectives.memory import Memory
    from cap.training.module import CapModule, Distill, Optimisation

    memory = Memory(n_examples=3, budget=MemoryBudget(1.0))
    np.save(folder / "logits.npy", logits[batch()["example_id"].argsort()].half().numpy())
    memory.set_snapshot_logits(folder / "logits.npy")
    return CapModule(
        PooledModel(tiny_classifier(**sizes), "first_token"),
        distill=Distill(weight=0.0, ce_weight=0.0, temperature=2.0, snapshot_weight=weight),
        optimisation=Optimisation(learning_rate=1e-3, weight_decay=0.0, warmup=0.0),
        metrics={},
        memory=memory,
    )


def snapshot_term(module) -> float:
    return module.eval().loss_terms(module(batch()), batch())["snapshot_kd"].item()


def own_logits(**sizes: Any) -> Tensor:
    with torch.no_grad():
        return tiny_classifier(**sizes)(**tiny_batch()).logits


def test_snapshot_term_is_the_weighted_divergence_from_the_snapshots_answers(tmp_path):
    wanted = torch.randn(3, 3, generator=torch.Generator().manual_seed(4)).half().float()
    p, q = ((logits.double() / 2.0).softmax(dim=1) for logits in (wanted, own_logits(num_labels=3)))
    expected = sum(float(a * (a / b).log()) for a, b in zip(p.flatten(), q.flatten(), strict=True)) / 3
    module = snapshot_module(tmp_path, wanted, weight=0.5, num_labels=3)
    assert snapshot_term(module) == pytest.approx(0.5 * 2.0**2 * expected, rel=1e-4)


def test_snapshot_term_of_one_number_is_the_weighted_mean_squared_error(tmp_path):
    wanted = torch.tensor([[1.0], [2.0], [-0.5]])
    expected = float((own_logits(num_labels=1) - wanted).square().mean())
    module = snapshot_module(tmp_path, wanted, weight=0.5, num_labels=1)
    assert snapshot_term(module) == pytest.approx(0.5 * expected, rel=1e-4)


@pytest.mark.parametrize("n_outputs", [1, 3])
def test_student_that_has_not_moved_since_its_snapshot_pays_nothing(tmp_path, n_outputs):
    module = snapshot_module(tmp_path, own_logits(num_labels=n_outputs), weight=1.0, num_labels=n_outputs)
    assert snapshot_term(module) == pytest.approx(0.0, abs=1e-5)


# --- how sure a teacher is


@pytest.mark.parametrize(("temperature", "n_most"), [(1.0, 10_000), (2.0, 10_000), (1.0, 2)])
def test_certainty_is_the_mean_probability_of_the_answers(tmp_path, monkeypatch, temperature, n_most):
    from cap.base.memory_budget import MemoryBudget
    from cap.objectives.memory import Memory
    from cap.training import distill

    monkeypatch.setattr(distill, "_N_OF_CERTAINTY", n_most)
    memory = Memory(n_examples=3, budget=MemoryBudget(1.0))
    logits = np.array([[2.0, -2.0], [0.0, 0.0], [-1.0, 0.0]])
    np.save(tmp_path / "logits.npy", logits.astype(np.float16))
    memory.set_teacher_logits(tmp_path / "logits.npy")
    # The logistic function of how far two logits lie apart; of two rows the first and the last.
    of_rows = [1 / (1 + np.exp(-apart / temperature)) for apart in (4.0, 0.0, 1.0)]
    expected = np.mean(of_rows if n_most > 2 else of_rows[::2])
    assert distill.certainty(memory, 3, temperature=temperature) == pytest.approx(expected, rel=1e-6)
