"""Weights that are pulled to a sparse copy of themselves, against a loop that keeps the copy and the dual apart."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from cap.models.families import Prunable
from cap.pruning.admm import Admm

N_STEPS, INTERVAL, PENALTY, DECAY, SPARSITY = 22, 4, 0.3, 0.9, 0.75


def attached(linears: dict[str, nn.Linear], **options) -> Admm:
    pruner = Admm(**{"final_sparsity": SPARSITY, "interval": INTERVAL, "penalty": PENALTY} | options)
    pruner.attach(Prunable(linears), seed=0)
    return pruner


def originals(linears: dict[str, nn.Linear]) -> dict[str, nn.Parameter]:
    return {name: linear.parametrizations.weight.original for name, linear in linears.items()}


def loss(linears: dict[str, nn.Linear], step: int) -> Tensor:
    rows = {
        name: torch.randn(4, linear.in_features, generator=torch.Generator().manual_seed(step))
        for name, linear in linears.items()
    }
    return sum(
        (linear(rows[name]) - rows[name].sum(dim=1, keepdim=True)).square().mean() for name, linear in linears.items()
    )


def train(linears: dict[str, nn.Linear], pruner: Admm, n_steps: int = N_STEPS, *, begin: int = 0) -> None:
    optimizer = torch.optim.SGD(originals(linears).values(), lr=0.05)
    for step in range(begin, n_steps):
        optimizer.zero_grad()
        loss(linears, step).backward()
        pruner.adjust_gradients(scale=None)
        optimizer.step()


def highest(values: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Choose the highest of all matrices together, by a sort."""
    flat = torch.cat([value.flatten() for value in values.values()])
    cut = flat.sort().values[round(sparsity * len(flat)) - 1]
    return {name: value > cut for name, value in values.items()}


def test_weights_follow_a_slow_loop_with_copy_and_dual(linears):
    import copy

    plain = copy.deepcopy(linears)
    pruner = attached(linears, second_moment_decay=DECAY)
    train(linears, pruner)

    weights = {name: linear.weight.detach() for name, linear in plain.items()}
    z, u, v = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(3))
    for step in range(N_STEPS):
        for linear in plain.values():
            linear.zero_grad()
        loss(plain, step).backward()
        gradients = {name: linear.weight.grad for name, linear in plain.items()}
        for name, gradient in gradients.items():
            v[name] = DECAY * v[name] + (1 - DECAY) * gradient**2
        if step % INTERVAL == INTERVAL - 1:
            kept = highest({name: v[name] * (w + u[name]) ** 2 for name, w in weights.items()}, SPARSITY)
            for name, w in weights.items():
                z[name] = (w + u[name]) * kept[name]
                u[name] = u[name] + w - z[name]
        for name, w in weights.items():
            pull = PENALTY * (w - z[name] + u[name]) if step >= INTERVAL - 1 else 0.0
            w -= 0.05 * (gradients[name] + pull)
    for name, weight in originals(linears).items():
        torch.testing.assert_close(weight.detach(), weights[name], rtol=1e-4, atol=1e-6)
    pruner.update_masks(SPARSITY)
    expected = highest({name: v[name] * w**2 for name, w in weights.items()}, SPARSITY)
    assert all(torch.equal(mask, expected[name]) for name, mask in pruner.masks.items())


def test_no_mask_moves_before_the_final_sparsity_and_none_after(linears):
    pruner = attached(linears)
    train(linears, pruner)
    assert pruner.update_masks(0.5).n_pruned == 0
    counts = pruner.update_masks(SPARSITY)
    assert (counts.n_pruned_before, counts.n_pruned) == (0, round(SPARSITY * 2800))
    before = {name: mask.clone() for name, mask in pruner.masks.items()}
    state = {name: dict(linear.state_dict()) for name, linear in linears.items()}
    train(linears, pruner, N_STEPS + 2 * INTERVAL, begin=N_STEPS)
    assert pruner.update_masks(SPARSITY).n_pruned_before == counts.n_pruned
    assert all(torch.equal(mask, before[name]) for name, mask in pruner.masks.items())
    # What was only needed on the way rests; the weights that are left go on learning.
    for name, linear in linears.items():
        for key, value in linear.state_dict().items():
            is_trained = key in ("bias", "parametrizations.weight.original")
            assert is_trained or torch.equal(value, state[name][key])


