"""bank_loss on shares of a batch: together they are the loss of the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

N_BATCH, N_EXTRAS, N_ENCODINGS, DIM = 8, 5, 2, 6
BATCH_ID = torch.tensor([3, 11, 7, 0, 5, 9, 2, 12])
EXTRA_ID = torch.tensor([1, 4, 6, 8, 10])
# Class 2 is that of example 7 alone: without its bank rows it has no positive.
LABELS = torch.tensor([0, 1, 0, 1, 1, 0, 1, 2, 0, 0, 1, 0, 1])
# Examples 3, 11 and 4 are windows of one question, as are 9 and 10.
GROUPS = torch.tensor([0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8, 3, 9])
SHARES = {"two even": (4, 4), "two uneven": (5, 3), "three uneven": (1, 4, 3), "one each": (1,) * N_BATCH}


def unit_rows(n_rows: int, *, seed: int) -> Tensor:
    rows = torch.randn(n_rows, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def candidates_of(anchors: Tensor, *, has_labels: bool, has_groups: bool):
    from cap.objectives.contrastive import collect_candidates

    bank_id = torch.cat([BATCH_ID, EXTRA_ID])
    return collect_candidates(
        anchors,
        unit_rows(len(bank_id) * N_ENCODINGS, seed=1).view(len(bank_id), N_ENCODINGS, DIM),
        batch_id=BATCH_ID,
        bank_id=bank_id,
        batch_labels=LABELS[BATCH_ID] if has_labels else None,
        bank_labels=LABELS[bank_id] if has_labels else None,
        batch_groups=GROUPS[BATCH_ID] if has_groups else None,
        bank_groups=GROUPS[bank_id] if has_groups else None,
    )


def losses_and_gradient(sizes: tuple[int, ...], reduction: str, **kinds: bool) -> tuple[list[Tensor], Tensor]:
    from cap.objectives.contrastive import bank_loss

    anchors = unit_rows(N_BATCH, seed=0).requires_grad_()
    candidates = candidates_of(anchors, **kinds)
    losses = [
        bank_loss(
            anchors[first : first + size],
            candidates,
            temperature=0.3,
            reduction=reduction,
            unsupervised_weight=0.5,
            supervised_weight=2.0,
            first=first,
        )
        for first, size in zip([sum(sizes[:i]) for i in range(len(sizes))], sizes, strict=True)
    ]
    torch.stack(losses).sum().backward()
    assert anchors.grad is not None
    return [loss.detach() for loss in losses], anchors.grad


with_and_without = pytest.mark.parametrize(
    ("has_labels", "has_groups"), [(True, True), (False, False)], ids=["labels and windows", "neither"]
)


@with_and_without
@pytest.mark.parametrize("reduction", ["pairs", "anchors"])
@pytest.mark.parametrize("sizes", SHARES.values(), ids=SHARES)
def test_shares_add_up_to_the_loss_of_the_batch(sizes, reduction, has_labels, has_groups):
    kinds = {"has_labels": has_labels, "has_groups": has_groups}
    shares, _ = losses_and_gradient(sizes, reduction, **kinds)
    (whole,), _ = losses_and_gradient((N_BATCH,), reduction, **kinds)
    torch.testing.assert_close(torch.stack(shares).sum(), whole, atol=1e-12, rtol=1e-12)


@with_and_without
@pytest.mark.parametrize("reduction", ["pairs", "anchors"])
@pytest.mark.parametrize("sizes", SHARES.values(), ids=SHARES)
def test_anchors_of_shares_get_the_gradient_of_the_batch(sizes, reduction, has_labels, has_groups):
    kinds = {"has_labels": has_labels, "has_groups": has_groups}
    _, gradient = losses_and_gradient(sizes, reduction, **kinds)
    _, expected = losses_and_gradient((N_BATCH,), reduction, **kinds)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("reduction", ["pairs", "anchors"])
def test_a_share_is_not_the_loss_of_its_own_anchors_alone(reduction):
    # Guards the tests above: with counts of its own, a share of 1 of 8 anchors would weigh as much as all.
    shares, _ = losses_and_gradient((1, 7), reduction, has_labels=True, has_groups=False)
    assert shares[0] < 0.5 * shares[1]


@pytest.mark.parametrize("first", [-1, 6], ids=["before the batch", "beyond the batch"])
def test_anchors_outside_the_batch_are_refused(first):
    from cap.objectives.contrastive import bank_loss

    anchors = unit_rows(N_BATCH, seed=0)
    candidates = candidates_of(anchors, has_labels=True, has_groups=False)
    with pytest.raises(ValueError, match="rows of a batch of 8"):
        bank_loss(
            anchors[:3],
            candidates,
            temperature=0.3,
            reduction="pairs",
            unsupervised_weight=1.0,
            supervised_weight=1.0,
            first=first,
        )
