from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from cap.training.predict import predict
from tests.models.tiny_models import tiny_batch, tiny_classifier


class Counting:
    """Metrics whose score is the number of rows since the last reset, in the manner of a class task."""

    def __init__(self) -> None:
        self.reset()

    @property
    def is_constant(self) -> bool:
        return False

    def update(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        self.logits.append(logits)

    def compute(self) -> dict[str, float]:
        return {"n": float(len(torch.cat(self.logits))), "first": self.logits[0].flatten()[0].item()}

    def reset(self) -> None:
        self.logits: list[Tensor] = []

    def state(self) -> list[Tensor]:
        return self.logits

    def merge(self, states: Sequence[list[Tensor]]) -> None:
        self.logits = [logits for state in states for logits in state]


class Reading(Counting):
    """Metrics of answers that are texts, forgotten by a reset."""

    def answers(self) -> Mapping[int, str]:
        return {0: f"{len(self.logits)} batches"}


def loader(*order: list[int]) -> DataLoader:
    """Serve the tiny rows, batch by batch, in the given order."""
    batch = tiny_batch() | {"labels": torch.zeros(3, dtype=torch.int64), "example_id": torch.arange(3)}
    return DataLoader([{name: values[rows] for name, values in batch.items()} for rows in order], batch_size=None)


def pooled():
    from cap.models.pooled import PooledModel

    return PooledModel(tiny_classifier(num_labels=3), "first_token")


def reader():
    from transformers import AutoModelForQuestionAnswering

    from cap.models.pooled import PooledModel

    return PooledModel(AutoModelForQuestionAnswering.from_config(tiny_classifier().config), "first_token")


def run(model, metrics, batches, **options):
    cpu = torch.device("cpu")
    return predict(model, {"v": batches}, {"v": metrics}, device=cpu, description="scoring", **options)


def expected_logits(model) -> Tensor:
    with torch.no_grad():
        return model.eval()(tiny_batch()).logits


def test_logits_come_in_the_order_of_the_rows_whatever_the_order_of_the_batches():
    model = pooled()
    scores, answers = run(model, Counting(), loader([2, 0], [1]))
    torch.testing.assert_close(answers["v"].logits, expected_logits(model))
    assert scores["n"] == 3
    assert answers["v"].in_text is None


def test_outputs_are_put_into_the_order_of_the_labels_for_scores_and_answers_alike():
    model = pooled()
    scores, answers = run(model, Counting(), loader([0, 1, 2]), order=[2, 0, 1])
    expected = expected_logits(model)[:, [2, 0, 1]]
    torch.testing.assert_close(answers["v"].logits, expected)
    assert scores["first"] == pytest.approx(float(expected[0, 0]))


def test_texts_are_read_before_the_metrics_forget_them_and_logits_of_tokens_are_not_kept():
    metrics = Reading()
    _, answers = run(reader(), metrics, loader([0, 1], [2]))
    assert answers["v"].in_text == {0: "2 batches"}
    assert answers["v"].logits is None
    assert not metrics.logits


def test_model_is_scored_in_eval_mode_and_left_in_its_own():
    model = pooled().train()
    first, second = (run(model, Counting(), loader([0, 1, 2]))[1]["v"].logits for _ in range(2))
    assert torch.equal(first, second)
    assert model.training


@pytest.mark.parametrize("batches", [([0, 1], [1]), ([1], [2])], ids=["twice", "missing"])
def test_rows_that_do_not_come_once_each_are_refused(batches):
    with pytest.raises(ValueError, match="every row exactly once"):
        run(pooled(), Counting(), loader(*batches))
