"""CapModule on texts with any number of labels: each label learned and distilled on its own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from tests.training.small_modules import SIZES, settings

N_ROWS, DIM, N_LABELS = 6, 32, 3
LABELS = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 0, 0]], dtype=torch.int8)
TEACHER = np.random.default_rng(9).standard_normal((N_ROWS, N_LABELS)).astype(np.float16)


@pytest.fixture
def make_module(tmp_path):
    """Make a CapModule around a two-layer BERT, with a bank and a teacher's logits."""

    def make(supervised_weight: float = 10.0):
        from transformers import BertConfig, BertForSequenceClassification

        from cap.models.pooled import PooledModel
        from cap.objectives.memory import Memory
        from cap.training.module import CapModule

        torch.manual_seed(0)
        model = BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=N_LABELS, **SIZES))
        bank = np.random.default_rng(3).standard_normal((N_ROWS, DIM))
        np.save(tmp_path / "bank.npy", (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float16))
        np.save(tmp_path / "logits.npy", TEACHER)
        memory = Memory(n_examples=N_ROWS)
        memory.add("pretrained", tmp_path / "bank.npy")
        memory.set_teacher_logits(tmp_path / "logits.npy")
        wanted = settings(memory, supervised_weight=supervised_weight, extra_examples=3)
        return CapModule(PooledModel(model, "first_token"), train_labels=LABELS, **wanted).eval()

    return make


def batch(ids: list[int], **more: Tensor) -> dict[str, Tensor]:
    tokens = torch.randint(5, 20, (N_ROWS, 7), generator=torch.Generator().manual_seed(1))[ids]
    mask = torch.ones_like(tokens)
    return {"input_ids": tokens, "attention_mask": mask, "labels": LABELS[ids], "example_id": torch.tensor(ids), **more}


def terms_of(module: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    return module.loss_terms(module(given), given)


def logits_of(module: Any, ids: list[int]) -> Tensor:
    return module(batch(ids)).logits.detach()


def test_label_term_is_binary_cross_entropy_over_rows_and_labels(make_module):
    module, ids = make_module(), [0, 1, 3, 5]
    expected = binary_cross_entropy_with_logits(logits_of(module, ids), LABELS[ids].float())
    assert terms_of(module, batch(ids))["ce"].item() == pytest.approx(0.1 * expected.item(), rel=1e-5)


def test_rows_without_labels_teach_none(make_module):
    module, ids = make_module(), [0, 4, 2]
    given = batch(ids, is_labelled=torch.tensor([True, False, True]))
    given["labels"] = given["labels"].clone()
    given["labels"][1] = -100
    expected = binary_cross_entropy_with_logits(logits_of(module, [0, 2]), LABELS[[0, 2]].float())
    assert terms_of(module, given)["ce"].item() == pytest.approx(0.1 * expected.item(), rel=1e-5)


def test_distillation_term_compares_having_each_label_with_not_having_it(make_module):
    module, ids = make_module(), [5, 0, 2]
    losses = []
    for own, wanted in zip(logits_of(module, ids).flatten().tolist(), TEACHER[ids].flatten().tolist(), strict=True):
        p, q = 1 / (1 + math.exp(-wanted / 2)), 1 / (1 + math.exp(-own / 2))
        losses.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    expected = 0.9 * 2.0**2 * sum(losses) / len(losses)
    assert terms_of(module, batch(ids))["kd"].item() == pytest.approx(expected, rel=1e-4)


def test_only_the_same_text_is_a_positive(make_module):
    first, second = (terms_of(make_module(weight), batch([0, 3, 5]))["prc"].item() for weight in (10.0, 0.0))
    assert first == second > 0


@pytest.mark.parametrize(
    ("kind", "problem", "said"),
    [
        ("label_sets", "single_label_classification", "trained for multi_label_classification as this task is, got x"),
        ("classes", "multi_label_classification", "trained for single_label_classification as this task is, got x"),
    ],
)
def test_a_teacher_of_the_other_kind_of_labels_is_refused(kind, problem, said):
    from transformers import BertConfig

    from cap.base.errors import InputError
    from cap.base.kinds import Head
    from cap.training.given_teacher import check_labels

    config = BertConfig(id2label={0: "a", 1: "b"}, problem_type=problem)
    with pytest.raises(InputError, match=said):
        check_labels(config, head=Head(kind, ("a", "b")), name="x")
