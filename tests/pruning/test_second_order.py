"""Which weights second order prunes, and where it moves the others."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import cap
from cap.base.errors import RunError
from cap.models.families import Prunable, prunable
from cap.pruning.moves import MaskMoves
from cap.pruning.pruner import Room
from cap.pruning.second_order import SecondOrder
from tests.models.tiny_models import tiny_batch, tiny_classifier
from tests.pruning.operators import Calls


def gradients_of(pruner: SecondOrder, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        torch.randn(weight.shape, generator=generator, dtype=torch.float64).to(weight)
        for weight in pruner.gate_parameters()
    ]
    return [gradient * mask for gradient, mask in zip(drawn, pruner.masks.values(), strict=True)]


def measure(pruner: SecondOrder, n: int = 20) -> None:
    """Let a pruner see random gradients, as a pass would."""
    pruner.forget_importance()
    for seed in range(n):
        pruner.observe_importance(gradients_of(pruner, seed))


def attached(linears: dict[str, nn.Linear], **options: Any) -> SecondOrder:
    pruner = SecondOrder(**options)
    pruner.attach(Prunable(linears), seed=0)
    return pruner


# --- a loss that is quadratic


def quadratic(n_inputs: int = 12) -> tuple[SecondOrder, Tensor, Tensor]:
    """Return a pruner whose one block is the whole matrix, the best weights of a quadratic loss, and its Hessian."""
    torch.manual_seed(0)
    linear = nn.Linear(n_inputs, 1, dtype=torch.float64)
    pruner = attached({"one": linear}, block_size=n_inputs, damping=1e-3, damping_mode="absolute")
    measure(pruner, n=30)
    rows = torch.stack([gradients_of(pruner, seed)[0].flatten() for seed in range(30)])
    return pruner, pruner.weight("one").flatten().clone(), rows.T @ rows / 30 + 1e-3 * torch.eye(n_inputs).double()


@pytest.mark.parametrize("n_pruned", [1, 5, 11])
def test_update_is_the_minimum_of_a_quadratic_loss_among_the_weights_that_stay(n_pruned):
    pruner, best, hessian = quadratic()
    pruner.update_masks(n_pruned / 12)
    kept = pruner.masks["one"].flatten()
    # Of (w - best)ᵀ H (w - best) / 2 with the others at 0 the gradient vanishes where H_kk w_k = (H best)_k.
    expected = torch.zeros_like(best)
    expected[kept] = torch.linalg.solve(hessian[kept][:, kept], (hessian @ best)[kept])
    assert int((~kept).sum()) == n_pruned
    torch.testing.assert_close(pruner.weight("one").flatten(), expected, atol=1e-9, rtol=0)


def test_first_weight_to_go_raises_a_quadratic_loss_least():
    pruner, best, hessian = quadratic()
    pruner.update_masks(1 / 12)

    def loss_without(place: int) -> float:
        others = [i for i in range(12) if i != place]
        weight = torch.zeros_like(best)
        weight[others] = torch.linalg.solve(hessian[others][:, others], (hessian @ best)[others])
        return float((weight - best) @ hessian @ (weight - best) / 2)

    losses = [loss_without(place) for place in range(12)]
    assert int((~pruner.masks["one"]).flatten().nonzero()) == losses.index(min(losses))


def test_weights_that_stay_do_not_move_without_the_update(linears):
    masks = []
    for weight_update in (True, False):
        copies = {name: nn.Linear(part.in_features, part.out_features) for name, part in linears.items()}
        for name, part in copies.items():
            part.load_state_dict(linears[name].state_dict())
        pruner = attached(copies, weight_update=weight_update)
        before = {name: pruner.weight(name).clone() for name in copies}
        measure(pruner)
        pruner.update_masks(0.5)
        stays = [torch.equal(pruner.weight(name), before[name] * mask) for name, mask in pruner.masks.items()]
        assert stays == [not weight_update] * 3
        masks.append(torch.cat([mask.flatten() for mask in pruner.masks.values()]))
    assert torch.equal(*masks)


# --- masks


@pytest.mark.parametrize("scope", ["matrix", "global"])
def test_pruned_weights_stay_pruned_and_their_number_is_exact(scope, linears):
    pruner = attached(linears, scope=scope)
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    for sparsity in (0.1, 0.5, 0.5, 0.97, 0.995):
        measure(pruner)
        counts = pruner.update_masks(sparsity)
        assert counts.n_pruned == round(sparsity * 2800)
        assert not any(bool((mask & ~before[name]).any()) for name, mask in pruner.masks.items())
        before = {name: mask.clone() for name, mask in pruner.masks.items()}


def test_lower_target_gives_nothing_back(linears):
    pruner = attached(linears)
    for sparsity in (0.5, 0.1):
        measure(pruner)
        assert pruner.update_masks(sparsity).n_pruned == 1400


def test_global_ranking_finds_the_matrix_that_matters_less(linears):
    pruner = attached(linears, damping=1e-6)
    for seed in range(20):
        query, wide, small = gradients_of(pruner, seed)
        pruner.observe_importance([query, 100 * wide, small])
    pruner.update_masks(800 / 2800)
    n_pruned = {name: int((~mask).sum()) for name, mask in pruner.masks.items()}
    assert n_pruned["wide"] < 100


def test_weights_that_are_pruned_are_zero_whatever_adam_does_to_what_is_behind_their_masks():
    model = tiny_classifier().train()
    pruner = cap.attach(model, cap.SecondOrder())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    labels = torch.tensor([0, 1, 1])

    def step() -> None:
        optimizer.zero_grad()
        model(**tiny_batch(), labels=labels).loss.backward()
        optimizer.step()

    for _ in range(3):
        step()  # so that there are averages which would move them
    cap.measure_importance(pruner, model, [tiny_batch()] * 4, loss=lambda batch: model(**batch, labels=labels).loss)
    pruner.update_masks(0.5)
    assert not any(bool(pruner.weight(name)[~mask].any()) for name, mask in pruner.masks.items())
    for _ in range(3):
        step()
    assert any(bool(pruner.weight(name)[~mask].any()) for name, mask in pruner.masks.items())  # Adam's averages
    model.eval()
    trained = model(**tiny_batch()).logits
    pruner.fold()
    torch.testing.assert_close(model(**tiny_batch()).logits, trained, atol=0, rtol=0)
    zeros = sum(int((model.get_submodule(name).weight == 0).sum()) for name in pruner.masks)
    assert zeros == round(0.5 * pruner.n_weights)


def test_pass_sees_the_gradients_of_masked_weights_in_eval_mode():
    model = tiny_classifier()
    pruner = cap.attach(model, cap.SecondOrder(block_size=1, damping_mode="absolute", damping=1e-3))
    labels = torch.tensor([0, 1, 1])

    def loss(batch: dict[str, Tensor]) -> Tensor:
        return model(**batch, labels=labels).loss

    cap.measure_importance(pruner, model, [tiny_batch()] * 2, loss=loss)
    pruner.update_masks(0.3)
    model.train()
    cap.measure_importance(pruner, model, [tiny_batch()], loss=loss)
    model.eval()
    for (name, mask), sums in zip(pruner.masks.items(), pruner.importance_sums()[:-1], strict=True):
        weight = model.get_submodule(name).parametrizations.weight.original
        (gradient,) = torch.autograd.grad(loss(tiny_batch()), weight)
        torch.testing.assert_close(sums.flatten(), gradient[mask].square())


def test_gradients_that_wait_for_the_optimizer_are_left_alone():
    model = tiny_classifier()
    pruner = cap.attach(model, cap.SecondOrder())
    labels = torch.tensor([0, 1, 1])
    model(**tiny_batch(), labels=labels).loss.backward()
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    cap.measure_importance(pruner, model, [tiny_batch()], loss=lambda batch: model(**batch, labels=labels).loss)
    after = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(after, before, atol=0, rtol=0)


def test_memory_of_a_pass_is_given_back_when_the_masks_have_moved(linears):
    pruner = attached(linears)
    measure(pruner)
    pruner.update_masks(0.5)
    assert (pruner._fisher, pruner._costs) == ({}, {})


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes of tensors that were alive at once on the CPU, beside those that were there before."""
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        work()
    changes = [event.nbytes() for event in profile.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(changes))


