from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cap.objectives.contrastive import Candidates, Reduction, bank_loss, collect_candidates, contrastive_loss

Kind = Literal["unsupervised", "supervised"]

# Values and gradients of the published code; how they were made is in the file's own "about".
GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text(encoding="utf-8"))["cases"]

golden_case = pytest.mark.parametrize("case", GOLDEN, ids=["1-encoding", "3-encodings", "2-encodings-T-0.3"])
kinds = pytest.mark.parametrize("kind", ["unsupervised", "supervised"])
reductions = pytest.mark.parametrize("reduction", ["pairs", "anchors"])


def _loss(
    anchors: Tensor, candidates: Candidates, kind: Kind, *, temperature: float = 0.1, reduction: Reduction = "pairs"
) -> Tensor:
    """Hand ``contrastive_loss`` the positives of the definition, pair by pair."""
    key = candidates.example_id if kind == "unsupervised" else candidates.labels
    assert key is not None
    n, m = candidates.n_batch, len(candidates.example_id)
    return contrastive_loss(
        anchors,
        candidates.encodings,
        torch.tensor([[i != j and key[i].item() == key[j].item() for j in range(m)] for i in range(n)]).reshape(n, m),
        is_self=torch.tensor([[i == j for j in range(m)] for i in range(n)]).reshape(n, m),
        temperature=temperature,
        reduction=reduction,
    )


def _weighed(anchors: Tensor, candidates: Candidates, unsupervised: float, supervised: float, **more: Any) -> Tensor:
    settings = {"temperature": 0.1, "reduction": "pairs"} | more
    return bank_loss(anchors, candidates, unsupervised_weight=unsupervised, supervised_weight=supervised, **settings)


class Scene:
    """A batch and a bank with made-up encodings, as lists for the slow loop and as tensors for the code."""

    def __init__(
        self,
        *,
        batch_id: tuple[int, ...],
        extra_id: tuple[int, ...],
        labels: tuple[int, ...],
        n_snapshots: int,
        dtype: torch.dtype = torch.float64,
        groups: tuple[int, ...] | None = None,
    ) -> None:
        generator = torch.Generator().manual_seed(7)
        bank = normalize(torch.randn(len(labels), n_snapshots, 6, generator=generator, dtype=torch.float64), dim=-1)
        batch = normalize(torch.randn(len(batch_id), 6, generator=generator, dtype=torch.float64), dim=-1)
        self.bank, self.anchors = bank.to(dtype), batch.to(dtype)
        self.batch_id, self.extra_id, self.labels, self.groups = batch_id, extra_id, labels, groups

    def collect(self) -> Candidates:
        bank_id = torch.tensor(self.batch_id + self.extra_id)
        batch_id, labels = torch.tensor(self.batch_id), torch.tensor(self.labels)
        groups = None if self.groups is None else torch.tensor(self.groups)
        return collect_candidates(
            self.anchors,
            self.bank[bank_id],
            batch_id=batch_id,
            bank_id=bank_id,
            batch_labels=labels[batch_id],
            bank_labels=labels[bank_id],
            batch_groups=None if groups is None else groups[batch_id],
            bank_groups=None if groups is None else groups[bank_id],
        )

    def is_sibling(self, example: int, other: int) -> bool:
        return self.groups is not None and example != other and self.groups[example] == self.groups[other]

    def slow_terms(self, kind: Kind, temperature: float, *, ignore_same_label: bool = False) -> list[tuple[float, int]]:
        """Follow the definition one pair at a time: the term and the number of positives of each anchor."""
        anchors, bank = self.anchors.double().tolist(), self.bank.double().tolist()
        terms = []
        for i, example in enumerate(self.batch_id):
            others = [(self.batch_id[j], anchors[j]) for j in range(len(anchors)) if j != i]
            for other in self.batch_id + self.extra_id:
                for encoding in bank[other]:
                    others.append((other, encoding))
            others = [(other, encoding) for other, encoding in others if not self.is_sibling(example, other)]
            if ignore_same_label:
                label = self.labels[example]
                others = [(o, encoding) for o, encoding in others if o == example or self.labels[o] != label]
            exponents = [sum(a * b for a, b in zip(anchors[i], c, strict=True)) / temperature for _, c in others]
            largest = max(exponents)
            log_denominator = largest + math.log(sum(math.exp(x - largest) for x in exponents))
            if kind == "unsupervised":
                is_positive = [other == example for other, _ in others]
            else:
                is_positive = [self.labels[other] == self.labels[example] for other, _ in others]
            positives = [x - log_denominator for x, yes in zip(exponents, is_positive, strict=True) if yes]
            terms.append((-sum(positives) / len(positives), len(positives)))
        return terms

    def slow_loss(self, kind: Kind, temperature: float, reduction: Reduction, **options: bool) -> float:
        terms = self.slow_terms(kind, temperature, **options)
        total = sum(loss for loss, _ in terms)
        return total / {"pairs": sum(n for _, n in terms), "anchors": len(terms)}[reduction]


