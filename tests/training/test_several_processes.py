"""Two processes against one with the same global batches: the same losses, gradients, masks and scores."""

from __future__ import annotations

import json
import signal

import pytest
import torch

from tests.training.two_processes import run_two

pytestmark = pytest.mark.ends

CASES = {
    "soft movement": {"ce", "kd", "prc", "snc", "fic", "scores", "total"},
    "movement, reduction anchors, micro-batches": {"ce", "kd", "prc", "snc", "fic", "total"},
    "movement, rows without a label": {"ce", "kd", "prc", "snc", "fic", "total"},
    "first order, spans": {"ce", "kd", "prc", "snc", "fic", "total"},
    "magnitude, numbers, labels alone": {"ce", "total"},
    "hidden states, snapshot's logits": {"ce", "hidden", "snapshot_kd", "total"},
    "the same of tokens and spans": {"ce", "hidden", "snapshot_kd", "total"},
    "structured, total": {"ce", "kd", "prc", "snc", "fic", "total"},
    "structured, task": {"ce", "total"},
    "platon": {"ce", "total"},
    "admm": {"ce", "kd", "prc", "snc", "fic", "total"},
    "static scores": {"ce", "kd", "prc", "snc", "fic", "scores", "total"},
    "layers": {"ce", "kd", "total"},
    "second order": {"ce", "kd", "prc", "snc", "fic", "total"},
}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Run everything in two processes; about twenty seconds, half of which is starting them."""
    folder = tmp_path_factory.mktemp("two")
    first, second = run_two("tests.training.share_program", folder)
    assert first.returncode == 0, first.stdout
    assert second.returncode == -signal.SIGKILL, second.stdout  # its last task is to die
    return folder


@pytest.fixture(scope="module")
def found(two):
    """Read what each rank found, by case."""
    return [torch.load(two / f"rank-{rank}" / "found.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Run every case in this process, with the whole batches."""
    from tests.training.share_program import alone

    return {case: alone(case, tmp_path_factory.mktemp("one")) for case in CASES}


@pytest.fixture(scope="module")
def errors(two):
    """Read the errors of each rank."""
    return [json.loads((two / f"rank-{rank}" / "errors.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_every_term_of_every_step_equals_that_of_one_process(found, one, case):
    expected = one[case]["losses"]
    assert set(expected[-1]) == {f"loss/{name}" for name in CASES[case]}
    assert len(expected) >= 10
    assert found[0][case]["losses"] == [pytest.approx(step, rel=0, abs=1e-5) for step in expected]


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_log_the_losses_of_the_whole_batch(found, case):
    assert found[0][case]["losses"] == found[1][case]["losses"]


@pytest.mark.parametrize("case", CASES)
def test_the_first_gradient_equals_that_of_one_process(found, one, case):
    torch.testing.assert_close(found[0][case]["gradients"], one[case]["gradients"], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_both_ranks_take_the_same_gradient_to_the_bit(found, case):
    torch.testing.assert_close(found[0][case]["gradients"], found[1][case]["gradients"], atol=0, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_masks_are_identical_on_both_ranks_at_every_step(found, case):
    assert found[0][case]["masks"] == found[1][case]["masks"]


@pytest.mark.parametrize("case", CASES)
def test_masks_move(found, case):
    assert len({tuple(hashes) for hashes in found[0][case]["masks"]}) > 1


@pytest.mark.parametrize(
    "case", ["magnitude, numbers, labels alone", "structured, total", "structured, task", "layers", "second order"]
)
def test_masks_equal_those_of_one_process(found, one, case):
    assert found[0][case]["masks"] == one[case]["masks"]


@pytest.mark.parametrize("rank", [0, 1], ids=["rank 0", "rank 1"])
@pytest.mark.parametrize("case", CASES)
def test_every_validation_row_counts_once(found, one, case, rank):
    assert found[rank][case]["scores"]["val/n_rows"] == 8
    # After ten steps weights differ by rounding, and answers by a little more than the losses.
    assert found[rank][case]["scores"] == pytest.approx(one[case]["scores"], abs=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_terms_pull_as_hard_as_those_of_one_process(found, one, case):
    compared = CASES[case] - {"scores", "total"}
    assert set(one[case]["shares"]) == (compared if len(compared) > 1 else set())
    assert found[0][case]["shares"] == found[1][case]["shares"]
    assert found[0][case]["shares"] == pytest.approx(one[case]["shares"], rel=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_all_draw_from_one_stream_of_extra_examples(found, one, case):
    assert found[0][case]["extras"] == found[1][case]["extras"] == one[case]["extras"]


def test_labels_weigh_by_the_rows_that_have_one_on_any_rank(found):
    steps = found[0]["movement, rows without a label"]["losses"][:5]
    assert [step["loss/ce"] > 0 for step in steps] == [True, True, False, False, False]


def test_training_draws_the_same_extra_examples_with_and_without_importance_passes(one):
    assert one["structured, total"]["extras"] == one["soft movement"]["extras"]


def test_a_loss_that_is_not_finite_on_one_rank_stops_all_alike(errors):
    assert errors[0]["loss"] == errors[1]["loss"]
    assert "loss/ce = nan" in errors[0]["loss"]


@pytest.mark.parametrize("rank", [0, 1], ids=["rank 0", "rank 1"])
def test_a_mask_that_differs_is_named_with_step_and_rank(errors, rank):
    assert "at step 1 the mask of bert.encoder.layer.0.attention.output.dense on rank 1" in errors[rank]["masks"]


def test_a_peer_that_dies_while_gradients_are_averaged_gives_a_readable_error(errors):
    assert errors[0]["peer"].startswith("rank 0: another process of this run ended")
    assert "resume=true" in errors[0]["peer"]
    assert "peer" not in errors[1]
