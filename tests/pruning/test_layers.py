"""Whole encoder layers: which go, what a model computes without them, and what is left of it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import distributed
from transformers import AutoModelForSequenceClassification

import cap
from cap.base.errors import InputError, RunError
from cap.models.depth import read_removed
from cap.models.families import Prunable, encoder_stack, prunable
from cap.pruning.layers import evenly_spaced
from cap.pruning.masks import count_matrix_zeros, count_pruned_units, matrix_kinds, sparsity_fractions
from tests.models.tiny_models import tiny_batch, tiny_classifier

LABELS = torch.tensor([0, 1, 1])
# One whose layers give tensors, one whose layers give tuples, one whose configuration lists their types.
FAMILIES = ["bert", "mpnet", "modernbert"]


def deep(family: str = "bert", n: int = 4):
    size = "n_layers" if family == "distilbert" else "num_hidden_layers"
    return tiny_classifier(family, **{size: n})


def batches() -> list[dict[str, torch.Tensor]]:
    first, second = tiny_batch(), tiny_batch()
    second["input_ids"] = second["input_ids"].flip(1).roll(1, 0)
    return [first, second]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**tiny_batch()).logits


def loss_of(model, batch) -> torch.Tensor:
    return model(**batch, labels=LABELS).loss


def without(model, numbers: set[int]):
    """Take layers out of a copy by hand."""
    smaller = copy.deepcopy(model)
    stack = encoder_stack(smaller)
    for number in sorted(numbers, reverse=True):
        del stack.layers[number]
    smaller.config.num_hidden_layers = len(stack.layers)  # GTE runs so many
    return smaller


def removed(pruner) -> set[int]:
    return {number for number, is_kept in enumerate(pruner.is_kept) if not is_kept}


@pytest.mark.parametrize(
    ("n", "n_kept", "expected"),
    [(12, 6, [0, 2, 4, 7, 9, 11]), (12, 4, [0, 4, 7, 11]), (6, 3, [0, 3, 5]), (6, 1, [0]), (6, 6, [*range(6)])],
)
def test_even_spacing_keeps_both_ends(n, n_kept, expected):
    assert evenly_spaced(n, n_kept) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_pruned_layer_gives_what_it_is_given(family):
    model = deep(family)
    pruner = cap.attach(model, cap.Layers(final_sparsity=0.5))
    pruner.update_masks(0.5)
    assert removed(pruner) == {1, 2}
    torch.testing.assert_close(logits(model), logits(without(deep(family), {1, 2})), rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_saved_model_has_fewer_layers_and_stock_transformers_loads_it(family, tmp_path):
    model = deep(family)
    pruner = cap.attach(model, cap.Layers(final_sparsity=0.5))
    pruner.update_masks(0.5)
    gated = logits(model)
    types = getattr(model.config, "layer_types", [])
    pruner.fold()
    torch.testing.assert_close(logits(model), gated, rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (loaded.config.num_hidden_layers, len(encoder_stack(loaded).layers)) == (2, 2)
    assert getattr(loaded.config, "layer_types", []) == [*types[:1], *types[3:]]
    torch.testing.assert_close(logits(loaded), gated, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["bert", "distilbert", "mpnet", "deberta-v2", "modernbert", "gte"])
def test_a_stand_in_for_the_dense_model_is_as_large_and_runs(family):
    from cap.models.depth import as_deep_as_dense

    dense = deep(family, 5)
    n_dense, types = dense.num_parameters(), getattr(dense.config, "layer_types", [])
    assert as_deep_as_dense(dense) is dense
    pruner = cap.attach(dense, cap.Layers(final_sparsity=0.6))
    pruner.update_masks(0.6)
    pruner.fold()
    stand_in = as_deep_as_dense(dense)
    assert (stand_in.num_parameters(), len(encoder_stack(stand_in).layers)) == (n_dense, 5)
    assert (stand_in.config.num_hidden_layers, read_removed(stand_in.config)) == (5, None)
    assert len(getattr(stand_in.config, "layer_types", [])) == len(types)
    assert logits(stand_in).shape == (3, 2)
    assert (dense.config.num_hidden_layers, len(encoder_stack(dense).layers)) == (2, 2)


def test_first_layer_of_its_own_stays():
    model = deep("modernbert")
    pruner = cap.attach(model, cap.Layers(final_sparsity=0.75, importance="loss"))
    with pytest.raises(
        ValueError, match=r"a target of 0.75, by which 3 would; move in parts: for part in pruner.parts"
    ):
        pruner.update_masks(0.75)
    for part in pruner.parts_of(0.75):
        cap.measure_importance(pruner, model, batches(), loss=lambda batch: loss_of(model, batch))
        pruner.update_masks(part)
    assert removed(pruner) == {1, 2, 3}


def test_layers_go_in_the_order_of_a_slow_loop():
    model, plain = deep(), deep()
    pruner = cap.attach(model, cap.Layers(final_sparsity=0.75, importance="loss"))
    found, expected = [], []
    for part in pruner.parts_of(0.75):
        cap.measure_importance(pruner, model, batches(), loss=lambda batch: loss_of(model, batch))
        pruner.update_masks(part)
        found.append(removed(pruner))
        gone = expected[-1] if expected else set()
        costs = {}
        for number in set(range(4)) - gone:
            smaller = without(plain, gone | {number})
            with torch.no_grad():
                costs[number] = sum(float(loss_of(smaller, batch)) for batch in batches())
        expected.append(gone | {min(costs, key=costs.get)})
    assert found == expected
    assert found[-1] != {1, 2, 3}, "made up so that the order is not that of even spacing"


def test_rising_sparsity_takes_the_deepest_of_those_that_go_first():
    pruner = cap.attach(deep(n=6), cap.Layers(final_sparsity=0.5))
    steps = []
    for target in (0.05, 0.2, 0.3, 0.4, 0.5):
        counts = pruner.update_masks(target)
        steps.append(removed(pruner))
    assert steps == [set(), {4}, {4, 2}, {4, 2}, {4, 2, 1}]
    assert counts.units == {"layers": (2, 3, 6)}
    assert counts.sparsity == 0.5


def test_pass_runs_only_before_a_layer_goes():
    pruner = cap.attach(deep(), cap.Layers(final_sparsity=0.5, importance="loss"))
    assert [pruner.needs_pass(target) for target in (0.1, 0.3, 0.5)] == [False, True, True]
    assert pruner.parts_of(0.5) == [0.25, 0.5]
    assert not cap.attach(deep(), cap.Layers(final_sparsity=0.5)).needs_pass(0.5)


@pytest.mark.parametrize("sparsity", [0.4, 0.05, 0.97, 0.9])
def test_sparsity_that_is_no_number_of_layers_is_refused_with_the_possible_ones(sparsity):
    message = rf"leaves one at least.*4 layers \(0.25, 0.5, 0.75; two decimals will do\), got {sparsity}"
    with pytest.raises(ValueError, match=message):
        cap.attach(deep(), cap.Layers(final_sparsity=sparsity))


@pytest.mark.parametrize(("sparsity", "n_pruned"), [(0.33, 1), (0.67, 2), (1 / 3, 1), (0.0, 0)])
def test_two_decimals_name_a_share_of_layers(sparsity, n_pruned):
    pruner = cap.attach(deep(n=3), cap.Layers(final_sparsity=sparsity))
    assert pruner.update_masks(sparsity).units == {"layers": (0, n_pruned, 3)}


def test_rows_below_one_are_refused():
    with pytest.raises(ValueError, match=r"pruning.importance_rows must be at least 1, or null for all, got 0"):
        cap.Layers(final_sparsity=0.5, importance_rows=0)


def test_linear_layers_alone_are_refused():
    found = prunable(deep())
    with pytest.raises(ValueError, match="got linear layers alone; leave linears out"):
        cap.Layers(final_sparsity=0.5).attach(Prunable(found.linears), seed=0)


def test_move_without_a_pass_or_with_a_broken_one_is_refused():
    model = deep()
    pruner = cap.attach(model, cap.Layers(final_sparsity=0.5, importance="loss"))
    with pytest.raises(RunError, match="got none since a layer last went"):
        pruner.update_masks(0.25)
    cap.measure_importance(pruner, model, batches(), loss=lambda batch: torch.tensor(torch.nan))
    with pytest.raises(RunError, match=r"must be finite, got \[nan"):
        pruner.update_masks(0.25)


def test_counts_name_the_dense_model():
    model = deep()
    dense = count_matrix_zeros(model)
    n_layer = sum(p.numel() for p in encoder_stack(model).layers[0].parameters())
    n_model = sum(p.numel() for p in model.parameters())
    pruner = cap.attach(model, cap.Layers(final_sparsity=0.5))
    pruner.update_masks(0.5)
    pruner.fold()
    counts = count_matrix_zeros(model)
    assert {name: n for name, (_, n) in counts.items()} == {name: n for name, (_, n) in dense.items()}
    assert all(zeros == (n if ".layer.1." in name or ".layer.2." in name else 0) for name, (zeros, n) in counts.items())
    assert list(matrix_kinds(model)) == list(dense)
    assert list(count_pruned_units(model)["ffn"].values()) == [[0, 64], [64, 64], [64, 64], [0, 64]]
    fractions = {"prunable": 0.5, "encoder": 0.5, "model": 2 * n_layer / n_model}
    assert sparsity_fractions(model) == pytest.approx(fractions, rel=1e-12)


def test_kept_copy_equals_the_folded_model():
    model = deep("modernbert")
    pruner = cap.attach(model, cap.Layers(final_sparsity=0.5))
    pruner.update_masks(0.5)
    copied = type(model)(pruner.folded_config(model.config))
    copied.load_state_dict(pruner.folded_state(model))
    assert len(encoder_stack(model).layers) == model.config.num_hidden_layers == 4
    torch.testing.assert_close(logits(copied), logits(model), rtol=0, atol=1e-6)


def test_state_says_which_layers_are_kept():
    pruner, other = (cap.attach(deep(), cap.Layers(final_sparsity=0.5)) for _ in range(2))
    pruner.update_masks(0.5)
    other.load_state_dict(pruner.state_dict())
    assert removed(other) == {1, 2}
    assert all(torch.equal(mask, other.masks[name]) for name, mask in pruner.masks.items())
    assert {bool(mask.all()) for name, mask in other.masks.items() if ".layer.0." in name} == {True}


def test_processes_get_a_gradient_of_zero_from_a_layer_that_is_out(tmp_path):
    model = deep()
    pruner = cap.attach(model, cap.Layers(final_sparsity=0.5))
    pruner.update_masks(0.5)
    weight = encoder_stack(model).layers[1].output.dense.weight
    loss_of(model, tiny_batch()).backward()
    assert weight.grad is None
    expected = model.classifier.weight.grad.clone()
    model.zero_grad()
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    try:
        loss_of(model, tiny_batch()).backward()
    finally:
        distributed.destroy_process_group()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert not bool(weight.grad.any())
    assert torch.equal(model.classifier.weight.grad, expected)


def test_run_that_starts_from_a_shorter_model_counts_it_as_dense(tmp_path):
    from cap.base.kinds import Head
    from cap.models.encoders import load_model, load_saved_model
    from cap.models.sources import ModelSource

    model = deep()
    pruner = cap.attach(model, cap.Layers(final_sparsity=0.5))
    pruner.update_masks(0.5)
    pruner.fold()
    model.save_pretrained(tmp_path)
    assert read_removed(load_saved_model(tmp_path, "classes").config).kept == (0, 3)
    start = load_model(ModelSource(str(tmp_path), "shorter"), head=Head("classes", ("no", "yes"))).model
    assert sparsity_fractions(start)["prunable"] == 0.0


def test_damaged_note_of_removed_layers_is_refused():
    config = deep().config
    config.cap_layers = {"version": 7}
    with pytest.raises(InputError, match=r"cap_layers in config\.json must be of version 1"):
        read_removed(config)
