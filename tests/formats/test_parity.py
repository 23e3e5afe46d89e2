from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cap.formats.parity import Difference, largest_difference, logits_of
from tests.models.tiny_models import tiny_batch, tiny_classifier


def answers(*logits: Tensor) -> Callable[[object], Tensor]:
    """Give one tensor after the other, whatever is asked."""
    given = iter(logits)
    return lambda batch: next(given)


MASK = {"attention_mask": torch.tensor([[1, 1, 0], [1, 0, 0]])}


def test_the_largest_difference_is_that_of_all_batches() -> None:
    expected = answers(torch.tensor([[1.0, -4.0]]), torch.tensor([[2.0, 3.0]]))
    found = answers(torch.tensor([[1.0, -4.5]]), torch.tensor([[2.25, 3.0]]))
    assert largest_difference(found, expected, [MASK, MASK]) == Difference(absolute=0.5, largest_logit=4.0)


def test_padding_of_spans_is_left_out() -> None:
    expected = torch.ones(2, 3, 2)
    found = expected + 9.0 * (1 - MASK["attention_mask"]).unsqueeze(-1)
    found[1, 0, 1] += 0.25
    assert largest_difference(answers(found), answers(expected), [MASK]) == Difference(0.25, 1.0)


@pytest.mark.parametrize(("largest", "relative"), [(0.1, 0.5), (1.0, 0.5), (10.0, 0.05)], ids=["small", "one", "large"])
def test_the_difference_is_relative_to_logits_above_one(largest: float, relative: float) -> None:
    assert Difference(0.5, largest).relative == pytest.approx(relative)


def test_nan_is_not_lost_behind_another_batch() -> None:
    good, bad = torch.zeros(1, 2), torch.tensor([[0.0, math.nan]])
    assert math.isnan(largest_difference(answers(bad, good), answers(good, good), [MASK, MASK]).absolute)


def test_logits_are_those_of_eval_mode() -> None:
    model = tiny_classifier()
    with torch.no_grad():
        expected = model(**tiny_batch()).logits
    assert torch.equal(logits_of(model.train())(tiny_batch()), expected)
    assert model.training