SCENES = {
    "9-encodings": {"batch_id": (3, 0, 5), "extra_id": (1, 6), "labels": (0, 1, 1, 2, 0, 2, 1), "n_snapshots": 9},
    "one-row": {"batch_id": (2,), "extra_id": (0, 1), "labels": (0, 1, 1), "n_snapshots": 2},
    "one-row-no-extras": {"batch_id": (0,), "extra_id": (), "labels": (1,), "n_snapshots": 1},
    "one-label": {"batch_id": (1, 4, 2, 0), "extra_id": (3, 5), "labels": (1, 1, 1, 1, 1, 1), "n_snapshots": 2},
    "all-labels-differ": {"batch_id": (1, 2, 0), "extra_id": (3, 4), "labels": (0, 1, 2, 3, 4), "n_snapshots": 1},
    "one-example-twice": {"batch_id": (1, 2, 1), "extra_id": (0, 3), "labels": (0, 1, 0, 1), "n_snapshots": 1},
}


def _two_examples(dtype: torch.dtype = torch.float64) -> Scene:
    return Scene(batch_id=(0, 1), extra_id=(2, 3), labels=(0, 1, 0, 1), n_snapshots=2, dtype=dtype)


# --- the published code ------------------------------------------------------------------------------------------


def _golden_candidates(case: dict[str, Any]) -> tuple[Tensor, Tensor, Candidates]:
    pooled = torch.tensor(case["pooled"], dtype=torch.float64, requires_grad=True)
    anchors = pooled / pooled.norm(dim=1, keepdim=True)
    labels = torch.tensor(case["bank_label"])
    batch_id = torch.tensor(case["example_id"])
    bank_id = torch.tensor(case["example_id"] + case["extra_id"])
    candidates = collect_candidates(
        anchors,
        torch.tensor(case["bank"], dtype=torch.float64)[bank_id],
        batch_id=batch_id,
        bank_id=bank_id,
        batch_labels=labels[batch_id],
        bank_labels=labels[bank_id],
    )
    return pooled, anchors, candidates


@golden_case
@kinds
@reductions
def test_agrees_with_the_golden_values(case: dict[str, Any], kind: Kind, reduction: Reduction) -> None:
    _, anchors, candidates = _golden_candidates(case)
    loss = _loss(anchors, candidates, kind, temperature=case["temperature"], reduction=reduction)
    assert loss.item() == pytest.approx(case["expected"][kind][reduction], abs=1e-9, rel=0)


@golden_case
@kinds
def test_agrees_with_the_published_gradient(case: dict[str, Any], kind: Kind) -> None:
    pooled, anchors, candidates = _golden_candidates(case)
    _loss(anchors, candidates, kind, temperature=case["temperature"]).backward()
    expected = torch.tensor(case["expected"][kind]["pairs_gradient_wrt_pooled"], dtype=torch.float64)
    torch.testing.assert_close(pooled.grad, expected, atol=1e-9, rtol=0)


@golden_case
@reductions
def test_bank_loss_is_the_weighted_sum_of_both_golden_terms(case: dict[str, Any], reduction: Reduction) -> None:
    _, anchors, candidates = _golden_candidates(case)
    loss = _weighed(anchors, candidates, 0.3, 5.0, temperature=case["temperature"], reduction=reduction)
    expected = 0.3 * case["expected"]["unsupervised"][reduction] + 5.0 * case["expected"]["supervised"][reduction]
    assert loss.item() == pytest.approx(expected, abs=1e-9, rel=0)


