from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cap.objectives.distillation import distillation_loss, hidden_loss, label_loss, mean_squares, span_rows


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


# --- spans -------------------------------------------------------------------------------------------------------

# Windows of other lengths than the batch is wide: 9, 1, 6 and 4 real tokens of 9.
N_REAL = (9, 1, 6, 4)
# First and last answer token; (0, 0) where the answer lies outside the window.
ANSWERS = ((3, 8), (0, 0), (5, 5), (0, 2))
IS_TOKEN = torch.tensor([[token < n for token in range(max(N_REAL))] for n in N_REAL])

span_temperatures = pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0], ids=["T-0.1", "T-1", "T-10"])
halves = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def _span_logits(seed: int) -> Tensor:
    return _logits(len(N_REAL), max(N_REAL), 2, seed=seed)


def _slow_log_softmax(column: Tensor, temperature: float) -> list[float]:
    scaled = [x / temperature for x in column.double().tolist()]
    largest = max(scaled)
    log_sum = largest + math.log(sum(math.exp(x - largest) for x in scaled))
    return [x - log_sum for x in scaled]


def _slow_span_label_loss(logits: Tensor) -> float:
    """Average over examples and over start and end, softmax over the real tokens alone."""
    total = 0.0
    for example, (n_real, answer) in enumerate(zip(N_REAL, ANSWERS, strict=True)):
        for end, token in enumerate(answer):
            total -= _slow_log_softmax(logits[example, :n_real, end], 1.0)[token] / 2
    return total / len(N_REAL)


def _slow_span_distillation(student: Tensor, teacher: Tensor, temperature: float) -> float:
    total = 0.0
    for example, n_real in enumerate(N_REAL):
        for end in (0, 1):
            q = _slow_log_softmax(student[example, :n_real, end], temperature)
            p = _slow_log_softmax(teacher[example, :n_real, end], temperature)
            total += sum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)) / 2
    return temperature**2 * total / len(N_REAL)


def _span_distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return distillation_loss(span_rows(student, IS_TOKEN), span_rows(teacher, IS_TOKEN), temperature=temperature)


def test_rows_are_start_and_end_of_each_example_in_turn() -> None:
    logits = torch.arange(12.0).view(2, 3, 2)
    rows = span_rows(logits, torch.ones(2, 3, dtype=torch.bool))
    assert rows.tolist() == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]


def test_an_attention_mask_marks_the_tokens_as_booleans_do() -> None:
    logits = _span_logits(1)
    torch.testing.assert_close(span_rows(logits, IS_TOKEN.long()), span_rows(logits, IS_TOKEN), atol=0, rtol=0)


def test_labels_of_spans_agree_with_a_loop_over_examples() -> None:
    logits = _span_logits(1)
    loss = label_loss(span_rows(logits, IS_TOKEN), torch.tensor(ANSWERS).flatten())
    assert loss.item() == pytest.approx(_slow_span_label_loss(logits), rel=1e-5)


@span_temperatures
def test_distillation_of_spans_agrees_with_a_loop_over_examples(temperature: float) -> None:
    student, teacher = _span_logits(1), _span_logits(2)
    loss = _span_distillation(student, teacher, temperature)
    assert loss.item() == pytest.approx(_slow_span_distillation(student, teacher, temperature), rel=1e-5)


@halves
@span_temperatures
def test_half_span_logits_are_compared_in_float32(dtype: torch.dtype, temperature: float) -> None:
    student, teacher = _span_logits(1).to(dtype), _span_logits(2).to(dtype)
    loss = _span_distillation(student, teacher, temperature)
    assert loss.item() == pytest.approx(_slow_span_distillation(student, teacher, temperature), rel=1e-5)


@span_temperatures
def test_distillation_of_equal_spans_is_zero(temperature: float) -> None:
    logits = _span_logits(1)
    assert _span_distillation(logits, logits.clone(), temperature).item() == pytest.approx(0.0, abs=1e-5)


@span_temperatures
def test_softmax_gives_padded_tokens_exactly_nothing(temperature: float) -> None:
    rows = span_rows(_span_logits(1) - 1000.0, IS_TOKEN)
    shares = (rows / temperature).softmax(dim=-1).view(len(N_REAL), 2, -1).transpose(1, 2)
    assert shares[~IS_TOKEN].count_nonzero() == 0


@span_temperatures
def test_what_stands_in_padded_tokens_does_not_matter(temperature: float) -> None:
    student, teacher = _span_logits(1), _span_logits(2)
    expected = _span_distillation(student, teacher, temperature)
    student[~IS_TOKEN], teacher[~IS_TOKEN] = 500.0, -torch.inf
    torch.testing.assert_close(_span_distillation(student, teacher, temperature), expected, atol=0, rtol=0)