@pytest.mark.parametrize("scope", ["global", "matrix"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("size", [1, 16, 50])
def test_memory_of_a_pass_is_as_announced(size, sparsity, scope, monkeypatch):
    from cap.pruning import masks as masks_module

    def partition(values: NDArray[np.float32], at: int) -> NDArray[np.float32]:
        copy = torch.from_numpy(values).clone().numpy()  # as numpy would copy it, but the profiler sees this
        copy.partition(at)
        return copy

    monkeypatch.setattr(masks_module.np, "partition", partition)
    torch.manual_seed(0)
    linears = {f"layer.{i}": nn.Linear(192, 192, bias=False) for i in range(12)}
    pruner = attached(linears, block_size=size, scope=scope)
    for name, mask in pruner.masks.items():
        mask.copy_(torch.rand(mask.shape) >= sparsity)
        pruner.weight(name).mul_(mask)
    pruner._n_pruned = sum(int((~mask).sum()) for mask in pruner.masks.values())

    def move() -> None:
        for _ in range(9):
            pruner.observe_importance([torch.randn(192, 192) for _ in linears])
        pruner.update_masks(sparsity + 0.05)

    n_kept = [int(mask.sum()) for mask in pruner.masks.values()]
    announced = pruner._bytes_of_pass([192 * 192] * 12, n_kept, size, 4)
    assert peak_bytes(move) == pytest.approx(announced, rel=0.1)


def test_pass_that_was_interrupted_is_forgotten(linears):
    pruner = attached(linears)
    measure(pruner)
    expected = [sums.clone() for sums in pruner.importance_sums()]
    pruner.observe_importance(gradients_of(pruner, 99))
    measure(pruner)
    torch.testing.assert_close(pruner.importance_sums(), expected, atol=0, rtol=0)


# --- damping


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_relative_damping_follows_the_size_of_the_gradients(factor, linears):
    masks = []
    for size in (1.0, factor):
        copies = {name: nn.Linear(part.in_features, part.out_features) for name, part in linears.items()}
        for name, part in copies.items():
            part.load_state_dict(linears[name].state_dict())
        pruner = attached(copies)
        for seed in range(20):
            pruner.observe_importance([size * gradient for gradient in gradients_of(pruner, seed)])
        pruner.update_masks(0.5)
        masks.append(torch.cat([mask.flatten() for mask in pruner.masks.values()]))
    assert float((masks[0] != masks[1]).float().mean()) < 2e-3  # rounding


def test_much_damping_ranks_by_magnitude(linears):
    pruner = attached(linears, damping=1e6)
    measure(pruner)
    size = torch.cat([pruner.weight(name).abs().flatten() for name in linears])
    pruner.update_masks(0.5)
    kept = torch.cat([mask.flatten() for mask in pruner.masks.values()])
    assert size[kept].min() >= 0.999 * size[~kept].max()


def test_damping_is_logged_as_it_was_used(linears, caplog):
    caplog.set_level(logging.INFO, logger="cap")
    pruner = attached(linears, damping=0.5)
    for _ in range(4):
        pruner.observe_importance([torch.full_like(weight, 2.0) for weight in pruner.gate_parameters()])
    pruner.update_masks(0.1)
    assert "second order: 4 gradients, whose squares are 4 in the mean; damping 2" in caplog.text


# --- parts of a move


def test_parts_prune_the_same_fraction_of_what_is_left(linears):
    pruner = attached(linears, recomputations=3)
    measure(pruner)
    pruner.update_masks(0.2)
    assert pruner.parts_of(0.9) == pytest.approx([0.6, 0.8, 0.9])
    assert pruner.parts_of(0.2) == [0.2]


def test_masks_move_in_parts_with_a_pass_before_each(linears):
    pruner = attached(linears, recomputations=3)
    passes: list[int] = []

    def again() -> None:
        passes.append(sum(int((~mask).sum()) for mask in pruner.masks.values()))
        measure(pruner)

    moves = MaskMoves(pruner, cap.OneShot(sparsity=0.875), measure=again)
    moves.begin(10)
    measure(pruner)
    moves.advance(2)
    assert passes == [1400, 2100]
    assert moves.reached == 0.875


def test_masks_rest_while_the_target_does(linears):
    pruner = attached(linears)
    moves = MaskMoves(pruner, cap.Cubic(sparsity=0.5, flat_before=0.2, flat_after=0.5))
    moves.begin(10)
    due = []
    for step in range(10):
        if moves.is_due(step):
            due.append(step)
            measure(pruner)
        moves.advance(step)
    assert due == [3, 4, 5]
    assert moves.reached == 0.5


# --- what is refused


@pytest.mark.parametrize("name", ["block_size", "n_gradients", "gradient_rows", "recomputations"])
def test_counts_below_1_are_refused(name):
    with pytest.raises(ValueError, match=rf"pruning\.{name} must be at least 1, got 0"):
        SecondOrder(**{name: 0})


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan")])
def test_damping_that_is_not_positive_is_refused(damping):
    with pytest.raises(ValueError, match=rf"pruning\.damping keeps blocks .* must be > 0, got {damping}; set"):
        SecondOrder(damping=damping)


def test_block_longer_than_a_row_is_refused(linears):
    with pytest.raises(ValueError, match="at most the inputs of a row, of which small has 20, got 21; lower it"):
        attached(linears, block_size=21)


def test_move_without_gradients_is_refused(linears):
    pruner = attached(linears)
    with pytest.raises(RunError, match=r"got none since the masks last moved; .* cap\.measure_importance"):
        pruner.update_masks(0.5)


@pytest.mark.parametrize(("value", "said"), [(0.0, "0.0"), (float("inf"), "inf"), (float("nan"), "nan")])
def test_gradients_that_say_nothing_stop_the_run(value, said, linears):
    pruner = attached(linears)
    pruner.observe_importance([torch.full_like(weight, value) for weight in pruner.gate_parameters()])
    with pytest.raises(RunError, match=f"must be finite and not all 0, but the mean of their squares is {said}"):
        pruner.update_masks(0.5)


@pytest.mark.parametrize("n_processes", [1, 3])
def test_pass_beyond_the_memory_budget_is_refused_with_the_block_and_the_budget_that_fit(n_processes):
    found = prunable(tiny_classifier())
    room = Room(500_000, n_processes=n_processes)
    said = r"memory\.budget_gb leaves 0\.00 to a process; set pruning\.block_size="
    with pytest.raises(ValueError, match=said) as caught:
        SecondOrder(block_size=32).check_memory(found, room)
    size, enough = re.search(r"block_size=(\d+), or set memory\.budget_gb=(\S+)$", str(caught.value)).groups()
    SecondOrder(block_size=32).check_memory(found, Room(float(enough) * 1024**3 / n_processes))
    SecondOrder(block_size=int(size)).check_memory(found, room)
    with pytest.raises(ValueError, match="budget_gb"):
        SecondOrder(block_size=int(size) + 1).check_memory(found, room)


@pytest.mark.parametrize(
    ("room", "way_out"),
    [
        (Room(0), r"leaves 0\.00 to a process; set memory\.budget_gb=0\.1$"),
        (Room(0, is_budget=False), r"and the GPU has beside .* 0\.00; choose another pruning type$"),
        (Room(500_000, is_budget=False), r"and the GPU has beside .* 0\.00; set pruning\.block_size=\d+$"),
    ],
    ids=["no budget", "no GPU", "a small GPU"],
)
def test_way_out_is_one_that_there_is(room, way_out):
    with pytest.raises(ValueError, match=way_out):
        SecondOrder(block_size=32).check_memory(prunable(tiny_classifier()), room)


# --- on a device


def test_host_waits_for_the_device_as_often_however_many_matrices_there_are(monkeypatch):
    from cap.pruning import masks

    monkeypatch.setattr(masks, "selects_on_host", lambda values: False)
    n_waits = []
    for n_matrices in (2, 20):
        linears = {f"{i}": nn.Linear(20, 10) for i in range(n_matrices)}
        pruner = attached(linears)
        gradients = [gradients_of(pruner, seed) for seed in range(9)]
        with Calls() as calls:
            for gradient in gradients:
                pruner.observe_importance(gradient)
            pruner.update_masks(0.5)
        n_waits.append(sum(calls.n[name] for name in ("_local_scalar_dense", "nonzero", "masked_select")))
    assert n_waits[0] == n_waits[1] <= 10