@golden_case
def test_bank_loss_has_the_weighted_sum_of_both_published_gradients(case: dict[str, Any]) -> None:
    pooled, anchors, candidates = _golden_candidates(case)
    _weighed(anchors, candidates, 0.1, 10.0, temperature=case["temperature"]).backward()
    unsupervised, supervised = (
        torch.tensor(case["expected"][kind]["pairs_gradient_wrt_pooled"], dtype=torch.float64)
        for kind in ("unsupervised", "supervised")
    )
    torch.testing.assert_close(pooled.grad, 0.1 * unsupervised + 10.0 * supervised, atol=1e-8, rtol=0)


# --- the definition, one pair at a time --------------------------------------------------------------------------


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
@kinds
@reductions
def test_agrees_with_a_loop_over_pairs(scene: dict[str, Any], kind: Kind, reduction: Reduction) -> None:
    temperature = 0.05
    made = Scene(**scene)
    loss = _loss(made.anchors, made.collect(), kind, temperature=temperature, reduction=reduction)
    assert loss.item() == pytest.approx(made.slow_loss(kind, temperature, reduction), abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
@reductions
def test_bank_loss_agrees_with_a_loop_over_pairs(scene: dict[str, Any], reduction: Reduction) -> None:
    made = Scene(**scene)
    loss = _weighed(made.anchors, made.collect(), 0.5, 2.0, temperature=0.2, reduction=reduction)
    expected = 0.5 * made.slow_loss("unsupervised", 0.2, reduction) + 2 * made.slow_loss("supervised", 0.2, reduction)
    assert loss.item() == pytest.approx(expected, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)
@reductions
def test_negatives_without_the_anchor_s_label_agree_with_a_loop_over_pairs(
    scene: dict[str, Any], reduction: Reduction
) -> None:
    made = Scene(**scene)
    loss = _weighed(
        made.anchors, made.collect(), 0.5, 2.0, temperature=0.2, reduction=reduction, ignore_same_label=True
    )
    unsupervised = made.slow_loss("unsupervised", 0.2, reduction, ignore_same_label=True)
    expected = 0.5 * unsupervised + 2 * made.slow_loss("supervised", 0.2, reduction)
    assert loss.item() == pytest.approx(expected, abs=1e-9, rel=1e-9)


def test_an_anchor_whose_candidates_all_share_its_label_has_nothing_to_be_told_from() -> None:
    made = Scene(batch_id=(0, 1), extra_id=(2,), labels=(1, 1, 1), n_snapshots=1)
    loss = _weighed(made.anchors, made.collect(), 1.0, 0.0, ignore_same_label=True)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)


def test_labels_leave_no_negative_out_where_there_are_none() -> None:
    candidates = dataclasses.replace((made := _two_examples()).collect(), labels=None)
    losses = [_weighed(made.anchors, candidates, 1.0, 0.0, ignore_same_label=ignore) for ignore in (False, True)]
    torch.testing.assert_close(losses[1], losses[0], atol=0, rtol=0)


@pytest.mark.parametrize(
    ("reduction", "count"), [("pairs", 3), ("anchors", 2)], ids=["divides-by-pairs", "divides-by-anchors-with-one"]
)
def test_an_anchor_without_positives_adds_nothing_to_the_others(reduction: Reduction, count: int) -> None:
    is_positive = torch.tensor([[True, True, False], [False, False, False], [False, False, True]])
    encodings = normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64), dim=1)
    loss = contrastive_loss(
        encodings[:3],
        encodings[3:],
        is_positive,
        is_self=torch.zeros(3, 3, dtype=torch.bool),
        temperature=0.2,
        reduction=reduction,
    )
    exponents = [[float(encodings[i] @ encodings[3 + j]) / 0.2 for j in range(3)] for i in range(3)]
    logs = [math.log(sum(math.exp(x) for x in row)) for row in exponents]
    first = -((exponents[0][0] - logs[0]) + (exponents[0][1] - logs[0])) / 2
    last = -(exponents[2][2] - logs[2])
    assert loss.item() == pytest.approx((first + last) / count, abs=1e-9)


@kinds
@reductions
def test_gradient_is_that_of_finite_differences(kind: Kind, reduction: Reduction) -> None:
    scene = Scene(**SCENES["9-encodings"])
    candidates = scene.collect()
    anchors = scene.anchors.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: _loss(z, candidates, kind, temperature=0.5, reduction=reduction), (anchors,)
    )


