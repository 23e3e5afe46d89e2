"""How well cosine similarities of encodings order pairs of texts, or find the document of a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import datasets
import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torchmetrics.retrieval import RetrievalNormalizedDCG, RetrievalRecall
from torchmetrics.retrieval.base import RetrievalMetric

from cap.data.metrics import CORRELATIONS
from cap.data.pairs import PAIR, SCORE, SCORES_OF_RETRIEVAL, TOP
from cap.data.tasks import Task

_RETRIEVAL: dict[str, type[RetrievalMetric]] = dict(
    zip(SCORES_OF_RETRIEVAL, (RetrievalRecall, RetrievalNormalizedDCG), strict=True)
)
# Queries whose similarities with all documents are in memory together.
_QUERIES_PER_PART = 256
_LOWEST = -2.0  # below every cosine


class PairMetrics:
    """Collect the encodings of pairs and score their similarities.

    Where pairs have scores, similarities are correlated with those. Elsewhere each first text is a query, and every
    different second text of the rows that were seen is a document; those that the query stands beside in some row are
    the right ones.

    Args:
        task: Its metrics are the keys of the result.
        rows: The pairs, see ``cap.data.pairs.read_pairs``.
        suffix: Follows every key, to tell the splits of a task apart.
    """

    def __init__(self, task: Task, rows: datasets.Dataset, *, suffix: str = "") -> None:
        self._names = {f"{name}{suffix}": name for name in task.metrics}
        has_scores = SCORE in rows.column_names
        self._scores = (
            torch.from_numpy(np.array(rows.data.column(SCORE).to_numpy(), dtype=np.float64)) if has_scores else None
        )
        self._texts = () if has_scores else tuple(_numbers(rows, name) for name in PAIR)
        self.reset()

    def reset(self) -> None:
        """Forget every encoding seen so far."""
        self._encodings: list[Tensor] = []
        self._example_id: list[Tensor] = []

    def update(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        """Add one batch.

        Args:
            logits: The encodings, ``(batch, dim)``, L2-normalised, any float type, any device.
            batch: Its ``example_id`` says which texts they are of.
        """
        self._encodings.append(logits.detach().float().cpu())
        self._example_id.append(batch["example_id"].detach().cpu())

    def state(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return encodings and example numbers since the last reset."""
        return self._encodings, self._example_id

    def merge(self, states: Sequence[tuple[list[Tensor], list[Tensor]]]) -> None:
        """Become the metrics that have seen all texts of several states, in place of their own."""
        self._encodings = [part for encodings, _ in states for part in encodings]
        self._example_id = [part for _, example_id in states for part in example_id]

    def compute(self) -> dict[str, float]:
        """Score every pair since the last reset.

        Returns:
            One fraction per metric of the task, correlations in [-1, 1] and 0.0 for a constant, the rest in [0, 1].

        Raises:
            ValueError: If there was no pair, or one text of a pair without the other.
        """
        first, second, rows = self._pairs()
        if self._scores is not None:
            found, wanted = similarities(first, second), self._scores[rows]
            return {key: float(CORRELATIONS[name](found, wanted, 1)) for key, name in self._names.items()}
        queries, documents, is_right = self._searched(rows)
        measured = {key: _RETRIEVAL[name](top_k=TOP) for key, name in self._names.items()}
        for start in range(0, len(queries), _QUERIES_PER_PART):
            part = slice(start, start + _QUERIES_PER_PART)
            scores, right, numbers = _best(first[queries[part]] @ second[documents].T, is_right(part))
            for metric in measured.values():
                metric.update(scores, right, indexes=numbers + start)
        return {key: float(metric.compute()) for key, metric in measured.items()}

    def by_chance(self) -> dict[str, float]:
        """Return what all pairs together score if documents are in random order, and similarities tell nothing."""
        if self._scores is not None:
            return dict.fromkeys(self._names, 0.0)
        _, documents, is_right = self._searched(torch.arange(len(self._texts[0])))
        n_right = is_right.counts().double()
        n_seen = min(TOP, len(documents))
        gains = 1 / torch.arange(2, TOP + 2).double().log2()
        ideal = gains.cumsum(dim=0)[n_right.long().clamp(max=TOP) - 1]
        expected = {
            SCORES_OF_RETRIEVAL[0]: n_seen / len(documents),
            SCORES_OF_RETRIEVAL[1]: float((n_right / len(documents) * gains[:n_seen].sum() / ideal).mean()),
        }
        return {key: expected[name] for key, name in self._names.items()}

    @property
    def is_constant(self) -> bool:
        """Say whether one and the same encoding was given to every text since the last reset."""
        encodings = torch.cat(self._encodings) if self._encodings else torch.empty(0)
        return bool((encodings == encodings[:1]).all())

    def _pairs(self) -> tuple[Tensor, Tensor, Int64[Tensor, " pairs"]]:
        """Return the encodings of first and second texts, and their row numbers, ordered by these."""
        if not self._encodings:
            raise ValueError("metrics need at least one pair, got none; call update before compute")
        example_id, order = torch.cat(self._example_id).sort()
        rows = example_id[::2] // 2
        whole = torch.stack([2 * rows, 2 * rows + 1], dim=1).flatten()
        if not torch.equal(whole, example_id):
            raise ValueError("pairs are scored with both of their texts, each of them once")
        encodings = torch.cat(self._encodings)[order]
        return encodings[::2], encodings[1::2], rows

    def _searched(self, rows: Int64[Tensor, " pairs"]) -> tuple[Tensor, Tensor, _Right]:
        """Find where each different query and document of some rows stands among them, and what belongs together."""
        (queries, query), (documents, document) = (_first_places(numbers[rows]) for numbers in self._texts)
        return queries, documents, _Right(query, document, len(queries), len(documents))