@span_temperatures
def test_gradient_of_a_span_never_reaches_padded_tokens(temperature: float) -> None:
    student = _span_logits(1).requires_grad_()
    labels = torch.tensor(ANSWERS).flatten()
    loss = label_loss(span_rows(student, IS_TOKEN), labels) + _span_distillation(student, _span_logits(2), temperature)
    loss.backward()
    assert student.grad.isfinite().all()
    assert student.grad[~IS_TOKEN].count_nonzero() == 0


def test_gradient_of_a_span_reaches_its_real_tokens() -> None:
    student = _span_logits(1).requires_grad_()
    label_loss(span_rows(student, IS_TOKEN), torch.tensor(ANSWERS).flatten()).backward()
    longer_than_one = torch.tensor([0, 2, 3])  # one token alone is certain
    assert student.grad[longer_than_one][IS_TOKEN[longer_than_one]].count_nonzero() == 2 * (9 + 6 + 4)


def test_an_undecided_reader_pays_the_log_of_its_tokens() -> None:
    loss = label_loss(span_rows(torch.zeros(len(N_REAL), 9, 2), IS_TOKEN), torch.tensor(ANSWERS).flatten())
    assert loss.item() == pytest.approx(sum(math.log(n) for n in N_REAL) / len(N_REAL), rel=1e-6)


def test_autocast_changes_no_digit_of_a_span() -> None:
    student, teacher = _span_logits(1).half(), _span_logits(2).half()
    expected = _span_distillation(student, teacher, 2.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = _span_distillation(student, teacher, 2.0)
    torch.testing.assert_close(loss, expected, atol=0, rtol=0)


# --- hidden states


def _states(n_layers: int, n_rows: int, *, seed: int, dim: int = 5) -> list[Tensor]:
    return [(layer + 1) * _logits(n_rows, dim, seed=seed + layer) for layer in range(n_layers)]


def _slow_hidden(student: list[Tensor], teacher: list[Tensor]) -> float:
    """Follow the paper entry by entry: the sum over layers of MSE(student, teacher) ÷ MSE(0, teacher)."""
    total = 0.0
    for own, wanted in zip(student, teacher, strict=True):
        pairs = list(zip(own.flatten().tolist(), wanted.flatten().tolist(), strict=True))
        total += sum((a - b) ** 2 for a, b in pairs) / sum(b**2 for _, b in pairs)
    return total


def _hidden(student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    return hidden_loss(student, teacher, scale=mean_squares(teacher))


@pytest.mark.parametrize(("n_layers", "n_rows"), [(1, 1), (2, 3), (6, 7)], ids=["smallest", "two layers", "six layers"])
def test_hidden_loss_agrees_with_a_loop_over_entries(n_layers: int, n_rows: int) -> None:
    student, teacher = _states(n_layers, n_rows, seed=1), _states(n_layers, n_rows, seed=50)
    assert _hidden(student, teacher).item() == pytest.approx(_slow_hidden(student, teacher), rel=1e-5)


def test_hidden_loss_of_equal_states_is_exactly_zero() -> None:
    states = _states(3, 4, seed=1)
    assert _hidden(states, [state.clone() for state in states]).item() == 0.0


def test_hidden_loss_of_a_student_that_gives_zeros_is_one_a_layer() -> None:
    teacher = _states(3, 4, seed=1)
    assert _hidden([torch.zeros_like(state) for state in teacher], teacher).item() == pytest.approx(3.0)


def test_layers_of_any_size_weigh_the_same() -> None:
    student, teacher = _states(2, 4, seed=1), _states(2, 4, seed=50)
    larger = [
        [state * factor for state, factor in zip(states, (100.0, 0.01), strict=True)] for states in (student, teacher)
    ]
    assert _hidden(*larger).item() == pytest.approx(_hidden(student, teacher).item(), rel=1e-4)


def test_hidden_loss_gives_the_student_alone_a_gradient() -> None:
    student = [state.requires_grad_() for state in _states(2, 3, seed=1)]
    teacher = [state.requires_grad_() for state in _states(2, 3, seed=50)]
    _hidden(student, teacher).backward()
    expected = [2 * (own - wanted) / wanted.square().sum() for own, wanted in zip(student, teacher, strict=True)]
    torch.testing.assert_close([state.grad for state in student], expected)
    assert [state.grad for state in teacher] == [None, None]


def test_a_layer_of_zeros_stays_finite() -> None:
    teacher = [torch.zeros(2, 3)]
    assert math.isfinite(_hidden([torch.ones(2, 3)], teacher).item())
    assert _hidden([torch.zeros(2, 3)], teacher).item() == 0.0


def test_float16_states_are_compared_in_float32() -> None:
    student, teacher = _states(2, 3, seed=1), [state.half() for state in _states(2, 3, seed=50)]
    expected = _slow_hidden(student, [state.float() for state in teacher])
    assert _hidden(student, teacher).item() == pytest.approx(expected, rel=1e-5)


def test_another_number_of_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        hidden_loss(_states(2, 3, seed=1), _states(3, 3, seed=1), scale=torch.ones(3))
