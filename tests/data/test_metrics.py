from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cap.base.errors import InputError
from cap.data.metrics import TaskMetrics, majority_scores
from cap.data.tasks import Task, get_task

# 10 rows: 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
LABELS = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
PREDICTED = torch.tensor([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])


def logits_of(classes: torch.Tensor, n_classes: int = 2) -> torch.Tensor:
    return torch.nn.functional.one_hot(classes, n_classes).float() * 3 - 1


def scored(name: str, predicted: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    metrics = TaskMetrics(get_task(name))
    metrics.update(predicted, {"labels": labels})
    return metrics.compute()


def test_accuracy_is_the_fraction_of_right_answers() -> None:
    assert scored("qqp", logits_of(PREDICTED), LABELS)["accuracy"] == pytest.approx(7 / 10)


def test_f1_is_that_of_class_1() -> None:
    precision, recall = 3 / 4, 3 / 5
    expected = 2 * precision * recall / (precision + recall)
    assert scored("qqp", logits_of(PREDICTED), LABELS)["f1"] == pytest.approx(expected)


def test_matthews_is_the_coefficient_of_the_four_counts() -> None:
    expected = (3 * 4 - 1 * 2) / (4 * 5 * 5 * 6) ** 0.5
    assert scored("cola", logits_of(PREDICTED), LABELS)["matthews"] == pytest.approx(expected)


def test_accuracy_counts_three_classes() -> None:
    predicted = torch.tensor([0, 1, 2, 2])
    assert scored("mnli", logits_of(predicted, 3), torch.tensor([0, 1, 1, 2])) == {"accuracy": pytest.approx(3 / 4)}


def test_pearson_and_spearman_of_a_hand_computed_case() -> None:
    # Deviations (-1.5, -0.5, 0.5, 1.5) and (-1, -2, 1, 2): 6 / sqrt(5 * 10); ranks 1 2 3 4 and 2 1 3 4.
    scores = scored("stsb", torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.tensor([2.0, 1.0, 4.0, 5.0]))
    assert scores["pearson"] == pytest.approx(6 / 50**0.5)
    assert scores["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))


def test_correlations_do_not_depend_on_a_tiny_scale() -> None:
    scores = scored(
        "stsb", 3 + torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.double) * 1e-9, torch.tensor([1.0, 2, 3])
    )
    assert scores["pearson"] == pytest.approx(1.0, abs=1e-5)
    assert scores["spearman"] == pytest.approx(1.0, abs=1e-5)


def test_batches_add_up_to_one_score() -> None:
    metrics = TaskMetrics(get_task("qqp"))
    metrics.update(logits_of(PREDICTED[:3]), {"labels": LABELS[:3]})
    metrics.update(logits_of(PREDICTED[3:]), {"labels": LABELS[3:]})
    assert metrics.compute() == scored("qqp", logits_of(PREDICTED), LABELS)


@pytest.mark.parametrize("constant", [0, 1])
def test_matthews_of_a_constant_prediction_is_zero(constant: int) -> None:
    assert scored("cola", logits_of(torch.full((10,), constant)), LABELS)["matthews"] == 0.0


def test_matthews_of_constant_labels_is_zero() -> None:
    assert scored("cola", logits_of(PREDICTED), torch.ones(10, dtype=torch.long))["matthews"] == 0.0


@pytest.mark.parametrize(
    ("predicted", "labels"),
    [
        (torch.full((4, 1), 2.5), torch.arange(4.0)),
        (torch.arange(4.0)[:, None], torch.full((4,), 2.5)),
        (torch.tensor([[1.0], [float("nan")], [2.0], [3.0]]), torch.arange(4.0)),
        (torch.ones(1, 1), torch.ones(1)),
    ],
    ids=["constant prediction", "constant labels", "diverged model", "one row"],
)
def test_correlations_that_have_no_meaning_are_zero(predicted: torch.Tensor, labels: torch.Tensor) -> None:
    assert scored("stsb", predicted, labels) == {"pearson": 0.0, "spearman": 0.0}


def test_f1_without_a_positive_is_zero() -> None:
    assert scored("qqp", logits_of(torch.zeros(3, dtype=torch.long)), torch.zeros(3, dtype=torch.long))["f1"] == 0.0


def test_half_precision_logits_are_taken() -> None:
    assert scored("qqp", logits_of(PREDICTED).bfloat16(), LABELS)["accuracy"] == pytest.approx(7 / 10)


def test_constant_predictions_are_noticed_over_all_batches() -> None:
    metrics = TaskMetrics(get_task("qqp"))
    metrics.update(logits_of(torch.zeros(3, dtype=torch.long)), {"labels": LABELS[:3]})
    assert metrics.is_constant
    metrics.update(logits_of(torch.ones(3, dtype=torch.long)), {"labels": LABELS[:3]})
    assert not metrics.is_constant


def test_reset_forgets_the_rows() -> None:
    metrics = TaskMetrics(get_task("qqp"))
    metrics.update(logits_of(1 - LABELS), {"labels": LABELS})
    metrics.reset()
    metrics.update(logits_of(LABELS), {"labels": LABELS})
    assert metrics.compute()["accuracy"] == 1.0


def test_no_row_has_no_score() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        TaskMetrics(get_task("qqp")).compute()


@pytest.mark.parametrize(("name", "metric"), [("qqp", "pearson"), ("stsb", "f1"), ("qqp", "acuracy")])
def test_metric_of_another_kind_is_refused(name: str, metric: str) -> None:
    with pytest.raises(InputError, match=f"got '{metric}'"):
        TaskMetrics(replace(get_task(name), metrics=(metric,)))


def test_majority_answers_with_the_commonest_training_class() -> None:
    # Two thirds of the training rows are positive: recall 1, precision 1/2 on balanced validation rows.
    scores = majority_scores(get_task("qqp"), torch.tensor([1, 1, 0]), LABELS)
    assert scores == {"accuracy": pytest.approx(0.5), "f1": pytest.approx(2 / 3)}


def test_majority_of_a_regression_correlates_with_nothing() -> None:
    scores = majority_scores(get_task("stsb"), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0]))
    assert scores == {"pearson": 0.0, "spearman": 0.0}


def test_macro_f1_is_the_mean_of_the_classes_own_f1() -> None:
    # Class 0: one found of two, one wrong; class 1: the only one found, one wrong; class 2: never found.
    row = {"name": "mine", "text_columns": ("text",), "labels": ("a", "b", "c"), "hub_path": None, "hub_config": None}
    metrics = TaskMetrics(Task(metrics=("macro_f1",), **row))
    metrics.update(logits_of(torch.tensor([0, 1, 1, 0]), 3), {"labels": torch.tensor([0, 0, 1, 2])})
    of_classes = [2 * 1 / (2 * 1 + 1 + 1), 2 * 1 / (2 * 1 + 1), 0.0]  # 2 TP / (2 TP + FP + FN)
    assert metrics.compute()["macro_f1"] == pytest.approx(sum(of_classes) / 3)
