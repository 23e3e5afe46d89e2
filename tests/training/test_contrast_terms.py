"""Which rows of a bank a batch is compared with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

N_EXAMPLES, DIM = 40, 4


@pytest.fixture
def terms():
    """Terms with one encoding of each example in one bank, and two in the other."""
    from cap.base.memory_budget import MemoryBudget
    from cap.objectives.memory import Memory
    from cap.training.contrast import Contrast, ContrastiveTerms

    memory = Memory(n_examples=N_EXAMPLES, budget=MemoryBudget(1.0))
    rows = np.random.default_rng(0).standard_normal((N_EXAMPLES, DIM))
    encodings = torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16))
    for source in ("pretrained", "snapshots", "snapshots"):
        memory.add(source, encodings)
    settings = Contrast(
        sources=("pretrained", "snapshots"),
        unsupervised_weight=1.0,
        supervised_weight=1.0,
        temperature=0.1,
        extra_examples=8,
        reduction="anchors",
        anchor_dropout=0.0,
        seed=0,
    )
    return ContrastiveTerms(
        settings, memory, labels=torch.arange(N_EXAMPLES) % 3, groups=None, extras=torch.Generator().manual_seed(0)
    )


@pytest.mark.parametrize("is_training", [True, False])
def test_anchors_are_dropped_out_in_training_alone(terms, is_training) -> None:
    import dataclasses

    from cap.training.parallel.ranks import ALONE

    pooled, batch = torch.randn(3, DIM, generator=torch.Generator().manual_seed(0)), {"example_id": torch.arange(3)}

    def unsupervised(dropout: float) -> list[float]:
        terms.settings = dataclasses.replace(terms.settings, anchor_dropout=dropout, extra_examples=0)
        torch.manual_seed(1)
        found = terms.of_batch(pooled, batch, ALONE, ALONE.share(3), is_training=is_training)
        return [float(value) for _, value in found]

    assert (unsupervised(0.5) != unsupervised(0.0)) is is_training


def test_extra_examples_are_shared_out_over_the_encodings_of_a_bank(terms, monkeypatch) -> None:
    from cap.training import contrast
    from cap.training.parallel.ranks import ALONE

    seen = []
    plain = contrast.collect_candidates
    monkeypatch.setattr(
        contrast, "collect_candidates", lambda *given, **keys: seen.append(keys) or plain(*given, **keys)
    )
    ids = torch.tensor([3, 1, 7])
    found = dict(terms.of_batch(torch.randn(3, DIM), {"example_id": ids}, ALONE, ALONE.share(3), is_training=True))
    assert list(found) == ["prc", "snc"]
    of_one, of_two = (keys["bank_id"] for keys in seen)
    assert (len(of_one), len(of_two)) == (3 + 8, 3 + 4)
    assert of_one[:3].tolist() == of_two[:3].tolist() == ids.tolist()
    assert of_two.tolist() == of_one[:7].tolist()  # of one draw
    for keys in seen:
        assert keys["batch_labels"].tolist() == (ids % 3).tolist()
        assert keys["bank_labels"].tolist() == (keys["bank_id"] % 3).tolist()
