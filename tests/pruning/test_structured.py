"""Attention heads and FFN units: which go, and what is left."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel
from transformers.models.gte import modeling_gte
from transformers.models.modernbert import modeling_modernbert

from cap.base.errors import RunError
from cap.models.families import prunable
from cap.pruning.masks import count_pruned_units, count_zeros, sparsity_fractions
from cap.pruning.structured import Structured
from cap.pruning.units import choose_units
from tests.cases import each_with_the_first
from tests.models.tiny_models import (
    BIASES,
    FAMILY_NAMES,
    INTERMEDIATE,
    LAYERS,
    n_prunable,
    tiny_batch,
    tiny_classifier,
)

every_family = pytest.mark.parametrize("family", FAMILY_NAMES)
HEADS = 4
LABELS = torch.tensor([0, 1, 0])


def structured(sparsity: float = 0.5, **options: Any) -> Structured:
    defaults = {"importance": "gradient", "importance_rows": None, "importance_loss": "task"}
    return Structured(**{**defaults, **options}, final_sparsity=sparsity)


def attached(model: PreTrainedModel, sparsity: float = 0.5, **options: Any) -> Structured:
    pruner = structured(sparsity, **options)
    pruner.attach(prunable(model), seed=0)
    return pruner


def observe(model: PreTrainedModel, pruner: Structured, batch: dict[str, Tensor], labels: Tensor) -> None:
    """Let the pruner see the gradients of one batch."""
    for gates in pruner.gate_parameters():
        gates.requires_grad_(True)
    loss = functional.cross_entropy(model(**batch).logits, labels)
    pruner.observe_importance(torch.autograd.grad(loss, pruner.gate_parameters()))
    for gates in pruner.gate_parameters():
        gates.requires_grad_(False)


def set_importance(pruner: Structured, seed: int = 0) -> None:
    """Put random numbers in place of what a pass would have measured."""
    generator = torch.Generator().manual_seed(seed)
    for layers in pruner._kinds.values():
        for gated in layers:
            gated.importance.copy_(torch.rand(gated.units.n, generator=generator))
    pruner._n_seen = 1


def kept(pruner: Structured) -> dict[str, list[list[bool]]]:
    return {kind: [gated.is_kept.tolist() for gated in layers] for kind, layers in pruner._kinds.items()}


def n_pruned(pruner: Structured) -> dict[str, int]:
    return {kind: sum(layer.count(False) for layer in layers) for kind, layers in kept(pruner).items()}


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(**tiny_batch()).logits


# --- gates and their gradient


@every_family
def test_gates_that_are_open_change_nothing(family: str) -> None:
    model = tiny_classifier(family)
    before = logits(model)
    attached(model)
    assert torch.equal(logits(model), before)


@every_family
@pytest.mark.parametrize("number", [0, LAYERS], ids=["heads", "ffn"])
def test_gradients_of_gates_are_those_of_a_finite_difference(family: str, number: int, monkeypatch) -> None:
    # ModernBERT turns its queries and keys in float32, others in the precision that they have.
    monkeypatch.setattr(modeling_modernbert, "apply_rotary_pos_emb", modeling_gte.apply_rotary_pos_emb)
    model = tiny_classifier(family).double()
    gates = attached(model).gate_parameters()[number].requires_grad_(True)

    def loss() -> Tensor:
        return functional.cross_entropy(model(**tiny_batch()).logits, LABELS)

    (gradient,) = torch.autograd.grad(loss(), gates)
    expected = torch.zeros_like(gradient)
    step = 1e-6
    with torch.no_grad():
        for unit in range(len(gates)):
            gates[unit] += step
            above = loss()
            gates[unit] -= 2 * step
            expected[unit] = (above - loss()) / (2 * step)
            gates[unit] += step
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-8)


def test_a_pruned_unit_still_has_a_gradient() -> None:
    model = tiny_classifier()
    pruner = attached(model)
    set_importance(pruner)
    pruner.update_masks(0.5)
    observe(model, pruner, tiny_batch(), LABELS)
    heads = pruner._kinds["attention heads"][0]
    assert bool((heads.importance > 0).all())


def test_gates_take_no_part_in_training() -> None:
    model = tiny_classifier()
    pruner = attached(model)
    functional.cross_entropy(model(**tiny_batch()).logits, LABELS).backward()
    assert [gates.grad for gates in pruner.gate_parameters()] == [None] * 2 * LAYERS


# --- importance


def slow_importance(model: PreTrainedModel, batches: list[tuple[dict[str, Tensor], Tensor]]) -> dict[str, list[Tensor]]:
    """Scale each head's context and each FFN unit's activation by a gate of its own, batch by batch."""
    layers = model.bert.encoder.layer
    totals = {
        "attention heads": [torch.zeros(HEADS, dtype=torch.float64) for _ in layers],
        "FFN units": [torch.zeros(INTERMEDIATE, dtype=torch.float64) for _ in layers],
    }
    for batch, labels in batches:
        gates, hooks = {"attention heads": [], "FFN units": []}, []
        for layer in layers:
            for kind, module, n in (
                ("attention heads", layer.attention.output.dense, HEADS),
                ("FFN units", layer.output.dense, INTERMEDIATE),
            ):
                gate = torch.ones(n, dtype=torch.float64, requires_grad=True)
                gates[kind].append(gate)

                def scale(module: torch.nn.Module, args: tuple, gate: Tensor = gate) -> tuple:
                    hidden = args[0]
                    return ((hidden.unflatten(-1, (len(gate), -1)) * gate[:, None]).flatten(-2), *args[1:])

                hooks.append(module.register_forward_pre_hook(scale))
        loss = functional.cross_entropy(model(**batch).logits, labels)
        for kind, layer_gates in gates.items():
            for total, gradient in zip(
                totals[kind], torch.autograd.grad(loss, layer_gates, retain_graph=True), strict=True
            ):
                total += gradient.abs()
        for hook in hooks:
            hook.remove()
    return {kind: [total / total.square().sum().sqrt() for total in layers] for kind, layers in totals.items()}


def test_importance_is_that_of_a_slow_loop() -> None:
    batches = [(tiny_batch(), LABELS), ({key: value[:2] for key, value in tiny_batch().items()}, torch.tensor([1, 1]))]
    expected = slow_importance(tiny_classifier().double(), batches)
    model = tiny_classifier().double()
    pruner = attached(model)
    for batch, labels in batches:
        observe(model, pruner, batch, labels)
    for kind, layers in pruner._kinds.items():
        assert torch.allclose(torch.stack([g.normalised() for g in layers]), torch.stack(expected[kind]), atol=1e-12)


def test_importance_starts_anew_after_the_masks_have_moved() -> None:
    pruner = attached(tiny_classifier())
    set_importance(pruner)
    pruner.update_masks(0.25)
    assert not any(bool(gated.importance.any()) for layers in pruner._kinds.values() for gated in layers)


# --- the choice


def slow_choice(importance: Tensor, is_kept: Tensor, n_pruned: int) -> Tensor:
    """Take one unit after the other, the least important live one that is not the best of its layer."""
    kept = is_kept.clone()
    floor = [int(layer.masked_fill(~live, -1).argmax()) for layer, live in zip(importance, kept, strict=True)]
    while int((~kept).sum()) < n_pruned:
        candidates = [
            (float(importance[layer, unit]), layer, unit)
            for layer in range(len(kept))
            for unit in range(kept.shape[1])
            if kept[layer, unit] and unit != floor[layer]
        ]
        _, layer, unit = min(candidates)
        kept[layer, unit] = False
    return kept


@pytest.mark.parametrize("n_pruned", [0, 1, 7, 12, 15])
@pytest.mark.parametrize("n_dead", [0, 5], ids=["all live", "some dead"])
def test_the_choice_is_that_of_a_slow_loop(n_pruned: int, n_dead: int) -> None:
    generator = torch.Generator().manual_seed(n_pruned)
    importance = torch.rand(3, 6, generator=generator)
    is_kept = torch.ones(3, 6, dtype=torch.bool)
    is_kept[0, :n_dead] = False
    got = choose_units(list(importance), list(is_kept), n_pruned, tie_breaker=lambda layer: torch.zeros(6))
    assert torch.equal(torch.stack(got), slow_choice(importance, is_kept, max(n_pruned, n_dead)))


def test_a_layer_without_importance_keeps_one_unit_nevertheless() -> None:
    importance = [torch.zeros(4), torch.arange(1.0, 5.0)]
    got = choose_units(importance, [torch.ones(4, dtype=torch.bool)] * 2, 6, tie_breaker=lambda layer: torch.zeros(4))
    assert [layer.tolist() for layer in got] == [[True, False, False, False], [False, False, False, True]]


def test_the_floor_protects_a_live_unit_not_a_dead_one() -> None:
    importance = [torch.tensor([9.0, 1.0, 2.0]), torch.tensor([5.0, 6.0, 7.0])]
    is_kept = [torch.tensor([False, True, True]), torch.ones(3, dtype=torch.bool)]
    got = choose_units(importance, is_kept, 4, tie_breaker=lambda layer: torch.zeros(3))
    assert [layer.tolist() for layer in got] == [[False, False, True], [False, False, True]]


def test_among_equals_the_larger_weights_are_kept_and_then_the_lower_index() -> None:
    tie_breaker = {0: torch.tensor([1.0, 3.0, 3.0, 2.0])}.__getitem__
    got = choose_units([torch.ones(4)], [torch.ones(4, dtype=torch.bool)], 3, tie_breaker=tie_breaker)
    assert got[0].tolist() == [False, True, False, False]


@pytest.mark.parametrize(("family", "sparsity"), each_with_the_first(FAMILY_NAMES, [0.25, 0.0, 0.125, 0.75]))
def test_heads_and_ffn_units_each_hit_the_target(family: str, sparsity: float) -> None:
    pruner = attached(tiny_classifier(family), sparsity)
    set_importance(pruner)
    counts = pruner.update_masks(sparsity)
    n_heads, n_ffn = round(sparsity * HEADS * LAYERS), round(sparsity * INTERMEDIATE * LAYERS)
    assert n_pruned(pruner) == {"attention heads": n_heads, "FFN units": n_ffn}
    assert counts.sparsity == sparsity


def test_pruned_units_stay_pruned_as_sparsity_rises() -> None:
    pruner = attached(tiny_classifier(), 0.75)
    set_importance(pruner, seed=1)
    pruner.update_masks(0.25)
    first = {kind: torch.tensor(layers) for kind, layers in kept(pruner).items()}
    set_importance(pruner, seed=2)
    pruner.update_masks(0.75)
    assert all(not bool((torch.tensor(layers) & ~first[kind]).any()) for kind, layers in kept(pruner).items())


def test_a_model_of_24_layers_and_16_heads_loses_half_of_both() -> None:
    sizes = {"hidden_size": 64, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 48}
    model = BertForSequenceClassification(BertConfig(vocab_size=30, max_position_embeddings=16, **sizes))
    pruner = attached(model, 0.5)
    set_importance(pruner)
    pruner.update_masks(0.5)
    assert n_pruned(pruner) == {"attention heads": 192, "FFN units": 576}
    assert all(any(layer) for layers in kept(pruner).values() for layer in layers)


def test_a_random_order_is_that_of_the_seed_and_nests() -> None:
    first, second = (attached(tiny_classifier(), 0.75, importance="random") for _ in range(2))
    first.update_masks(0.25)
    quarter = {kind: torch.tensor(layers) for kind, layers in kept(first).items()}
    first.update_masks(0.5)
    second.update_masks(0.5)
    assert kept(first) == kept(second)
    assert all(not bool((torch.tensor(layers) & ~quarter[kind]).any()) for kind, layers in kept(first).items())


def test_other_seeds_give_other_random_orders() -> None:
    pruners = [structured(importance="random") for _ in range(2)]
    for seed, pruner in enumerate(pruners):
        pruner.attach(prunable(tiny_classifier()), seed=seed)
        pruner.update_masks(0.5)
    assert kept(pruners[0]) != kept(pruners[1])


def test_only_the_gradient_needs_a_pass_over_the_rows() -> None:
    assert structured(importance="random").importance_pass is None
    wanted = structured(importance_rows=7, importance_loss="total").importance_pass
    assert wanted is not None
    assert (wanted.rows, wanted.loss) == (7, "total")


# --- masks, counts, folding


@every_family
def test_masks_are_the_zeros_of_the_folded_model(family: str) -> None:
    model = tiny_classifier(family)
    pruner = attached(model)
    set_importance(pruner)
    pruner.update_masks(0.5)
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    pruner.fold()
    assert all(torch.equal(prunable(model).linears[name].weight != 0, mask) for name, mask in masks.items())


@every_family
def test_folding_leaves_the_logits_and_only_the_stock_names(family: str) -> None:
    model = tiny_classifier(family)
    names = set(model.state_dict())
    pruner = attached(model)
    set_importance(pruner)
    pruner.update_masks(0.5)
    gated = logits(model)
    pruner.fold()
    assert set(model.state_dict()) == names
    assert torch.allclose(logits(model), gated, atol=1e-6)


@every_family
def test_biases_go_with_their_unit_and_no_other(family: str) -> None:
    model = tiny_classifier(family, **BIASES.get(family, {}))
    pruner = attached(model)
    set_importance(pruner)
    pruner.update_masks(0.5)
    is_kept = kept(pruner)
    pruner.fold()
    found = prunable(model)
    for kind, layers in (("attention heads", found.heads), ("FFN units", found.ffn)):
        for units, layer in zip(layers.values(), is_kept[kind], strict=True):
            expected = torch.tensor(layer).repeat_interleave(units.size)
            with_bias = [linear for linear in units.incoming if linear.bias is not None]
            biases = [bias for linear in with_bias for bias in linear.bias.split(len(expected))]
            assert all(torch.equal(bias != 0, expected) for bias in biases)
            assert bool((units.outgoing.bias != 0).all())


@every_family
def test_the_sparsity_of_the_folded_model_is_the_fraction_of_units(family: str) -> None:
    model = tiny_classifier(family)
    pruner = attached(model)
    set_importance(pruner)
    counts = pruner.update_masks(0.5)
    pruner.fold()
    zeros = sum(zeros for zeros, _ in count_zeros(prunable(model).linears).values())
    assert zeros == counts.n_pruned == n_prunable(family) // 2
    assert sparsity_fractions(model)["prunable"] == 0.5


def test_pruned_units_are_counted_by_layer() -> None:
    model = tiny_classifier()
    pruner = attached(model)
    set_importance(pruner)
    pruner.update_masks(0.5)
    expected = {kind: [layer.count(False) for layer in layers] for kind, layers in kept(pruner).items()}
    pruner.fold()
    counted = count_pruned_units(model)
    assert [n for n, _ in counted["heads"].values()] == expected["attention heads"]
    assert [n for n, _ in counted["ffn"].values()] == expected["FFN units"]
    assert {n for _, n in counted["heads"].values()} == {HEADS}


# --- what is refused


def test_a_target_that_the_floors_make_unreachable_is_refused_with_the_highest_that_works() -> None:
    with pytest.raises(ValueError, match=r"got 0\.9; lower sparsity") as error:
        attached(tiny_classifier(), 0.9)
    found = re.search(r"reaches sparsity ([0-9.]+) at most", str(error.value))
    assert found is not None
    assert float(found[1]) == 0.75
    attached(tiny_classifier(), float(found[1]))


def test_a_target_that_rounds_to_no_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="8 attention heads and 128 FFN units rounds to none"):
        attached(tiny_classifier(), 0.003)


def test_a_target_that_rounds_to_one_ffn_unit_is_taken() -> None:
    pruner = attached(tiny_classifier(), 0.005)
    set_importance(pruner)
    pruner.update_masks(0.005)
    assert n_pruned(pruner) == {"attention heads": 0, "FFN units": 1}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"importance": "magnitude"}, r"pruning\.importance must be 'gradient' or 'random', got 'magnitude'"),
        ({"importance_loss": "tsk"}, r"pruning\.importance_loss must be 'total' or 'task', got 'tsk'"),
    ],
    ids=["importance", "loss"],
)
def test_unknown_words_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        structured(**given)


def test_importance_rows_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pruning\.importance_rows must be at least 1, or null for all, got 0"):
        structured(importance_rows=0)


def test_importance_goes_where_the_model_goes() -> None:
    model = tiny_classifier()
    pruner = attached(model)
    model.to("meta")
    assert {gated.importance.device.type for layers in pruner._kinds.values() for gated in layers} == {"meta"}


def test_units_do_not_go_by_their_size_where_nothing_was_measured() -> None:
    model = tiny_classifier()
    pruner = attached(model, 0.5)
    pruner.update_masks(0.0)  # by which none goes
    with pytest.raises(RunError, match="ranks by the gradients of training rows, got none since the masks last moved"):
        pruner.update_masks(0.25)
    observe(model, pruner, tiny_batch(), LABELS)
    assert pruner.update_masks(0.25).n_pruned > 0
    pruner.update_masks(0.25)  # and by this no other
    with pytest.raises(RunError, match="got none since the masks last moved"):
        pruner.update_masks(0.5)  # the ranking of another model, half as large


def test_importance_that_is_not_finite_is_refused() -> None:
    pruner = attached(tiny_classifier())
    set_importance(pruner)
    next(iter(pruner._kinds.values()))[0].importance[0] = torch.nan
    with pytest.raises(RunError, match="the importance of units must be finite"):
        pruner.update_masks(0.5)


def test_a_target_is_checked_without_touching_the_model() -> None:
    model = tiny_classifier()
    with pytest.raises(ValueError, match="reaches sparsity"):
        structured(0.9).check(prunable(model))
    assert not hasattr(model.bert.encoder.layer[0].output.dense, "parametrizations")