# --- closed forms ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_snapshots", [1, 3])
@pytest.mark.parametrize("temperature", [0.1, 2.0], ids=["T-0.1", "T-2"])
def test_identical_encodings_give_log_of_the_other_candidates(n_snapshots: int, temperature: float) -> None:
    scene = Scene(batch_id=(0, 1, 2), extra_id=(3, 4), labels=(0, 1, 0, 1, 0), n_snapshots=n_snapshots)
    scene.bank, scene.anchors = torch.full_like(scene.bank, 6**-0.5), torch.full_like(scene.anchors, 6**-0.5)
    loss = _loss(scene.anchors, scene.collect(), "unsupervised", temperature=temperature, reduction="anchors")
    assert loss.item() == pytest.approx(math.log(3 + 5 * n_snapshots - 1), abs=1e-9)


@pytest.mark.parametrize("n_snapshots", [1, 9])
def test_pairs_divides_by_the_encodings_per_example(n_snapshots: int) -> None:
    scene = Scene(batch_id=(0, 1, 2), extra_id=(3,), labels=(0, 1, 0, 1), n_snapshots=n_snapshots)
    scene.bank, scene.anchors = torch.full_like(scene.bank, 6**-0.5), torch.full_like(scene.anchors, 6**-0.5)
    loss = _loss(scene.anchors, scene.collect(), "unsupervised", reduction="pairs")
    assert loss.item() == pytest.approx(math.log(3 + 4 * n_snapshots - 1) / n_snapshots, abs=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 0.5], ids=["T-0.1", "T-0.5"])
def test_orthogonal_examples_give_the_closed_form(temperature: float) -> None:
    basis = torch.eye(4, dtype=torch.float64)
    ids = torch.arange(4)
    candidates = collect_candidates(
        basis, basis[:, None], batch_id=ids, bank_id=ids, batch_labels=None, bank_labels=None
    )
    loss = _loss(basis, candidates, "unsupervised", temperature=temperature, reduction="anchors")
    # One candidate at similarity 1, six at 0.
    assert loss.item() == pytest.approx(math.log(1 + 6 * math.exp(-1 / temperature)), abs=1e-12)


def test_an_only_candidate_that_is_positive_costs_nothing() -> None:
    scene = Scene(**SCENES["one-row-no-extras"])
    assert _loss(scene.anchors, scene.collect(), "unsupervised").item() == 0.0


def test_a_tiny_temperature_gives_the_gap_to_the_nearest_candidate() -> None:
    basis = torch.eye(2)
    loss = contrastive_loss(
        basis[:1],
        basis,
        torch.tensor([[False, True]]),
        is_self=torch.zeros(1, 2, dtype=torch.bool),
        temperature=1e-4,
        reduction="pairs",
    )
    assert loss.item() == pytest.approx(1e4)  # exp(10,000) would overflow


# --- properties --------------------------------------------------------------------------------------------------


@kinds
def test_the_order_of_the_bank_does_not_matter(kind: Kind) -> None:
    scene = Scene(**SCENES["9-encodings"])
    loss = _loss(scene.anchors, scene.collect(), kind)
    scene.extra_id = scene.extra_id[::-1]
    assert _loss(scene.anchors, scene.collect(), kind).item() == pytest.approx(loss.item(), abs=1e-12)


@kinds
def test_the_order_of_the_batch_does_not_matter(kind: Kind) -> None:
    scene = Scene(**SCENES["9-encodings"])
    loss = _loss(scene.anchors, scene.collect(), kind)
    scene.batch_id, scene.anchors = scene.batch_id[::-1], scene.anchors.flip(0)
    assert _loss(scene.anchors, scene.collect(), kind).item() == pytest.approx(loss.item(), abs=1e-12)


def test_a_further_negative_raises_the_loss() -> None:
    with_two = _two_examples()
    with_one = _two_examples()
    with_one.extra_id = (2,)
    assert _loss(with_two.anchors, with_two.collect(), "unsupervised") > _loss(
        with_one.anchors, with_one.collect(), "unsupervised"
    )


def test_moving_anchors_against_the_gradient_lowers_the_loss() -> None:
    scene = Scene(**SCENES["9-encodings"])
    candidates = scene.collect()
    anchors = scene.anchors.clone().requires_grad_()
    before = _loss(anchors, candidates, "supervised")
    before.backward()
    after = _loss(anchors.detach() - 1e-3 * anchors.grad, candidates, "supervised")
    assert after < before


