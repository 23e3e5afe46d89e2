from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from cap.base.errors import InputError
from cap.base.parts import PARTS
from cap.models.families import (
    FAMILIES,
    Family,
    encoder_layers,
    family_of,
    longest_input,
    parameters_of,
    prunable,
    prunable_linears,
)
from tests.models.tiny_models import (
    FAMILY_NAMES,
    HIDDEN,
    INTERMEDIATE,
    LAYERS,
    in_layers,
    n_prunable,
    tiny_batch,
    tiny_classifier,
    tiny_tokenizer,
)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_prunable_matrices_are_the_two_dimensional_weights_of_the_encoder_layers(family: str) -> None:
    model = tiny_classifier(family)
    expected = {name for name, weight in model.named_parameters() if in_layers(name) and weight.ndim == 2}
    assert {f"{name}.weight" for name in prunable_linears(model)} == expected


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_number_of_prunable_weights_follows_from_the_sizes(family: str) -> None:
    n = sum(linear.weight.numel() for linear in prunable_linears(tiny_classifier(family)).values())
    assert n == n_prunable(family)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_names_lead_to_the_modules(family: str) -> None:
    model = tiny_classifier(family)
    assert all(model.get_submodule(name) is linear for name, linear in prunable_linears(model).items())


@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("bert", "bert.encoder.layer"),
        ("roberta", "roberta.encoder.layer"),
        ("electra", "electra.encoder.layer"),
        ("distilbert", "distilbert.transformer.layer"),
        ("mpnet", "mpnet.encoder.layer"),
        ("deberta-v2", "deberta.encoder.layer"),
        ("modernbert", "model.layers"),
        ("gte", "gte.layers"),
    ],
    ids=FAMILY_NAMES,
)
def test_layers_come_in_order(family: str, path: str) -> None:
    assert list(encoder_layers(tiny_classifier(family, seed=1))) == [f"{path}.0", f"{path}.1"]


def test_layers_come_in_order_of_depth_not_of_the_alphabet() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 4, "num_attention_heads": 1, "intermediate_size": 4, "vocab_size": 6}
    model = BertForSequenceClassification(BertConfig(num_hidden_layers=11, **sizes))
    assert [name.rsplit(".", 1)[1] for name in encoder_layers(model)] == [str(layer) for layer in range(11)]


@pytest.mark.parametrize(
    ("given", "first"), [("distilbrt", "distilbert"), ("xlm-roberta-xl", "xlm-roberta"), ("electric", "electra")]
)
def test_an_unknown_family_is_refused_with_the_nearest_known_one_first(given: str, first: str) -> None:
    with pytest.raises(InputError, match=rf"known \({first}, .*got '{given}'"):
        family_of(given)


@pytest.mark.parametrize("family", ["xlm-roberta", "camembert"])
def test_a_family_that_is_built_as_another_is_pruned_as_it_is(family: str, tmp_path: Path) -> None:
    import cap
    from cap.formats.compact import compact, load_compact, save_compact

    model, other = tiny_classifier(family), tiny_classifier("roberta")
    assert list(prunable(model).matrices) == list(prunable(other).matrices)
    pruner = cap.attach(model, cap.Structured(final_sparsity=0.5, importance="random"))
    pruner.update_masks(0.5)
    with torch.no_grad():
        gated = model(**tiny_batch()).logits
    pruner.fold()
    smaller = compact(model).model
    save_compact(smaller, tiny_tokenizer(), tmp_path)
    assert smaller.num_parameters() < other.num_parameters()
    with torch.no_grad():
        torch.testing.assert_close(load_compact(tmp_path)(**tiny_batch()).logits, gated, rtol=0, atol=1e-5)


def test_an_unknown_family_is_refused_with_all_known_ones() -> None:
    with pytest.raises(InputError) as error:
        family_of("xlnet")
    assert all(name in str(error.value) for name in FAMILIES)


