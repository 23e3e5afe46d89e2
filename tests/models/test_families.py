from __future__ import annotations

import pytest
from torch import nn

from cap.errors import InputError
from cap.models.families import FAMILIES, encoder_layers, family_of, prunable_linears
from tests.models.tiny_models import FAMILY_NAMES, HIDDEN, INTERMEDIATE, LAYERS, tiny_classifier


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_prunable_matrices_are_the_two_dimensional_weights_of_the_encoder_layers(family: str) -> None:
    model = tiny_classifier(family)
    expected = {name for name, weight in model.named_parameters() if ".layer." in name and weight.ndim == 2}
    assert {f"{name}.weight" for name in prunable_linears(model)} == expected


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_number_of_prunable_weights_follows_from_the_sizes(family: str) -> None:
    n = sum(linear.weight.numel() for linear in prunable_linears(tiny_classifier(family)).values())
    assert n == LAYERS * (4 * HIDDEN**2 + 2 * HIDDEN * INTERMEDIATE)


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
    ("given", "first"), [("distilbrt", "distilbert"), ("xlm-roberta", "roberta"), ("electric", "electra")]
)
def test_an_unknown_family_is_refused_with_the_nearest_known_one_first(given: str, first: str) -> None:
    with pytest.raises(InputError, match=rf"known \({first}, .*got '{given}'"):
        family_of(given)


def test_an_unknown_family_is_refused_with_all_known_ones() -> None:
    with pytest.raises(InputError) as error:
        family_of("mpnet")
    assert all(name in str(error.value) for name in FAMILIES)


def test_a_matrix_that_is_no_linear_layer_is_refused() -> None:
    model = tiny_classifier()
    model.bert.encoder.layer[1].output.dense = nn.Identity()
    with pytest.raises(TypeError, match=r"layer\.1\.output\.dense must be a linear layer .*got Identity"):
        prunable_linears(model)