class _Right:
    """Say which documents are right for some of the queries."""

    def __init__(self, query: Tensor, document: Tensor, n_queries: int, n_documents: int) -> None:
        self._pairs = torch.stack([query, document]).unique(dim=1)
        self._shape = (n_queries, n_documents)

    def counts(self) -> Int64[Tensor, " queries"]:
        """Count the right documents of every query."""
        return torch.bincount(self._pairs[0], minlength=self._shape[0])

    def __call__(self, part: slice) -> Bool[Tensor, "queries documents"]:
        start, stop, _ = part.indices(self._shape[0])
        query, document = self._pairs[:, (self._pairs[0] >= start) & (self._pairs[0] < stop)]
        is_right = torch.zeros(stop - start, self._shape[1], dtype=torch.bool)
        is_right[query - start, document] = True
        return is_right


def similarities(first: Float[Tensor, "pairs dim"], second: Float[Tensor, "pairs dim"]) -> Float[Tensor, " pairs"]:
    """Return the cosine similarities of pairs of encodings, in float64."""
    return (first.double() * second.double()).sum(dim=1)


def _best(
    similar: Float[Tensor, "queries documents"], is_right: Bool[Tensor, "queries documents"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Pick each query's best documents and its right ones: no other changes its scores.

    Returns:
        Flat: similarities, whether the document is right, and the number of the query.
    """
    similar = similar.nan_to_num(_LOWEST)
    best = similar.topk(min(TOP, similar.shape[1]), dim=1).indices
    is_picked = is_right.scatter(1, best, True)
    return similar[is_picked], is_right[is_picked], is_picked.nonzero()[:, 0]


def _numbers(rows: datasets.Dataset, name: str) -> Int64[Tensor, " rows"]:
    """Number the different texts of a column."""
    known: dict[str, int] = {}
    return torch.tensor([known.setdefault(text, len(known)) for text in rows.data.column(name).to_pylist()])


def _first_places(numbers: Int64[Tensor, " rows"]) -> tuple[Tensor, Tensor]:
    """Return the first place of each different number, and for every place which of those it is."""
    _, first, inverse = np.unique(numbers.numpy(), return_index=True, return_inverse=True)
    return torch.from_numpy(first), torch.from_numpy(inverse)


__all__ = ["PairMetrics", "similarities"]
