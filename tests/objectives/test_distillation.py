from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cap.objectives.distillation import distillation_loss, label_loss


def _logits(*shape: int, seed: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _slow_softmax(row: list[float], temperature: float) -> list[float]:
    weights = [math.exp(x / temperature) for x in row]
    return [weight / sum(weights) for weight in weights]


def _slow_distillation(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """Follow the definition row by row: T² times the mean of KL(teacher ‖ student)."""
    total = 0.0
    for student_row, teacher_row in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = _slow_softmax(teacher_row, temperature), _slow_softmax(student_row, temperature)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return temperature**2 * total / len(student)


temperatures = pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0], ids=["T-0.5", "T-1", "T-2"])


@temperatures
@pytest.mark.parametrize("shape", [(5, 3), (1, 2), (3, 40)], ids=["three-classes", "one-row", "forty-tokens"])
def test_distillation_agrees_with_a_loop_over_classes(shape: tuple[int, int], temperature: float) -> None:
    student, teacher = _logits(*shape, seed=1), _logits(*shape, seed=2)
    loss = distillation_loss(student, teacher, temperature=temperature)
    assert loss.item() == pytest.approx(_slow_distillation(student, teacher, temperature), rel=1e-5)


@temperatures
def test_distillation_of_equal_logits_is_zero(temperature: float) -> None:
    logits = _logits(4, 3, seed=1)
    assert distillation_loss(logits, logits.clone(), temperature=temperature).item() == pytest.approx(0.0, abs=1e-6)


def test_distillation_does_not_see_a_shift_of_all_logits() -> None:
    student, teacher = _logits(4, 3, seed=1), _logits(4, 3, seed=2)
    shifted = distillation_loss(student + 5.0, teacher - 2.0, temperature=2.0)
    assert shifted.item() == pytest.approx(distillation_loss(student, teacher, temperature=2.0).item(), rel=1e-5)


def test_a_certain_teacher_and_an_undecided_student_are_log_two_apart() -> None:
    loss = distillation_loss(torch.zeros(3, 2), torch.tensor([[80.0, 0.0]] * 3), temperature=1.0)
    assert loss.item() == pytest.approx(math.log(2))


def test_an_undecided_teacher_and_a_certain_student_are_the_other_way_round() -> None:
    # KL(teacher ‖ student) of (1/2, 1/2) and (a, 1 - a): the reverse direction would be near log 2.
    loss = distillation_loss(torch.tensor([[8.0, 0.0]]), torch.zeros(1, 2), temperature=1.0)
    a = 1 / (1 + math.exp(-8.0))
    assert loss.item() == pytest.approx(0.5 * math.log(0.5 / a) + 0.5 * math.log(0.5 / (1 - a)), rel=1e-5)


@temperatures
def test_the_gradient_is_that_of_the_softened_difference(temperature: float) -> None:
    student, teacher = _logits(4, 3, seed=1).requires_grad_(), _logits(4, 3, seed=2)
    distillation_loss(student, teacher, temperature=temperature).backward()
    rows = zip(student.tolist(), teacher.tolist(), strict=True)
    softened = [(_slow_softmax(s, temperature), _slow_softmax(t, temperature)) for s, t in rows]
    expected = [[temperature * (q - p) / 4 for q, p in zip(s, t, strict=True)] for s, t in softened]
    torch.testing.assert_close(student.grad, torch.tensor(expected), atol=1e-6, rtol=1e-5)


def test_a_float16_teacher_is_compared_in_float32() -> None:
    student, teacher = _logits(4, 3, seed=1), _logits(4, 3, seed=2).half()
    loss = distillation_loss(student, teacher, temperature=2.0)
    assert loss.item() == pytest.approx(_slow_distillation(student, teacher.float(), 2.0), rel=1e-5)


def test_autocast_changes_no_digit_of_distillation() -> None:
    student, teacher = _logits(4, 3, seed=1), _logits(4, 3, seed=2)
    expected = distillation_loss(student, teacher, temperature=2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = distillation_loss(student, teacher, temperature=2.0)
    torch.testing.assert_close(loss, expected, atol=0, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
def test_distillation_of_one_output_is_the_mean_squared_error(dtype: torch.dtype) -> None:
    student, teacher = torch.tensor([[1.0], [2.0], [-1.0]]), torch.tensor([[2.0], [2.0], [1.0]], dtype=dtype)
    assert distillation_loss(student, teacher, temperature=1.0).item() == pytest.approx((1 + 0 + 4) / 3)


def test_the_temperature_does_not_touch_one_output() -> None:
    student, teacher = torch.tensor([[1.0], [2.0]]), torch.tensor([[2.0], [5.0]])
    assert distillation_loss(student, teacher, temperature=3.0).item() == pytest.approx((1 + 9) / 2)


@pytest.mark.parametrize("temperature", [0.0, -1.0], ids=["zero", "negative"])
def test_a_distill_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=rf"distill\.temperature .* must be > 0, got {temperature}"):
        distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), temperature=temperature)


def test_labels_that_are_classes_give_the_cross_entropy() -> None:
    logits, labels = _logits(4, 3, seed=1), [2, 0, 1, 1]
    rows = zip(logits.tolist(), labels, strict=True)
    expected = -sum(math.log(_slow_softmax(row, 1.0)[label]) for row, label in rows) / 4
    assert label_loss(logits, torch.tensor(labels)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_an_undecided_model_pays_log_n_classes(n_classes: int) -> None:
    loss = label_loss(torch.zeros(5, n_classes), torch.tensor([0, 1, 0, 1, 1]))
    assert loss.item() == pytest.approx(math.log(n_classes))


@pytest.mark.parametrize("n_rows", [1, 3], ids=["one-row", "three-rows"])
def test_labels_that_are_numbers_give_the_mean_squared_error(n_rows: int) -> None:
    outputs, labels = torch.tensor([[1.0], [2.0], [4.5]])[:n_rows], torch.tensor([0.0, 5.0, 4.0])[:n_rows]
    expected = sum([1.0, 9.0, 0.25][:n_rows]) / n_rows
    assert label_loss(outputs, labels).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shape", "labels"),
    [((2, 3), torch.tensor([0, 2])), ((2, 1), torch.tensor([0.5, 2.0]))],
    ids=["classes", "numbers"],
)
def test_half_logits_are_compared_with_labels_in_float32(shape: tuple[int, int], labels: Tensor) -> None:
    logits = _logits(*shape, seed=4).half()
    torch.testing.assert_close(label_loss(logits, labels), label_loss(logits.float(), labels), atol=0, rtol=0)
