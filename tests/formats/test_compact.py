from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModelForQuestionAnswering, AutoModelForSequenceClassification, PreTrainedModel

from cap.base.errors import InputError
from cap.formats.compact import Compacted, compact, load_compact, save_compact
from cap.models.families import FAMILIES, Units, prunable
from cap.models.layout import Layout, keep_units
from tests.cases import each_with_the_first
from tests.models.tiny_models import (
    BIASES,
    FAMILY_NAMES,
    GATED,
    HIDDEN,
    INTERMEDIATE,
    SPAN_FAMILIES,
    tiny_batch,
    tiny_classifier,
    tiny_tokenizer,
)

HEAD_SIZE = HIDDEN // 4
FEWER_HEADS = ["bert", "roberta", "electra", "distilbert", "modernbert", "gte"]
ALL_HEADS = ["mpnet", "deberta-v2"]


def matrices_of(units: Units) -> list[tuple[Tensor, Tensor | None]]:
    """Take the linear layers whose rows belong to units apart into weights and biases of matrices."""
    n_rows = units.n * units.size
    weights = [weight for linear in units.incoming for weight in linear.weight.detach().split(n_rows)]
    biases = [
        [None] * (linear.out_features // n_rows) if linear.bias is None else linear.bias.detach().split(n_rows)
        for linear in units.incoming
    ]
    return list(zip(weights, [bias for own in biases for bias in own], strict=True))


def zero_units(units: Units, numbers: range) -> None:
    for number in numbers:
        rows = slice(number * units.size, (number + 1) * units.size)
        units.outgoing.weight[:, rows] = 0.0
        for weight, bias in matrices_of(units):
            weight[rows] = 0.0
            if bias is not None:
                bias[rows] = 0.0


def structured_half(model: PreTrainedModel) -> None:
    found = prunable(model)
    for units in [*found.heads.values(), *found.ffn.values()]:
        zero_units(units, range(0, units.n, 2))


def unstructured(model: PreTrainedModel) -> None:
    draw = torch.Generator().manual_seed(3)
    for linear in prunable(model).linears.values():
        linear.weight[torch.rand(linear.weight.shape, generator=draw) < 0.97] = 0.0


def one_layer_of_zeros(model: PreTrainedModel) -> None:
    for name, linear in prunable(model).linears.items():
        linear.weight *= 0.0 if ".1." in name else 1.0


def each_dimension_in_its_own_way(model: PreTrainedModel) -> None:
    """Take the inputs of one half of a head's dimensions, and the outputs of the other half."""
    half = HEAD_SIZE // 2
    for units in prunable(model).heads.values():
        matrices_of(units)[2][0][:half] = 0.0
        units.outgoing.weight[:, half:HEAD_SIZE] = 0.0


def nothing(model: PreTrainedModel) -> None:
    pass


every_family = pytest.mark.parametrize("family", FAMILY_NAMES)
ZEROS = [structured_half, unstructured, one_layer_of_zeros, each_dimension_in_its_own_way, nothing]
every_zero = pytest.mark.parametrize("prune", ZEROS)


def pruned(family: str, prune: Callable[[PreTrainedModel], None], **options: object) -> PreTrainedModel:
    model = tiny_classifier(family, **options)
    with torch.no_grad():
        prune(model)
    return model


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        output = model(**tiny_batch())
    return torch.cat([tensor.flatten() for tensor in output.to_tuple()])


def units_that_do_something(units: Units, sources: list[tuple[Tensor, Tensor | None]]) -> int:
    """Count, one by one, the units through which paths of weights lead from inputs to outputs; at least one stays.

    Of a gated FFN unit one comes through what is activated, and one through what that is multiplied with.
    """
    alive = 0
    for number in range(units.n):
        own = slice(number * units.size, (number + 1) * units.size)
        # The number of dimensions with a weight on both sides, for each pair of an input and an output.
        outputs = (units.outgoing.weight[:, own] != 0).double()
        alive += all(bool((outputs @ (weight[own] != 0).double()).any()) for weight, _ in sources)
    return max(alive, 1)


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def saved(family: str, prune: Callable[[PreTrainedModel], None], folder: Path) -> PreTrainedModel:
    model = compact(pruned(family, prune)).model
    save_compact(model, tiny_tokenizer(), folder)
    return model


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@every_family
def test_the_logits_stay(family: str) -> None:
    model = pruned(family, structured_half)
    torch.testing.assert_close(logits(compact(model).model), logits(model), rtol=0, atol=1e-5)


@every_family
@every_zero
def test_the_mathematics_is_exact(family: str, prune) -> None:
    model = pruned(family, prune).double()
    torch.testing.assert_close(logits(compact(model).model), logits(model), rtol=0, atol=1e-10)


@every_family
@every_zero
def test_what_is_left_is_what_did_something(family: str, prune) -> None:
    model = pruned(family, prune)
    layout = compact(model).layout
    found = prunable(model)
    heads = [units_that_do_something(units, matrices_of(units)[2:]) for units in found.heads.values()]
    assert layout.heads == tuple(heads if FAMILIES[family].has_removable_heads else [4, 4])
    assert layout.ffn == tuple(units_that_do_something(units, matrices_of(units)) for units in found.ffn.values())


@pytest.mark.parametrize("family", FEWER_HEADS)
def test_half_of_the_units_take_half_of_the_prunable_weights(family: str) -> None:
    model = pruned(family, structured_half)
    smaller = compact(model).model
    n_before, n_after = (
        sum(linear.weight.numel() for linear in prunable(each).linears.values()) for each in (model, smaller)
    )
    assert n_after == n_before / 2


@pytest.mark.parametrize("family", FEWER_HEADS)
def test_the_matrices_have_the_shapes_of_the_layout(family: str) -> None:
    smaller = compact(pruned(family, structured_half)).model
    found = prunable(smaller)
    shapes = [tuple(own.of(found.linears[own.linear].weight).shape) for own in found.matrices.values()]
    attention = [(2 * HEAD_SIZE, HIDDEN)] * 3 + [(HIDDEN, 2 * HEAD_SIZE)]
    ffn_in = [(INTERMEDIATE // 2, HIDDEN)] * (2 if family in GATED else 1)
    assert shapes == [*attention, *ffn_in, (HIDDEN, INTERMEDIATE // 2)] * 2


def test_modules_say_the_shapes_that_they_have() -> None:
    layer = compact(pruned("bert", structured_half)).model.bert.encoder.layer[0]
    assert (layer.intermediate.dense.in_features, layer.intermediate.dense.out_features) == (HIDDEN, INTERMEDIATE // 2)
    assert (layer.output.dense.in_features, layer.output.dense.out_features) == (INTERMEDIATE // 2, HIDDEN)


def test_the_given_model_is_not_changed() -> None:
    model = pruned("bert", unstructured)
    before = weights(model)
    compact(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(model.config, "cap_layout")


def test_what_is_compact_already_stays_as_it_is() -> None:
    once = compact(pruned("bert", unstructured))
    twice = compact(once.model)
    assert twice.layout == once.layout
    assert torch.equal(logits(twice.model), logits(once.model))


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FEWER_HEADS)
def test_every_attention_implementation_runs_with_fewer_heads(family: str, implementation: str) -> None:
    model = pruned(family, structured_half)
    model.set_attn_implementation(implementation)
    smaller = compact(model).model
    assert smaller.config._attn_implementation == implementation
    torch.testing.assert_close(logits(smaller), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FEWER_HEADS)
def test_layers_may_have_different_numbers_of_heads(family: str) -> None:
    def uneven(model: PreTrainedModel) -> None:
        first, second = prunable(model).heads.values()
        zero_units(first, range(3))
        zero_units(second, range(1, 2))

    model = pruned(family, uneven)
    compacted = compact(model)
    assert compacted.layout.heads == (1, 3)
    torch.testing.assert_close(logits(compacted.model), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FEWER_HEADS)
def test_a_head_without_value_weights_leaves_its_value_bias(family: str) -> None:
    def values_off(model: PreTrainedModel) -> None:
        weight, bias = matrices_of(next(iter(prunable(model).heads.values())))[2]
        weight[:HEAD_SIZE] = 0.0
        bias[:HEAD_SIZE] = 3.0

    model = pruned(family, values_off, **BIASES.get(family, {}))
    compacted = compact(model)
    assert compacted.layout.heads == (3, 4)
    torch.testing.assert_close(logits(compacted.model), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FEWER_HEADS)
def test_a_head_whose_dimensions_are_dead_in_different_ways_goes(family: str) -> None:
    assert compact(pruned(family, each_dimension_in_its_own_way)).layout.heads == (3, 3)


def test_a_head_stays_while_one_of_its_dimensions_leads_somewhere() -> None:
    def all_but_one(model: PreTrainedModel) -> None:
        each_dimension_in_its_own_way(model)
        for units in prunable(model).heads.values():
            units.outgoing.weight[3, HEAD_SIZE - 1] = 0.5

    assert compact(pruned("bert", all_but_one)).layout.heads == (4, 4)


def test_a_head_with_constant_dimensions_stays_where_there_is_no_bias_to_take_them() -> None:
    def without_bias(model: PreTrainedModel) -> None:
        each_dimension_in_its_own_way(model)
        for units in prunable(model).heads.values():
            units.outgoing.bias = None

    assert compact(pruned("bert", without_bias)).layout.heads == (4, 4)


@pytest.mark.parametrize("side", [0, 1], ids=["query", "key"])
def test_a_head_without_query_or_key_weights_stays(side: int) -> None:
    def queries_off(model: PreTrainedModel) -> None:
        for units in prunable(model).heads.values():
            units.incoming[side].weight[:HEAD_SIZE] = 0.0

    assert compact(pruned("bert", queries_off)).layout.heads == (4, 4)


@pytest.mark.parametrize(
    ("family", "activation"), each_with_the_first(FAMILY_NAMES, ["gelu", "relu", "silu", "sigmoid"])
)
def test_an_ffn_unit_without_incoming_weights_leaves_the_activation_of_its_bias(family: str, activation: str) -> None:
    model = tiny_classifier(family, **{FAMILIES[family].activation: activation}, **BIASES.get(family, {}))
    for units in prunable(model).ffn.values():
        for weight, bias in matrices_of(units):
            weight[10:30] = 0.0
            if bias is not None:  # GTE has none here
                bias[10:30] = torch.linspace(-2.0, 2.0, 20)
    compacted = compact(model)
    assert compacted.layout.ffn == (INTERMEDIATE - 20,) * 2
    torch.testing.assert_close(logits(compacted.model), logits(model), rtol=0, atol=1e-5)


def test_a_constant_stays_a_unit_where_there_is_no_bias_to_take_it() -> None:
    def without_bias(model: PreTrainedModel) -> None:
        (first, _) = prunable(model).ffn.values()
        first.incoming[0].weight[10:30] = 0.0
        first.outgoing.bias = None

    model = pruned("bert", without_bias)
    compacted = compact(model)
    assert compacted.layout.ffn == (INTERMEDIATE, INTERMEDIATE)
    torch.testing.assert_close(logits(compacted.model), logits(model), rtol=0, atol=1e-5)


def test_a_unit_without_incoming_bias_leaves_the_activation_of_zero() -> None:
    model = tiny_classifier("bert", hidden_act="sigmoid")
    with torch.no_grad():
        first, _ = prunable(model).ffn.values()
        first.incoming[0].weight[10:30] = 0.0
        first.incoming[0].bias = None
    compacted = compact(model)
    assert compacted.layout.ffn == (INTERMEDIATE - 20, INTERMEDIATE)
    torch.testing.assert_close(logits(compacted.model), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [0, 1], ids=["activated", "factor"])
@pytest.mark.parametrize("family", GATED)
def test_a_gated_unit_goes_if_one_side_is_zero_whatever_the_other_is(family: str, side: int) -> None:
    model = tiny_classifier(family)
    for units in prunable(model).ffn.values():
        weight, bias = matrices_of(units)[side]
        assert bias is None
        weight[10:30] = 0.0
    compacted = compact(model)
    assert compacted.layout.ffn == (INTERMEDIATE - 20,) * 2
    torch.testing.assert_close(logits(compacted.model), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [0, 1], ids=["activated", "factor"])
def test_a_gated_unit_stays_if_one_side_is_another_constant(side: int) -> None:
    model = tiny_classifier("modernbert", **BIASES["modernbert"])
    for units in prunable(model).ffn.values():
        matrices_of(units)[side][0][10:30] = 0.0
    compacted = compact(model)
    assert compacted.layout.ffn == (INTERMEDIATE,) * 2
    torch.testing.assert_close(logits(compacted.model), logits(model), rtol=0, atol=1e-5)


def test_a_negative_zero_is_a_zero() -> None:
    def negative(model: PreTrainedModel) -> None:
        first, _ = prunable(model).ffn.values()
        first.outgoing.weight[:, :5] = -0.0

    assert compact(pruned("bert", negative)).layout.ffn == (INTERMEDIATE - 5, INTERMEDIATE)


def test_a_layer_of_zeros_keeps_one_head_and_one_unit() -> None:
    assert compact(pruned("bert", one_layer_of_zeros)).layout == Layout((4, 1), (INTERMEDIATE, 1))


@pytest.mark.parametrize("family", ALL_HEADS)
def test_a_family_that_needs_all_heads_says_that_they_stay(family: str) -> None:
    compacted = compact(pruned(family, structured_half))
    assert compacted.layout == Layout((4, 4), (INTERMEDIATE // 2,) * 2)
    assert f"attention of {family} cannot run with fewer heads: 4 dead heads stay" in str(compacted.note)


def test_a_family_that_needs_no_heads_has_nothing_to_say() -> None:
    assert compact(pruned("bert", structured_half)).note is None


def without_even_heads(model: PreTrainedModel) -> PreTrainedModel:
    for units in prunable(model).heads.values():
        keep_units(units, torch.tensor([False, True, False, True]))
    return model


def test_mpnet_does_not_run_with_fewer_heads() -> None:
    with pytest.raises(RuntimeError):
        logits(without_even_heads(pruned("mpnet", structured_half)))


def test_deberta_runs_with_fewer_heads_but_computes_something_else() -> None:
    model = pruned("deberta-v2", structured_half)
    before = logits(model)
    assert not torch.allclose(logits(without_even_heads(model)), before, atol=1e-3)


def test_the_record_tells_what_went_by_layer() -> None:
    record = compact(pruned("bert", structured_half)).for_record()
    layers = ["bert.encoder.layer.0", "bert.encoder.layer.1"]
    assert record["heads"] == {
        "before": 8,
        "after": 4,
        "left_by_layer": [2, 2],
        "removed": {layer: [0, 2] for layer in layers},
    }
    assert record["ffn"]["removed"] == {layer: list(range(0, INTERMEDIATE, 2)) for layer in layers}
    assert json.loads(json.dumps(record)) == record


def test_masks_must_be_folded_first() -> None:
    model = tiny_classifier()
    parametrize.register_parametrization(model.bert.encoder.layer[0].output.dense, "weight", nn.Identity())
    with pytest.raises(ValueError, match="masks must be folded"):
        compact(model)


def test_an_unknown_family_is_refused() -> None:
    model = tiny_classifier()
    model.config = SimpleNamespace(model_type="xlnet")
    with pytest.raises(InputError, match="got 'xlnet'"):
        compact(model)


def question_answering(family: str) -> PreTrainedModel:
    model = AutoModelForQuestionAnswering.from_config(tiny_classifier(family).config).eval()
    with torch.no_grad():
        unstructured(model)
    return model


@pytest.mark.parametrize("family", SPAN_FAMILIES)
def test_question_answering_models_are_compacted_saved_and_loaded(family: str, tmp_path: Path) -> None:
    model = question_answering(family)
    compacted: Compacted = compact(model)
    save_compact(compacted.model, tiny_tokenizer(), tmp_path)
    loaded = load_compact(tmp_path)
    assert type(loaded) is type(model)
    assert max(compacted.layout.ffn) < INTERMEDIATE
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("family", "prune"), each_with_the_first(FAMILY_NAMES, ZEROS))
def test_a_saved_model_loads_bit_by_bit_into_the_stock_class(family: str, prune, tmp_path: Path) -> None:
    model = saved(family, prune, tmp_path)
    loaded = load_compact(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    torch.testing.assert_close(dict(loaded.state_dict()), weights(model), rtol=0, atol=0)
    assert torch.equal(logits(loaded), logits(model))


@every_family
def test_a_loaded_model_can_be_trained(family: str, tmp_path: Path) -> None:
    saved(family, structured_half, tmp_path)
    model = load_compact(tmp_path).train()
    before = weights(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**tiny_batch(), labels=torch.tensor([0, 1, 0])).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed >= {f"{name}.weight" for name in prunable(model).linears}


def test_the_configuration_is_the_dense_one_with_the_layout(tmp_path: Path) -> None:
    saved("bert", structured_half, tmp_path / "compact")
    tiny_classifier("bert").save_pretrained(tmp_path / "dense")
    compact_config, dense_config = (
        json.loads((tmp_path / name / "config.json").read_text()) for name in ("compact", "dense")
    )
    layout = {"version": 1, "heads": [2, 2], "ffn": [INTERMEDIATE // 2] * 2}
    assert compact_config == dense_config | {"cap_layout": layout}


def test_the_folder_holds_the_tokenizer(tmp_path: Path) -> None:
    saved("bert", structured_half, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_plain_transformers_stops_on_the_shapes(tmp_path: Path) -> None:
    saved("bert", structured_half, tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)


def test_loading_draws_no_random_numbers(tmp_path: Path) -> None:
    saved("bert", structured_half, tmp_path)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    load_compact(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dense_folder_is_refused(tmp_path: Path) -> None:
    tiny_classifier().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="must have the key cap_layout"):
        load_compact(tmp_path)


def test_a_folder_without_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"folder with a config\.json, got .* without one; give another"):
        load_compact(tmp_path)


def test_the_folder_of_a_run_is_refused_with_the_folder_of_its_model(tmp_path: Path) -> None:
    saved("bert", structured_half, tmp_path / "model")
    with pytest.raises(InputError, match=r"without one; give .*model$"):
        load_compact(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "{}", '{"model_type": "xyz"}', '{"model_type": "bert", "hidden_size": "x"}'])
def test_a_configuration_that_cannot_be_read_is_refused(text: str, tmp_path: Path) -> None:
    saved("bert", structured_half, tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json must be one that transformers reads"):
        load_compact(tmp_path)


@pytest.mark.parametrize("n_bytes", [0, 5, 1000, -4], ids=["empty", "header_cut", "names_cut", "end_cut"])
def test_weights_that_are_cut_off_are_refused(n_bytes: int, tmp_path: Path) -> None:
    saved("bert", structured_half, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:n_bytes])
    with pytest.raises(InputError, match=r"model\.safetensors must be a whole safetensors file"):
        load_compact(tmp_path)


def test_missing_weights_are_refused(tmp_path: Path) -> None:
    saved("bert", structured_half, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"must hold the weights in model\.safetensors"):
        load_compact(tmp_path)


@pytest.mark.parametrize("version", [2, "1", None])
def test_another_version_is_refused_by_its_name(version: object, tmp_path: Path) -> None:
    saved("bert", structured_half, tmp_path)
    change_config(tmp_path, cap_layout={"version": version, "heads": [2, 2], "ffn": [32, 32]})
    with pytest.raises(InputError, match=f"must have version 1, got version {version!r}"):
        load_compact(tmp_path)


def test_a_layout_of_other_weights_is_refused_with_the_shapes(tmp_path: Path) -> None:
    saved("bert", structured_half, tmp_path)
    change_config(tmp_path, cap_layout={"version": 1, "heads": [2, 2], "ffn": [32, 31]})
    with pytest.raises(InputError, match=r"1\.intermediate\.dense\.weight \(32, 32\) for \(31, 32\)"):
        load_compact(tmp_path)


@pytest.mark.parametrize(
    ("heads", "ffn"),
    [([2], [32, 32]), ([2, 5], [32, 32]), ([2, 0], [32, 32]), ([2, 2], [32, 65]), ([2, 2], 32), ([2, 2], [32, True])],
    ids=["short", "many_heads", "no_head", "many_units", "no_list", "no_number"],
)
def test_a_layout_that_cannot_be_is_refused(heads: object, ffn: object, tmp_path: Path) -> None:
    saved("bert", structured_half, tmp_path)
    change_config(tmp_path, cap_layout={"version": 1, "heads": heads, "ffn": ffn})
    with pytest.raises(InputError, match=r"cap_layout\.(heads|ffn)"):
        load_compact(tmp_path)


def test_a_layout_without_heads_that_the_family_needs_is_refused(tmp_path: Path) -> None:
    saved("mpnet", structured_half, tmp_path)
    change_config(tmp_path, cap_layout={"version": 1, "heads": [2, 2], "ffn": [32, 32]})
    with pytest.raises(InputError, match="mpnet, whose attention cannot run with fewer heads"):
        load_compact(tmp_path)


@pytest.mark.parametrize(
    "architectures", [["OtherModel"], [], ["RobertaForSequenceClassification"], ["AutoModel"], ["BertTokenizer"]]
)
def test_a_class_that_is_not_the_stock_one_is_refused(architectures: list[str], tmp_path: Path) -> None:
    saved("bert", structured_half, tmp_path)
    change_config(tmp_path, architectures=architectures)
    with pytest.raises(InputError, match="must name a class of transformers for bert models"):
        load_compact(tmp_path)


def test_sizes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    saved("bert", structured_half, tmp_path)
    change_config(tmp_path, num_attention_heads=5)
    with pytest.raises(InputError, match=r"config\.json must .*multiple of the number of attention"):
        load_compact(tmp_path)


@pytest.mark.parametrize("n_missing", [1, 5])
def test_weights_that_are_not_all_there_are_refused_with_their_number(n_missing: int, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved("bert", structured_half, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    missing = [name for name in sorted(tensors) if "LayerNorm" in name][:n_missing]
    save_file({name: tensor for name, tensor in tensors.items() if name not in missing}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=f"{missing[0]} missing for"):
        load_compact(tmp_path)