def test_weights_that_are_not_in_the_copy_come_closer_to_zero_than_by_the_loss_alone(linears):
    import copy

    free = copy.deepcopy(linears)
    pruner = attached(linears)
    train(linears, pruner, 200)
    train(free, attached(free, interval=1000), 200)

    def share_of_what_goes(trained: dict[str, nn.Linear]) -> float:
        values = torch.cat([weight.detach().flatten() for weight in originals(trained).values()]).square()
        return float(values.sort().values[: round(SPARSITY * len(values))].sum() / values.sum())

    assert share_of_what_goes(linears) < 0.1 * share_of_what_goes(free)


@pytest.mark.parametrize(("n_before", "is_said"), [(INTERVAL - 1, True), (INTERVAL, False)])
def test_a_target_before_the_first_projection_is_doubted(linears, n_before, is_said):
    doubt = attached(linears).doubt(n_before)
    assert (doubt is not None) == is_said
    assert doubt is None or f"pruning.interval={INTERVAL} optimizer steps, but the final sparsity is" in doubt


@pytest.mark.parametrize("scale", [1024.0, 1.0, None])
def test_the_factor_of_a_loss_scaler_stays_on_the_pull(linears, scale):
    pruner = attached(linears, interval=1)
    weight = originals(linears)["query"]
    factor = scale or 1.0
    (factor * loss(linears, 0)).backward()
    gradient = weight.grad.clone()
    pruner.adjust_gradients(scale=scale)
    torch.testing.assert_close(pruner.importance("query"), 1e-3 * (gradient / factor) ** 2 * weight.detach() ** 2)
    module = linears["query"].parametrizations.weight[0]
    # Right after a projection u is w where z is 0, so that the pull there is that to -w.
    pull = PENALTY * torch.where(module.is_in_copy, 0.0, 2 * weight.detach())
    torch.testing.assert_close(weight.grad, gradient + factor * pull, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("scale", "is_finite"), [(2.0, True), (1.0, True), (None, False)])
def test_an_overflow_under_a_loss_scaler_leaves_no_trace(linears, scale, is_finite):
    pruner = attached(linears)
    loss(linears, 0).backward()
    originals(linears)["query"].grad[0, 0] = float("inf")
    pruner.adjust_gradients(scale=scale)
    assert bool(pruner.importance("query").isfinite().all()) is is_finite


def test_state_and_buffers_are_all_that_a_resumed_run_needs(linears):
    import copy

    start = copy.deepcopy(linears)
    pruner = attached(linears)
    train(linears, pruner, 10)
    saved = {name: copy.deepcopy(linear.state_dict()) for name, linear in linears.items()}, pruner.state_dict()
    train(linears, pruner, begin=10)

    again = attached(start)
    for name, linear in start.items():
        linear.load_state_dict(saved[0][name])
    again.load_state_dict(saved[1])
    train(start, again, begin=10)
    for name, linear in linears.items():
        assert all(torch.equal(value, start[name].state_dict()[key]) for key, value in linear.state_dict().items())
    assert again.state_dict() == pruner.state_dict() == {"n_pruned": 0, "n_seen": N_STEPS}


@pytest.mark.parametrize(("scope", "pattern"), [("matrix", None), ("global", "2:4")])
def test_the_copy_has_the_scope_and_the_pattern_of_the_masks(linears, scope, pattern):
    pruner = attached(
        {"wide": linears["wide"], "small": linears["small"]} if pattern is None else {"small": linears["small"]},
        scope=scope,
        pattern=pattern,
        final_sparsity=0.5,
    )
    train({name: linears[name] for name in pruner.masks}, pruner, INTERVAL)
    for name in pruner.masks:
        in_copy = linears[name].parametrizations.weight[0].is_in_copy
        assert int(in_copy.sum()) == in_copy.numel() // 2
        if pattern:
            assert (in_copy.view(-1, 4).sum(dim=1) == 2).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"interval": 0}, r"pruning\.interval counts optimizer steps and must be at least 1, got 0"),
        ({"penalty": 0.0}, r"pruning\.penalty pulls .* must be > 0, got 0\.0"),
        ({"second_moment_decay": 1.0}, r"pruning\.second_moment_decay .* lies in \[0, 1\), got 1\.0"),
        ({"pattern": "2:4"}, r"pruning\.pattern=2:4 prunes 2 of every 4 weights, .* must be 0\.5, got 0\.75"),
    ],
)
def test_bad_arguments_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Admm(**{"final_sparsity": SPARSITY} | options)