@kinds
def test_the_pair_with_itself_does_not_count(kind: Kind) -> None:
    scene = Scene(**SCENES["one-row"])
    candidates = scene.collect()
    loss = _loss(scene.anchors, candidates, kind)
    candidates.encodings[0] *= -1  # the anchor itself, the only row nobody else is compared with
    assert _loss(scene.anchors, candidates, kind).item() == loss.item()


# --- gradients ---------------------------------------------------------------------------------------------------


def test_candidates_carry_no_gradient_of_the_batch() -> None:
    pooled = torch.randn(3, 4, requires_grad=True)
    ids = torch.arange(3)
    candidates = collect_candidates(
        normalize(pooled, dim=1), torch.randn(3, 1, 4), batch_id=ids, bank_id=ids, batch_labels=None, bank_labels=None
    )
    assert not candidates.encodings.requires_grad


def test_only_anchors_get_a_gradient() -> None:
    scene = Scene(**SCENES["9-encodings"])
    batch = scene.anchors.clone().requires_grad_()
    scene.anchors = batch
    anchors = batch.detach().clone().requires_grad_()
    _weighed(anchors, scene.collect(), 1.0, 1.0).backward()
    assert (batch.grad, anchors.grad.abs().sum().item() > 0) == (None, True)


@reductions
def test_is_exactly_zero_without_positives(reduction: Reduction) -> None:
    loss = _without_positives(torch.randn(3, 4), reduction)
    assert loss.item() == 0.0


@reductions
def test_is_differentiable_without_positives(reduction: Reduction) -> None:
    anchors = torch.randn(3, 4, requires_grad=True)
    _without_positives(anchors, reduction).backward()
    torch.testing.assert_close(anchors.grad, torch.zeros(3, 4), atol=0, rtol=0)


@reductions
def test_is_zero_and_differentiable_with_itself_alone(reduction: Reduction) -> None:
    anchors = normalize(torch.randn(1, 4), dim=1).requires_grad_()
    loss = contrastive_loss(
        anchors,
        anchors.detach(),
        torch.zeros(1, 1, dtype=torch.bool),
        is_self=torch.ones(1, 1, dtype=torch.bool),
        temperature=0.1,
        reduction=reduction,
    )
    loss.backward()
    assert (loss.item(), anchors.grad.tolist()) == (0.0, [[0.0] * 4])


def test_an_anchor_without_positives_gets_no_gradient_beside_one_that_has() -> None:
    anchors = normalize(torch.randn(2, 4), dim=1).requires_grad_()
    contrastive_loss(
        anchors,
        normalize(torch.randn(5, 4), dim=1),
        torch.tensor([[True, False, False, False, False], [False] * 5]),
        is_self=torch.zeros(2, 5, dtype=torch.bool),
        temperature=0.1,
        reduction="anchors",
    ).backward()
    assert (anchors.grad[0].abs().sum().item() > 0, anchors.grad[1].tolist()) == (True, [0.0] * 4)


def _without_positives(anchors: Tensor, reduction: Reduction) -> Tensor:
    return contrastive_loss(
        anchors,
        torch.randn(5, 4),
        torch.zeros(len(anchors), 5, dtype=torch.bool),
        is_self=torch.zeros(len(anchors), 5, dtype=torch.bool),
        temperature=0.1,
        reduction=reduction,
    )


# --- precision ---------------------------------------------------------------------------------------------------


@kinds
def test_a_float16_bank_costs_a_thousandth(kind: Kind) -> None:
    scene = Scene(**SCENES["9-encodings"], dtype=torch.float32)
    expected = scene.slow_loss(kind, 0.1, "anchors")
    scene.bank = scene.bank.half()
    loss = _loss(scene.anchors, scene.collect(), kind, reduction="anchors")
    assert loss.item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_anchors_are_compared_in_float32(dtype: torch.dtype) -> None:
    scene = Scene(**SCENES["9-encodings"], dtype=dtype)
    expected = scene.slow_loss("supervised", 0.05, "anchors")  # of the rounded encodings
    loss = _loss(scene.anchors, scene.collect(), "supervised", temperature=0.05, reduction="anchors")
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@reductions
def test_autocast_changes_no_digit_of_the_loss(reduction: Reduction) -> None:
    scene = Scene(**SCENES["9-encodings"], dtype=torch.float32)
    candidates = scene.collect()
    expected = _weighed(scene.anchors, candidates, 0.3, 3.0, reduction=reduction)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = _weighed(scene.anchors, scene.collect(), 0.3, 3.0, reduction=reduction)
    torch.testing.assert_close(loss, expected, atol=0, rtol=0)


