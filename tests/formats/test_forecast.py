"""What a sparsity is said to leave before anything is trained."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

import cap
from cap.formats.forecast import say_what_is_left, what_is_left
from tests.models.tiny_models import tiny_classifier


def bits(model: torch.nn.Module) -> int:
    return 32 * sum(parameter.numel() for parameter in model.parameters())


def test_single_weights_leave_a_bit_each_and_the_kept_values():
    model = tiny_classifier().eval()
    pruner = cap.attach(tiny_classifier(), cap.Magnitude())
    n = pruner.n_weights
    left = what_is_left(model, pruner, 0.75)
    assert left is not None
    assert left.megabytes * 8e6 == pytest.approx(bits(model) - 32 * n + n + 32 * n / 4)
    assert left.speed_up is None


@pytest.mark.parametrize(
    "pruner", [cap.Structured(final_sparsity=0.5), cap.Layers(final_sparsity=0.5)], ids=["structured", "layers"]
)
def test_parts_leave_what_an_export_leaves(pruner: Any):
    from cap.formats.compact import compact

    model, pruned = tiny_classifier().eval(), tiny_classifier().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    left = what_is_left(model, pruner, 0.5)
    torch.testing.assert_close(dict(model.state_dict()), before, atol=0, rtol=0)
    # The forecast draws units, which are as large as those that a pass would choose.
    options = {"importance": "random"} if isinstance(pruner, cap.Structured) else {}
    own = cap.attach(pruned, type(pruner)(final_sparsity=0.5, **options))
    own.update_masks(0.5)
    own.fold()
    assert left is not None
    assert left.megabytes * 8e6 == bits(compact(pruned).model)
    assert left.speed_up is not None
    assert left.speed_up > 0


def test_what_cannot_be_reached_is_left_out(caplog):
    caplog.set_level(logging.INFO, logger="cap")
    # One head of each layer stays: of four that is three quarters at most.
    say_what_is_left(tiny_classifier(), cap.Structured(final_sparsity=0.9), sparsity=0.9)
    (said,) = [message for message in caplog.messages if message.startswith("what a sparsity leaves")]
    assert [line.split()[0] for line in said.splitlines()[1:]] == ["0.25", "0.5", "0.75"]
    assert "times as fast" in said


def test_zeros_are_said_to_make_nothing_faster(caplog):
    caplog.set_level(logging.INFO, logger="cap")
    say_what_is_left(tiny_classifier(), cap.Magnitude(), sparsity=0.8)
    (said,) = caplog.messages
    assert "in a file of format=sparse; zeros make nothing faster" in said
    assert [line.split()[0] for line in said.splitlines()[1:]] == ["0.5", "0.8", "0.9", "0.97"]


def test_of_a_type_that_cap_does_not_know_nothing_is_said(caplog):
    own: Any = object()  # of units of a user's own
    caplog.set_level(logging.INFO, logger="cap")
    say_what_is_left(tiny_classifier(), own, sparsity=0.5)
    assert caplog.messages == []