def test_an_unknown_family_is_refused_with_the_row_that_would_add_it() -> None:
    with pytest.raises(InputError) as error:
        family_of("xlnet")
    row = str(error.value).split("as in\n")[1]
    assert eval("{" + row + "}", {"Family": Family}) == {"xlnet": FAMILIES["bert"]}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_units_cover_every_prunable_weight_once(family: str) -> None:
    found = prunable(tiny_classifier(family))
    units = [*found.heads.values(), *found.ffn.values()]
    matrices = [linear for unit in units for linear in (*unit.incoming, unit.outgoing)]
    assert {id(linear) for linear in matrices} == {id(linear) for linear in found.linears.values()}
    assert sum(unit.n * unit.weights_per_unit for unit in units) == sum(
        linear.weight.numel() for linear in found.linears.values()
    )


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_units_have_the_numbers_and_sizes_of_the_configuration(family: str) -> None:
    found = prunable(tiny_classifier(family))
    assert [(unit.n, unit.size) for unit in found.heads.values()] == [(4, HIDDEN // 4)] * LAYERS
    assert [(unit.n, unit.size) for unit in found.ffn.values()] == [(INTERMEDIATE, 1)] * LAYERS


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_every_matrix_of_a_layer_has_its_kind_in_the_order_of_use(family: str) -> None:
    kinds = [matrix.kind for matrix in prunable(tiny_classifier(family)).matrices.values()]
    ffn_in = {"modernbert": ["FFN in", "FFN gate"], "gte": ["FFN gate", "FFN in"]}.get(family, ["FFN in"])
    assert kinds == ["query", "key", "value", "attention output", *ffn_in, "FFN out"] * LAYERS


def test_the_matrices_of_one_linear_layer_have_names_of_their_own() -> None:
    assert list(prunable(tiny_classifier("modernbert")).matrices)[:7] == [
        "model.layers.0.attn.Wqkv.query",
        "model.layers.0.attn.Wqkv.key",
        "model.layers.0.attn.Wqkv.value",
        "model.layers.0.attn.Wo",
        "model.layers.0.mlp.Wi.in",
        "model.layers.0.mlp.Wi.gate",
        "model.layers.0.mlp.Wo",
    ]


def test_a_linear_layer_of_its_own_has_one_matrix_of_its_name() -> None:
    assert list(prunable(tiny_classifier()).matrices) == list(prunable_linears(tiny_classifier()))


def test_the_parts_of_a_linear_layer_are_what_the_stock_model_takes_them_for() -> None:
    model = tiny_classifier("modernbert").double()
    found = prunable(model).matrices
    attention, ffn = model.model.layers[0].attn, model.model.layers[0].mlp
    own = {name: found[f"model.layers.0.{name}"] for name in ("attn.Wqkv.value", "mlp.Wi.in", "mlp.Wi.gate")}
    inputs = torch.randn(5, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Where no head looks at another token, attention is its values.
        alone = attention(inputs[:, None], position_embeddings=(torch.ones(1), torch.zeros(1)))[0][:, 0]
        value = inputs @ own["attn.Wqkv.value"].of(attention.Wqkv.weight).T
        torch.testing.assert_close(alone, attention.Wo(value))
        read, gate = (inputs @ own[name].of(ffn.Wi.weight).T for name in ("mlp.Wi.in", "mlp.Wi.gate"))
        torch.testing.assert_close(ffn(inputs), ffn.Wo(functional.gelu(read) * gate))


def test_what_is_activated_in_a_gated_ffn_comes_first() -> None:
    ffn = tiny_classifier("gte").gte.layers[0].mlp
    first, second = (ffn.get_submodule(path.removeprefix("mlp.")) for path in FAMILIES["gte"].ffn_in)
    inputs = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ffn(inputs), ffn.down_proj(functional.gelu(first(inputs)) * second(inputs)))


@pytest.mark.parametrize(
    ("family", "longest"), [("bert", 40), ("distilbert", 40), ("roberta", 38), ("mpnet", 38), ("deberta-v2", 40)]
)
def test_the_longest_input_leaves_out_positions_taken_by_padding(family: str, longest: int) -> None:
    assert longest_input(tiny_classifier(family).config) == longest


_TABLES = ["word_embeddings.weight", "position_embeddings.weight"]
_NORM = ["LayerNorm.weight", "LayerNorm.bias"]
_TYPES = "token_type_embeddings.weight"
# Written down by hand: what is looked up by token, type or position, and what stands right behind it.
EMBEDDINGS = {
    "bert": [f"bert.embeddings.{name}" for name in [*_TABLES, _TYPES, *_NORM]],
    "roberta": [f"roberta.embeddings.{name}" for name in [*_TABLES, _TYPES, *_NORM]],
    "electra": [
        *(f"electra.embeddings.{name}" for name in [*_TABLES, _TYPES, *_NORM]),
        "electra.embeddings_project.weight",
        "electra.embeddings_project.bias",
    ],
    "distilbert": [f"distilbert.embeddings.{name}" for name in [*_TABLES, *_NORM]],
    "mpnet": [
        *(f"mpnet.embeddings.{name}" for name in [*_TABLES, *_NORM]),
        "mpnet.encoder.relative_attention_bias.weight",
    ],
    "deberta-v2": [
        *(f"deberta.embeddings.{name}" for name in [*_TABLES, *_NORM]),
        "deberta.encoder.rel_embeddings.weight",
    ],
    "modernbert": ["model.embeddings.tok_embeddings.weight", "model.embeddings.norm.weight"],
    "gte": [f"gte.embeddings.{name}" for name in ["word_embeddings.weight", _TYPES, *_NORM]],
}
POOLERS = {"bert": "bert.pooler.dense", "deberta-v2": "pooler.dense", "gte": "gte.pooler.dense"}


def weight_and_bias(*names: str) -> list[str]:
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


HEADS = {
    "bert": weight_and_bias("classifier"),
    "roberta": weight_and_bias("classifier.dense", "classifier.out_proj"),
    "electra": weight_and_bias("classifier.dense", "classifier.out_proj"),
    "distilbert": weight_and_bias("pre_classifier", "classifier"),
    "mpnet": weight_and_bias("classifier.dense", "classifier.out_proj"),
    "deberta-v2": weight_and_bias("classifier"),
    "modernbert": ["head.dense.weight", "head.norm.weight", *weight_and_bias("classifier")],
    "gte": weight_and_bias("classifier"),
}
# In the base model, behind the layers: always trained, and not counted as theirs.
BEHIND = {"modernbert": ["model.final_norm.weight"]}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_embeddings_are_all_that_is_looked_up_with_what_stands_right_behind_it(family: str) -> None:
    assert sorted(parameters_of(tiny_classifier(family), ["embeddings"])) == sorted(EMBEDDINGS[family])


def test_the_layernorm_of_relative_positions_belongs_to_them() -> None:
    found = parameters_of(tiny_classifier("deberta-v2", norm_rel_ebd="layer_norm"), ["embeddings"])
    assert {"deberta.encoder.LayerNorm.weight", "deberta.encoder.LayerNorm.bias"} <= set(found)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_pooler_is_found_in_the_base_model_or_beside_it(family: str) -> None:
    expected = weight_and_bias(POOLERS[family]) if family in POOLERS else []
    assert parameters_of(tiny_classifier(family), ["pooler"]) == expected


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_head_is_what_else_lies_outside_the_base_model(family: str) -> None:
    assert parameters_of(tiny_classifier(family), ["head"]) == HEADS[family]


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_parts_and_the_encoder_layers_are_the_whole_model(family: str) -> None:
    model = tiny_classifier(family)
    layers = [name for name, _ in model.named_parameters() if in_layers(name)]
    parts = [name for part in PARTS for name in parameters_of(model, [part])]
    assert sorted(layers + parts + BEHIND.get(family, [])) == sorted(name for name, _ in model.named_parameters())


def test_a_matrix_that_is_no_linear_layer_is_refused() -> None:
    model = tiny_classifier()
    model.bert.encoder.layer[1].output.dense = nn.Identity()
    with pytest.raises(TypeError, match=r"layer\.1\.output\.dense must be a linear layer .*got Identity"):
        prunable_linears(model)
