"""Scores of pairs of encodings against slow references, and what is scored by chance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

N_PAIRS, DIM = 30, 8


def rows_of(firsts: list[str], seconds: list[str], scores: list[float] | None = None):
    from datasets import Dataset

    columns = {"first": firsts, "second": seconds} | ({} if scores is None else {"score": scores})
    return Dataset.from_dict(columns | {"example_id": list(range(len(firsts)))})


def task(*metrics: str):
    from cap.data.tasks import Task

    return Task(
        name="embed",
        kind="encoding",
        text_columns=("a", "b"),
        label_column="",
        labels=(),
        metrics=metrics,
        hub_path=None,
        hub_config=None,
    )


def encodings(n: int, seed: int = 0) -> torch.Tensor:
    drawn = torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=1)


def fill(metrics, vectors: torch.Tensor, order: list[int] | None = None) -> None:
    """Give the examples in two batches, in any order."""
    ids = torch.tensor(list(range(len(vectors))) if order is None else order)
    for part in ids.split(7):
        metrics.update(vectors[part], {"example_id": part})


def shuffled(n: int) -> list[int]:
    return torch.randperm(n, generator=torch.Generator().manual_seed(3)).tolist()


def test_spearman_is_the_correlation_of_ranks():
    from cap.data.likeness import PairMetrics

    vectors = encodings(2 * N_PAIRS)
    scores = [float(number % 11) + number / 100 for number in range(N_PAIRS)]
    metrics = PairMetrics(task("spearman"), rows_of(["x"] * N_PAIRS, ["y"] * N_PAIRS, scores))
    fill(metrics, vectors, shuffled(2 * N_PAIRS))
    cosines = [float(vectors[2 * n].double() @ vectors[2 * n + 1].double()) for n in range(N_PAIRS)]
    ranks = [np.argsort(np.argsort(values)) for values in (cosines, scores)]
    assert metrics.compute()["spearman"] == pytest.approx(float(np.corrcoef(*ranks)[0, 1]), abs=1e-5)
    assert not metrics.is_constant


def test_retrieval_agrees_with_a_slow_reference_where_texts_come_twice():
    from cap.data.likeness import PairMetrics

    # Queries and documents of five kinds less than rows: several documents are right for some queries.
    firsts = [f"q{n % 25}" for n in range(N_PAIRS)]
    seconds = [f"d{n % 28}" for n in range(N_PAIRS)]
    vectors = encodings(2 * N_PAIRS)
    for n in range(N_PAIRS):  # the same text has the same encoding
        vectors[2 * n] = vectors[2 * firsts.index(firsts[n])]
        vectors[2 * n + 1] = vectors[2 * seconds.index(seconds[n]) + 1]
    metrics = PairMetrics(task("recall_at_10", "ndcg_at_10"), rows_of(firsts, seconds), suffix="_x")
    fill(metrics, vectors, shuffled(2 * N_PAIRS))
    documents = {text: vectors[2 * n + 1] for n, text in enumerate(seconds)}
    recalls, gains = [], []
    for query in dict.fromkeys(firsts):
        right = {second for first, second in zip(firsts, seconds, strict=True) if first == query}
        place = firsts.index(query)
        best = sorted(documents, key=lambda text, own=2 * place: -float(vectors[own] @ documents[text]))[:10]
        recalls.append(len(right.intersection(best)) / len(right))
        gain = sum(1 / math.log2(rank + 2) for rank, text in enumerate(best) if text in right)
        gains.append(gain / sum(1 / math.log2(rank + 2) for rank in range(len(right))))
    found = metrics.compute()
    assert found["recall_at_10_x"] == pytest.approx(np.mean(recalls), abs=1e-6)
    assert found["ndcg_at_10_x"] == pytest.approx(np.mean(gains), abs=1e-6)
    assert 0 < found["ndcg_at_10_x"] < found["recall_at_10_x"] < 1


def test_encodings_that_agree_find_every_document():
    from cap.data.likeness import PairMetrics

    texts = [str(n) for n in range(N_PAIRS)]
    metrics = PairMetrics(task("recall_at_10", "ndcg_at_10"), rows_of(texts, texts))
    fill(metrics, encodings(N_PAIRS).repeat_interleave(2, dim=0))
    assert metrics.compute() == {"recall_at_10": 1.0, "ndcg_at_10": 1.0}


def test_chance_is_the_mean_over_random_orders():
    from cap.data.likeness import PairMetrics

    firsts, seconds = [f"q{n // 2}" for n in range(40)], [f"d{n}" for n in range(40)]
    metrics = PairMetrics(task("recall_at_10", "ndcg_at_10"), rows_of(firsts, seconds))
    scores = []
    for seed in range(30):
        fill(metrics, encodings(80, seed))
        scores.append(metrics.compute())
        metrics.reset()
    expected = metrics.by_chance()
    assert expected["recall_at_10"] == 0.25
    for name, value in expected.items():
        assert np.mean([found[name] for found in scores]) == pytest.approx(value, abs=0.03)


def test_part_of_the_rows_is_searched_among_its_own_documents():
    from cap.data.likeness import PairMetrics

    texts = [str(n) for n in range(N_PAIRS)]
    metrics = PairMetrics(task("recall_at_10"), rows_of(texts, texts))
    # Eleven documents of which each query's own is the least like it.
    queries = encodings(11)
    ids = torch.arange(10, 32)
    metrics.update(torch.stack([queries, -queries], dim=1).flatten(0, 1), {"example_id": ids})
    assert metrics.compute()["recall_at_10"] == 0.0


def test_states_of_processes_add_up():
    from cap.data.likeness import PairMetrics

    texts = [str(n) for n in range(N_PAIRS)]
    parts = [PairMetrics(task("ndcg_at_10"), rows_of(texts, texts)) for _ in range(3)]
    vectors, order = encodings(2 * N_PAIRS), shuffled(2 * N_PAIRS)
    fill(parts[0], vectors, order[:25])
    fill(parts[1], vectors, order[25:])
    fill(parts[2], vectors)
    whole = parts[2].compute()
    parts[2].merge([part.state() for part in parts[:2]])
    assert parts[2].compute() == whole


def test_one_text_of_a_pair_is_no_pair():
    from cap.data.likeness import PairMetrics

    metrics = PairMetrics(task("spearman"), rows_of(["x"] * 2, ["y"] * 2, [0.0, 1.0]))
    metrics.update(encodings(2), {"example_id": torch.tensor([0, 2])})
    with pytest.raises(ValueError, match="both of their texts"):
        metrics.compute()


def test_model_that_says_the_same_of_all_texts_scores_nothing_and_is_called_constant():
    from cap.data.likeness import PairMetrics

    metrics = PairMetrics(task("spearman", "pearson"), rows_of(["x"] * 3, ["y"] * 3, [0.0, 1.0, 2.0]))
    fill(metrics, encodings(1).expand(6, -1))
    assert metrics.is_constant
    assert metrics.compute() == metrics.by_chance() == {"spearman": 0.0, "pearson": 0.0}