def test_autocast_changes_no_digit_of_the_gradient() -> None:
    scene = Scene(**SCENES["9-encodings"], dtype=torch.float32)
    candidates = scene.collect()
    plain, cast = scene.anchors.clone().requires_grad_(), scene.anchors.clone().requires_grad_()
    _weighed(plain, candidates, 0.3, 3.0).backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = _weighed(cast, candidates, 0.3, 3.0)
    loss.backward()
    torch.testing.assert_close(cast.grad, plain.grad, atol=0, rtol=0)


# --- what collect_candidates lines up ----------------------------------------------------------------------------


def _lined_up(batch_labels: Tensor | None, bank_labels: Tensor | None) -> Candidates:
    return collect_candidates(
        torch.tensor([[1.0], [2.0]]),
        torch.tensor([[[10.0], [11.0]], [[20.0], [21.0]], [[30.0], [31.0]]]),
        batch_id=torch.tensor([5000, 7]),
        bank_id=torch.tensor([5000, 7, 4999]),
        batch_labels=batch_labels,
        bank_labels=bank_labels,
    )


def test_candidates_are_the_batch_then_each_row_with_its_encodings() -> None:
    candidates = _lined_up(None, None)
    assert candidates.encodings.flatten().tolist() == [1, 2, 10, 11, 20, 21, 30, 31]


def test_each_candidate_knows_its_example() -> None:
    assert _lined_up(None, None).example_id.tolist() == [5000, 7, 5000, 5000, 7, 7, 4999, 4999]


def test_each_candidate_knows_its_label() -> None:
    candidates = _lined_up(torch.tensor([2, 0]), torch.tensor([2, 0, 1]))
    assert candidates.labels.tolist() == [2, 0, 2, 2, 0, 0, 1, 1]


def test_without_labels_there_are_none() -> None:
    assert _lined_up(None, None).labels is None


def test_the_first_candidates_are_the_batch() -> None:
    assert _lined_up(None, None).n_batch == 2


# --- windows of one question -------------------------------------------------------------------------------------

# Questions by example id; several windows of one lie in the batch, among the extras, and on both sides.
GROUPED = {
    "one-encoding": {"batch_id": (0, 1, 5), "extra_id": (2, 3, 6), "n_snapshots": 1},
    "9-encodings": {"batch_id": (3, 0, 1, 5), "extra_id": (2, 4, 6, 7), "n_snapshots": 9},
    "one-question-fills-the-batch": {"batch_id": (0, 2, 1), "extra_id": (3, 4), "n_snapshots": 2},
    "siblings-among-the-extras-alone": {"batch_id": (0, 3), "extra_id": (1, 2, 4, 7), "n_snapshots": 3},
    "nothing-but-siblings": {"batch_id": (0, 1), "extra_id": (2,), "n_snapshots": 2},
    "one-window-twice": {"batch_id": (1, 2, 1), "extra_id": (0, 3), "n_snapshots": 2},
}
QUESTIONS = (4, 4, 4, 9, 9, 0, 1, 9)

grouped = pytest.mark.parametrize("scene", GROUPED.values(), ids=GROUPED)


def _windows(scene: dict[str, Any], groups: tuple[int, ...] | None = QUESTIONS) -> Scene:
    return Scene(labels=(0, 1, 0, 0, 1, 1, 0, 1), groups=groups, **scene)


@grouped
@kinds
@reductions
def test_windows_agree_with_a_loop_over_anchors_and_candidates(
    scene: dict[str, Any], kind: Kind, reduction: Reduction
) -> None:
    temperature = 0.3
    made = _windows(scene)
    weights = {"unsupervised": (0.5, 0.0), "supervised": (0.0, 0.5)}[kind]
    loss = _weighed(made.anchors, made.collect(), *weights, temperature=temperature, reduction=reduction)
    assert loss.item() == pytest.approx(0.5 * made.slow_loss(kind, temperature, reduction), abs=1e-9, rel=1e-9)


