"""What an accelerator does, run on the CPU: both ways must choose the same entries, ties included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cap.base.errors import RunError
from cap.models.families import Prunable
from cap.pruning import masks, patterns
from cap.pruning.first_order import FirstOrder
from cap.pruning.magnitude import Magnitude
from cap.pruning.masks import keep_highest, keep_highest_of_each
from cap.pruning.movement import Movement
from cap.pruning.random import Random
from cap.pruning.selection import keep_highest_of_rows
from cap.pruning.soft_movement import SoftMovement
from cap.pruning.weights import WeightPruner
from tests.pruning.operators import Calls


def on_device(monkeypatch) -> None:
    """Select as on an accelerator, wherever the tensors are."""
    for module in (masks, patterns):
        monkeypatch.setattr(module, "selects_on_host", lambda values: False)


def tensor(kind: str, *shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(shape, generator=generator)
    return {
        "distinct": drawn,
        "few values": drawn.round(),
        "all equal": torch.zeros(shape),
        "zeros of both signs": torch.where(drawn > 0, 0.0, -0.0),
        "halves": drawn.bfloat16(),
        "infinities": drawn.masked_fill(drawn > 1, math.inf).masked_fill(drawn < -1, -math.inf),
        "the ends of the range": torch.where(drawn > 0, 3.4e38, -3.4e38) * (drawn.abs() > 0.5),
        "denormal": drawn * 1e-42,
    }[kind]


KINDS = [
    "distinct",
    "few values",
    "all equal",
    "zeros of both signs",
    "halves",
    "infinities",
    "the ends of the range",
    "denormal",
]


@pytest.mark.parametrize("ties", ["distinct", "few values", "all equal"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_keep_what_the_cpu_keeps(kind: str, ties: str) -> None:
    importance, tie_breaker = tensor(kind, 41, 40), tensor(ties, 41, 40, seed=1)
    found = keep_highest_of_rows(importance, list(range(41)), tie_breaker=lambda: tie_breaker)
    expected = [keep_highest(importance[n], n, tie_breaker=lambda n=n: tie_breaker[n]) for n in range(41)]
    assert torch.equal(found, torch.stack(expected))


def test_what_is_no_number_is_refused() -> None:
    importance = tensor("distinct", 3, 40)
    importance[1, 7] = importance[2, 0] = math.nan
    with pytest.raises(RunError, match=r"a number for every weight, got 2 of 120 that are none \(NaN\)"):
        keep_highest_of_rows(importance, [10, 20, 30], tie_breaker=lambda: importance)


def test_the_count_is_exact_in_a_large_row() -> None:
    importance = tensor("halves", 1, 300_000)
    mask = keep_highest_of_rows(importance, [123_457], tie_breaker=lambda: importance)
    assert int((~mask).sum()) == 123_457


def test_tie_breaker_is_not_asked_where_no_tie_is_cut() -> None:
    def refuse() -> Tensor:
        raise AssertionError("no tie to break")

    mask = keep_highest_of_rows(torch.tensor([[1.0, 2.0, 1.0, 2.0]] * 3), [0, 2, 4], tie_breaker=refuse)
    assert (~mask).sum(dim=1).tolist() == [0, 2, 4]


def test_one_tensor_is_selected_from_as_on_the_cpu(monkeypatch) -> None:
    importance, ties = tensor("few values", 6, 10), tensor("few values", 6, 10, seed=1)
    expected = [keep_highest(importance, n, tie_breaker=lambda: ties) for n in range(61)]
    on_device(monkeypatch)
    found = [keep_highest(importance, n, tie_breaker=lambda: ties) for n in range(61)]
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_tensors_of_several_shapes_keep_their_names_and_order(monkeypatch) -> None:
    on_device(monkeypatch)
    shapes = {"a": (2, 6), "b": (5, 2), "c": (3, 4)}
    importance = {name: torch.arange(12.0)[: math.prod(shape)].view(shape) for name, shape in shapes.items()}
    found = keep_highest_of_each(importance, {"a": 1, "b": 9, "c": 12}, tie_breaker=importance.__getitem__)
    assert {name: (mask.shape, int(mask.sum())) for name, mask in found.items()} == {
        "a": ((2, 6), 11),
        "b": ((5, 2), 1),
        "c": ((3, 4), 0),
    }
    assert list(found) == ["a", "b", "c"]


def soft(threshold: str, score_init: str) -> SoftMovement:
    return SoftMovement(
        score_learning_rate=0.01,
        threshold=threshold,
        regularizer_weight=0.0,
        final_sparsity=0.99,
        score_init=score_init,
    )


PRUNERS = {
    "magnitude": Magnitude,
    "global magnitude": lambda: Magnitude(scope="global"),
    "random": Random,
    "first order": lambda: FirstOrder(scope="matrix"),
    "movement": lambda: Movement(score_learning_rate=0.01, score_init="zero"),
    "soft movement": lambda: soft("target", "magnitude"),
    "soft movement as published": lambda: soft("published", "zero"),
    "2:4": lambda: Magnitude(pattern="2:4"),
    "4:8 over all matrices": lambda: FirstOrder(scope="global", pattern="4:8"),
}
every_pruner = pytest.mark.parametrize("kind", PRUNERS)


def attached(kind: str, n_more: int = 0) -> WeightPruner:
    """Put masks on matrices of two sizes, one of which is far less important than the others."""
    torch.manual_seed(0)
    shapes = {"query": (20, 40), "wide": (40, 80), "key": (20, 40), **{f"more{i}": (20, 40) for i in range(n_more)}}
    linears = {name: nn.Linear(columns, rows) for name, (rows, columns) in shapes.items()}
    with torch.no_grad():
        linears["key"].weight *= 0.01
    pruner = PRUNERS[kind]()
    pruner.attach(Prunable(linears=linears, heads={}, ffn={}), seed=1)
    return pruner


def drawn(kind: str, *, ties: bool) -> WeightPruner:
    pruner = attached(kind)
    for name in pruner.masks if pruner.learns_scores else ():
        scores = tensor("few values" if ties else "distinct", *pruner.masks[name].shape, seed=len(name))
        pruner.importance(name).data.copy_(scores - 3.0 * (name == "key"))
    return pruner


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@every_pruner
def test_masks_are_those_of_the_cpu(monkeypatch, kind: str, ties: bool) -> None:
    targets = (0.1, 0.25, 0.5) if ":" in kind else (0.1, 0.5, 0.97)
    pruner = drawn(kind, ties=ties)
    expected = [(pruner.update_masks(sparsity), _copied(pruner)) for sparsity in targets]
    on_device(monkeypatch)
    pruner = drawn(kind, ties=ties)
    found = [(pruner.update_masks(sparsity), _copied(pruner)) for sparsity in targets]
    for (counts, chosen), (expected_counts, expected_masks) in zip(found, expected, strict=True):
        assert counts == expected_counts
        assert all(np.array_equal(chosen[name], mask) for name, mask in expected_masks.items())


# What makes the host wait for the device: a number that is read, and shapes that follow from values.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select")


@every_pruner
def test_the_host_waits_for_the_device_as_often_however_many_matrices_there_are(monkeypatch, kind: str) -> None:
    on_device(monkeypatch)
    n_waits = []
    for n_more in (0, 20):
        pruner = attached(kind, n_more)
        with Calls() as calls:
            pruner.update_masks(0.25)
        n_waits.append(sum(calls.n[name] for name in WAITS))
        assert "kthvalue" not in calls.n
        assert "sort" not in calls.n or ":" in kind
    assert n_waits[0] == n_waits[1] <= 10


def test_masks_of_the_cpu_are_counted_in_one_go() -> None:
    n_reads = []
    for n_more in (0, 20):
        pruner = attached("magnitude", n_more)
        pruner.update_masks(0.25)
        with Calls() as calls:
            masks.count_kept(pruner.masks.values())
        n_reads.append(calls.n["_local_scalar_dense"])
    assert n_reads[0] == n_reads[1] <= 1


@pytest.mark.gpu
@every_pruner
def test_masks_on_cuda_are_those_of_the_cpu_and_deterministic(kind: str) -> None:
    expected = drawn(kind, ties=True)
    expected.update_masks(0.25)
    pruner = drawn(kind, ties=True)
    for linear in pruner._linears.values():
        linear.cuda()
    torch.use_deterministic_algorithms(True)
    try:
        pruner.update_masks(0.25)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, mask in pruner.masks.items():
        assert torch.equal(mask.cpu(), expected.masks[name])


def _copied(pruner: WeightPruner) -> dict[str, np.ndarray]:
    return {name: mask.numpy().copy() for name, mask in pruner.masks.items()}


@pytest.mark.parametrize("kind", ["distinct", "few values", "all equal", "the ends of the range"])
@pytest.mark.parametrize("n", [8 * 255 - 1, 8 * 255, 8 * 255 + 1, 5000])
def test_rows_of_any_length_are_counted_whole(kind, n):
    rows, by_index = tensor(kind, 3, n), torch.arange(3 * n, 0, -1.0).view(3, n)
    n_pruned = [0, n // 3, n]
    kept = keep_highest_of_rows(rows, n_pruned, tie_breaker=lambda: by_index)
    for row, mask, k in zip(rows, kept, n_pruned, strict=True):
        order = sorted(range(n), key=lambda place: (-float(row[place]), place))
        assert sorted(order[: n - k]) == mask.nonzero().flatten().tolist()
