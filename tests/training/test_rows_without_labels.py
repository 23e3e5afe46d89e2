"""What the student learns from rows without a label, and what it does not."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.training.share_program import CASES, LABELS, N_EXAMPLES, make_batch, make_module

CE_WEIGHT, KD_WEIGHT, TEMPERATURE = 0.1, 0.9, 2.0  # of CASES
UNSUPERVISED, SUPERVISED, CONTRAST_TEMPERATURE = 0.5, 3.0, 0.1  # of make_module
MIXED = [3, 20, 0, 31, 6, 12]  # the first eleven examples have a label: three of these


@pytest.fixture
def make(tmp_path):
    """Make a module whose examples from ``n_labelled`` on have no label; its student is in eval mode."""

    def make_with(n_labelled: int = 11, *, kind: str = "classes", **contrast):
        case = replace(CASES["soft movement"], kind=kind, n_labelled=n_labelled)
        settings = None if contrast.pop("off", False) else {"extra_examples": 0, **contrast}
        return make_module(replace(case, contrast=settings), tmp_path).eval()

    return make_with


def terms_of(module, ids: list[int] = MIXED, *, kind: str = "classes", n_labelled: int = 11):
    batch = make_batch(ids, kind, n_labelled)
    return module.loss_terms(module(batch), batch)


def slow_cross_entropy(logits: list[list[float]], labels: list[int]) -> float:
    losses = [math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits, labels, strict=True)]
    return sum(losses) / len(losses)


def slow_contrast(module, ids: list[int], n_labelled: int, source: str, reduction: str) -> float:
    """Follow the definition pair by pair: the supervised half knows anchors and candidates with a label only."""
    anchors = torch.nn.functional.normalize(module(make_batch(ids, "classes", n_labelled)).pooled, dim=-1).tolist()
    bank = module.memory.gather(source, torch.tensor(ids)).tolist()
    classes = {example: int(LABELS["classes"][example]) if example < n_labelled else None for example in ids}
    total = 0.0
    for is_supervised, weight in ((False, UNSUPERVISED), (True, SUPERVISED)):
        losses = []
        for example, anchor in zip(ids, anchors, strict=True):
            candidates = [pair for pair in zip(ids, anchors, strict=True) if pair[0] != example]
            candidates += [(other, row) for other, rows in zip(ids, bank, strict=True) for row in rows]
            if is_supervised:
                candidates = [pair for pair in candidates if classes[pair[0]] is not None]
            similarity = [sum(a * b for a, b in zip(anchor, row, strict=True)) for _, row in candidates]
            log_sum = math.log(sum(math.exp(value / CONTRAST_TEMPERATURE) for value in similarity) or 1.0)
            is_positive = [
                classes[other] is not None and classes[other] == classes[example] if is_supervised else other == example
                for other, _ in candidates
            ]
            positives = [value for value, is_one in zip(similarity, is_positive, strict=True) if is_one]
            losses.append([log_sum - value / CONTRAST_TEMPERATURE for value in positives])
        means = [sum(one) / len(one) for one in losses if one]
        count = len(means) if reduction == "anchors" else sum(map(len, losses))
        total += weight * sum(means) / max(count, 1)
    return total


def test_labels_count_where_there_are_any(make):
    module = make()
    logits = module(make_batch(MIXED, "classes")).logits
    expected = CE_WEIGHT * slow_cross_entropy(logits[[0, 2, 4]].tolist(), LABELS["classes"][[3, 0, 6]].tolist())
    assert terms_of(module)["ce"].item() == pytest.approx(expected, rel=1e-5)


def test_values_count_where_there_are_any(make):
    module = make(kind="number", off=True)
    module.memory.teacher_logits = lambda example_id: torch.zeros(len(example_id), 1)
    answers, labels = module(make_batch(MIXED, "number")).logits[:, 0].tolist(), LABELS["number"].tolist()
    expected = CE_WEIGHT * sum((answers[i] - labels[MIXED[i]]) ** 2 for i in (0, 2, 4)) / 3
    assert terms_of(module, kind="number")["ce"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["classes", "number"])
def test_no_label_at_all_is_zero_and_differentiable(make, kind):
    module = make(kind=kind, off=True)
    module.memory.teacher_logits = lambda example_id: torch.zeros(len(example_id), 3 if kind == "classes" else 1)
    loss = terms_of(module, [20, 21], kind=kind)["ce"]
    loss.backward()
    assert loss.item() == 0.0
    assert module.student.model.classifier.weight.grad.count_nonzero() == 0


def test_the_teacher_answers_for_all_rows(make):
    module = make()
    student = module(make_batch(MIXED, "classes")).logits.div(TEMPERATURE).log_softmax(dim=1).tolist()
    teacher = module.memory.teacher_logits(torch.tensor(MIXED)).float().div(TEMPERATURE).log_softmax(dim=1).tolist()
    divergence = [
        sum(math.exp(p) * (p - q) for p, q in zip(of_teacher, of_student, strict=True))
        for of_teacher, of_student in zip(teacher, student, strict=True)
    ]
    expected = KD_WEIGHT * TEMPERATURE**2 * sum(divergence) / len(MIXED)
    assert terms_of(module)["kd"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("reduction", ["pairs", "anchors"])
@pytest.mark.parametrize("n_labelled", [0, 11, N_EXAMPLES], ids=["no label", "some", "all"])
@pytest.mark.parametrize(("source", "term"), [("pretrained", "prc"), ("snapshots", "snc"), ("finetuned", "fic")])
def test_contrast_agrees_with_a_loop_over_pairs(make, source, term, n_labelled, reduction):
    module = make(n_labelled, reduction=reduction)
    expected = slow_contrast(module, MIXED, n_labelled, source, reduction)
    assert terms_of(module, n_labelled=n_labelled)[term].item() == pytest.approx(expected, rel=1e-4)


def test_supervised_contrast_of_rows_without_any_label_is_nothing(make):
    terms = terms_of(make(unsupervised_weight=0.0), [20, 21, 22])
    assert [terms[name].item() for name in ("prc", "snc", "fic")] == [0.0, 0.0, 0.0]


def test_extra_examples_without_a_label_are_positives_of_nothing(make):
    # Two examples have a label, and both are in the batch: whatever else is drawn has none.
    drawn = make(2, unsupervised_weight=0.0, extra_examples=36)
    batch = [0, 1, 20]
    candidates = drawn.contrast._classes(torch.tensor([5, 0, 30]), torch.device("cpu"), n_before=3).tolist()
    assert candidates == [-4, 0, -6]
    assert drawn.contrast._classes(torch.tensor(batch), torch.device("cpu")).tolist() == [0, 1, -3]


def test_rows_that_all_have_a_label_are_as_if_nothing_had_been_said(make):
    module = make(N_EXAMPLES)
    said, plain = make_batch(MIXED, "classes", N_EXAMPLES), make_batch(MIXED, "classes")
    said_terms, plain_terms = (module.loss_terms(module(batch), batch) for batch in (said, plain))
    torch.testing.assert_close(said_terms, plain_terms, atol=0, rtol=0)


def test_no_loss_reads_what_stands_in_place_of_a_label(make):
    module = make()
    batch = make_batch(MIXED, "classes", 11)
    expected = module.loss_terms(module(batch), batch)
    batch["labels"][~batch["is_labelled"]] = -100
    torch.testing.assert_close(module.loss_terms(module(batch), batch), expected, atol=0, rtol=0)