@grouped
def test_questions_of_one_window_change_no_digit(scene: dict[str, Any]) -> None:
    alone, without = _windows(scene, groups=tuple(range(8))), _windows(scene, groups=None)
    expected = _weighed(without.anchors, without.collect(), 0.3, 3.0)
    torch.testing.assert_close(_weighed(alone.anchors, alone.collect(), 0.3, 3.0), expected, atol=0, rtol=0)


def test_candidates_without_groups_have_none() -> None:
    assert _lined_up(None, None).group_id is None


def test_each_candidate_knows_its_question() -> None:
    made = Scene(batch_id=(2, 0), extra_id=(1,), labels=(0, 0, 0), n_snapshots=2, groups=(7, 8, 7))
    assert made.collect().group_id.tolist() == [7, 7, 7, 7, 7, 7, 8, 8]


def test_another_window_of_the_question_gets_no_say() -> None:
    scene = Scene(batch_id=(0, 1), extra_id=(2, 3), labels=(0, 0, 0, 0), n_snapshots=1, groups=(5, 5, 5, 6))
    candidates = scene.collect()
    loss = _weighed(scene.anchors[:1], _first(candidates), 1.0, 0.0)
    candidates.encodings[[1, 3, 4]] *= -1  # window 1 in the batch and in the bank, window 2 among the extras
    assert _weighed(scene.anchors[:1], _first(candidates), 1.0, 0.0).item() == loss.item()


def test_a_window_without_other_questions_is_certain() -> None:
    scene = Scene(batch_id=(0,), extra_id=(1, 2), labels=(0, 0, 0), n_snapshots=1, groups=(5, 5, 5))
    assert _weighed(scene.anchors, scene.collect(), 1.0, 0.0).item() == 0.0


def test_gradient_of_windows_is_that_of_finite_differences() -> None:
    scene = _windows(GROUPED["9-encodings"])
    candidates = scene.collect()
    anchors = scene.anchors.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: _weighed(z, candidates, 0.3, 2.0, temperature=0.5), (anchors,))


def _first(candidates: Candidates) -> Candidates:
    """Leave the first anchor alone before the same candidates."""
    return dataclasses.replace(candidates, n_batch=1)


# --- weights of a bank -------------------------------------------------------------------------------------------


@reductions
def test_the_supervised_term_is_left_out_without_labels(reduction: Reduction) -> None:
    scene = _two_examples()
    found = scene.collect()
    without = Candidates(encodings=found.encodings, example_id=found.example_id, labels=None, n_batch=2)
    loss = _weighed(scene.anchors, without, 0.5, 100.0, reduction=reduction)
    assert loss.item() == pytest.approx(0.5 * scene.slow_loss("unsupervised", 0.1, reduction), abs=1e-9)


@pytest.mark.parametrize(
    ("unsupervised", "supervised", "kind"),
    [(0.0, 2.0, "supervised"), (2.0, 0.0, "unsupervised")],
    ids=["supervised-alone", "unsupervised-alone"],
)
def test_a_weight_of_zero_switches_its_term_off(unsupervised: float, supervised: float, kind: Kind) -> None:
    scene = _two_examples()
    loss = _weighed(scene.anchors, scene.collect(), unsupervised, supervised)
    assert loss.item() == pytest.approx(2 * scene.slow_loss(kind, 0.1, "pairs"), abs=1e-9)


def test_both_weights_at_zero_give_zero() -> None:
    scene = _two_examples()
    assert _weighed(scene.anchors, scene.collect(), 0.0, 0.0).item() == 0.0


# --- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, -0.1], ids=["zero", "negative"])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    scene = _two_examples()
    with pytest.raises(ValueError, match=rf"contrast\.temperature .* must be > 0, got {temperature}"):
        _loss(scene.anchors, scene.collect(), "unsupervised", temperature=temperature)


def test_an_unknown_reduction_is_refused() -> None:
    # The annotation refuses it first where types are checked; users run without that check.
    unchecked = getattr(contrastive_loss, "__wrapped__", contrastive_loss)
    with pytest.raises(ValueError, match=r"contrast\.reduction must be 'pairs' or 'anchors', got 'mean'"):
        unchecked(
            torch.eye(2),
            torch.eye(2),
            torch.eye(2, dtype=torch.bool),
            is_self=torch.zeros(2, 2, dtype=torch.bool),
            temperature=0.1,
            reduction="mean",
        )
