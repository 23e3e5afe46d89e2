from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from cap.models.encoders import load_saved_model, model_key, save_model, weights_key
from cap.models.families import encoder_layers, prunable_linears
from cap.models.pooled import PooledModel, evaluating, mean_over_tokens, normalise
from cap.models.sources import tokenizer_key
from tests.models.tiny_models import (
    FAMILY_NAMES,
    HIDDEN,
    LAYERS,
    tiny_batch,
    tiny_classifier,
    tiny_tokenizer,
    without_last_norm,
)


def last_hidden(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(**tiny_batch(), output_hidden_states=True).hidden_states[-1]


def pooled(model: PreTrainedModel, pooling: str) -> Tensor:
    with torch.no_grad():
        return PooledModel(model, pooling)(tiny_batch()).pooled


def hidden_states(model: PreTrainedModel, batch: dict[str, Tensor] | None = None) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return PooledModel(model, "first_token")(batch or tiny_batch(), with_hidden=True).hidden


# --- hidden states


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_hidden_states_are_those_that_the_stock_model_gives_for_each_layer(family: str) -> None:
    model = tiny_classifier(family)
    with torch.no_grad():
        expected = without_last_norm(model)(**tiny_batch(), output_hidden_states=True).hidden_states
    assert len(expected) == 1 + LAYERS  # the embeddings come first
    torch.testing.assert_close(hidden_states(model), tuple(expected[1:]))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_hidden_states_get_a_gradient_in_every_layer(family: str) -> None:
    model = tiny_classifier(family)
    hidden = PooledModel(model, "first_token")(tiny_batch(), with_hidden=True).hidden
    sum(state.square().sum() for state in hidden).backward()
    assert all(linear.weight.grad.abs().sum() > 0 for linear in prunable_linears(model).values())


def test_hidden_states_that_nobody_wants_are_not_kept() -> None:
    model = tiny_classifier()
    layer_hooks = [layer._forward_hooks for layer in encoder_layers(model).values()]
    seen: list[int] = []
    model.bert.register_forward_pre_hook(lambda *_: seen.append(sum(map(len, layer_hooks))))
    assert PooledModel(model, "first_token")(tiny_batch()).hidden == ()
    assert seen == [0]


def test_mean_over_tokens_does_not_see_what_stands_at_padded_places() -> None:
    hidden, mask = torch.randn(3, 7, 4), tiny_batch()["attention_mask"]
    other = torch.where(mask.bool().unsqueeze(-1), hidden, 1e4)
    expected = torch.stack([row[:n].mean(dim=0) for row, n in zip(hidden, [7, 4, 1], strict=True)])
    torch.testing.assert_close(mean_over_tokens(hidden, mask), expected)
    torch.testing.assert_close(mean_over_tokens(other, mask), expected)


# --- pooling


def test_pooler_is_tanh_of_a_linear_map_of_the_first_token() -> None:
    model = tiny_classifier()
    dense = model.bert.pooler.dense
    expected = torch.tanh(last_hidden(model)[:, 0] @ dense.weight.T + dense.bias)
    torch.testing.assert_close(pooled(model, "pooler"), expected.detach())


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_first_token_is_the_first_row_of_the_last_hidden_states(family: str) -> None:
    model = tiny_classifier(family)
    torch.testing.assert_close(pooled(model, "first_token"), last_hidden(model)[:, 0])


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_mean_is_over_real_tokens_only(family: str) -> None:
    model = tiny_classifier(family)
    rows = zip(last_hidden(model), [7, 4, 1], strict=True)
    expected = torch.stack([sum(row[token] for token in range(n_real)) / n_real for row, n_real in rows])
    torch.testing.assert_close(pooled(model, "mean"), expected)


@pytest.mark.parametrize("pooling", ["first_token", "mean"])
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_padding_changes_nothing(family: str, pooling: str) -> None:
    model = tiny_classifier(family)
    short = {name: values[1:2, :4] for name, values in tiny_batch().items()}
    with torch.no_grad():
        alone = PooledModel(model, pooling)(short)
    torch.testing.assert_close(pooled(model, pooling)[1:2], alone.pooled, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_logits_are_those_of_the_stock_model(family: str) -> None:
    model = tiny_classifier(family, num_labels=3)
    with torch.no_grad():
        assert torch.equal(PooledModel(model, "first_token")(tiny_batch()).logits, model(**tiny_batch()).logits)


def test_the_segments_of_a_pair_reach_the_model() -> None:
    model = tiny_classifier()
    segments = {"token_type_ids": torch.ones(3, 7, dtype=torch.long)}
    with torch.no_grad():
        given = PooledModel(model, "mean")(tiny_batch() | segments).logits
        assert torch.equal(given, model(**tiny_batch(), **segments).logits)


def test_keys_that_are_no_model_input_are_ignored() -> None:
    model = tiny_classifier()
    more = {"label": torch.ones(3, dtype=torch.long), "example_id": torch.arange(3)}
    with torch.no_grad():
        assert torch.equal(PooledModel(model, "mean")(tiny_batch() | more).pooled, pooled(model, "mean"))


def test_one_forward_pass_gives_both_logits_and_pooled() -> None:
    model = tiny_classifier()
    calls: list[int] = []
    model.base_model.register_forward_hook(lambda *_: calls.append(1))
    PooledModel(model, "mean")(tiny_batch())
    assert len(calls) == 1


def test_no_hook_stays_on_the_stock_model() -> None:
    model = tiny_classifier()
    PooledModel(model, "mean")(tiny_batch(), with_hidden=True)
    assert not any(module._forward_hooks for module in model.modules())


def test_no_hook_stays_after_a_failed_pass() -> None:
    model = tiny_classifier()
    too_large = tiny_batch() | {"input_ids": torch.full((3, 7), 1000)}
    with pytest.raises(IndexError):
        PooledModel(model, "mean")(too_large, with_hidden=True)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("pooling", ["pooler", "first_token", "mean"])
def test_a_gradient_reaches_the_encoder_through_the_pooled_vector(pooling: str) -> None:
    model = tiny_classifier()
    PooledModel(model, pooling)(tiny_batch()).pooled.square().sum().backward()
    assert model.bert.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {"hidden_dropout_prob": 0.3}),
        ("bert", {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.25}),
        ("bert", {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.0}),
        ("distilbert", {"seq_classif_dropout": 0.15}),
    ],
    ids=["hidden", "classifier", "classifier_zero", "distilbert"],
)
def test_head_dropout_is_that_of_the_stock_head(family: str, options: dict[str, float]) -> None:
    model = tiny_classifier(family, **options)
    assert PooledModel(model, "mean").head_dropout() == model.dropout.p


@pytest.mark.parametrize("family", ["roberta", "electra"])
def test_head_dropout_is_that_of_a_two_layer_head(family: str) -> None:
    model = tiny_classifier(family, classifier_dropout=0.4)
    assert PooledModel(model, "mean").head_dropout() == model.classifier.dropout.p


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_encodings_have_length_1_in_float32(dtype: torch.dtype) -> None:
    vectors = torch.randn(5, HIDDEN, generator=torch.Generator().manual_seed(0)).to(dtype)
    torch.testing.assert_close(normalise(vectors).square().sum(dim=1), torch.ones(5))


def test_a_zero_vector_has_no_nan_encoding() -> None:
    assert torch.equal(normalise(torch.zeros(1, 4)), torch.zeros(1, 4))


# --- modes


def modes(module: nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


def partly_frozen() -> nn.Sequential:
    module = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)), nn.Dropout(0.5))
    module[1].eval()
    module[1][1].train()
    return module


def test_every_part_evaluates_inside_the_block() -> None:
    module = partly_frozen()
    with evaluating(module):
        assert not any(modes(module))


def test_every_part_gets_its_own_mode_back() -> None:
    module = partly_frozen()
    before = modes(module)
    with evaluating(module):
        pass
    assert modes(module) == before == [True, True, False, False, True, True]


def test_modes_come_back_after_an_exception() -> None:
    module = partly_frozen()
    before = modes(module)
    with pytest.raises(KeyError), evaluating(module):
        raise KeyError
    assert modes(module) == before


def test_no_graph_is_kept_inside_the_block() -> None:
    module = nn.Linear(2, 2)
    with evaluating(module):
        assert not module(torch.ones(1, 2)).requires_grad


def test_what_was_made_inside_the_block_can_be_used_in_a_backward_pass() -> None:
    module = nn.Linear(2, 2)
    with evaluating(module):
        frozen = module(torch.ones(1, 2))
    (module(torch.ones(1, 2)) * frozen).sum().backward()
    torch.testing.assert_close(module.bias.grad, frozen[0])


# --- keys


def test_equal_weights_have_one_key() -> None:
    assert weights_key(tiny_classifier(seed=3)) == weights_key(tiny_classifier(seed=3))


def test_the_key_survives_saving_and_loading(tmp_path: Path) -> None:
    model = tiny_classifier()
    save_model(model, tiny_tokenizer(), tmp_path)
    assert weights_key(load_saved_model(tmp_path, "classes")) == weights_key(model)


@pytest.mark.parametrize(
    "name", ["bert.embeddings.word_embeddings.weight", "bert.encoder.layer.1.output.LayerNorm.bias", "classifier.bias"]
)
def test_one_changed_weight_changes_the_key(name: str) -> None:
    model = tiny_classifier()
    before = weights_key(model)
    with torch.no_grad():
        model.get_parameter(name).view(-1)[0] += 1e-3
    assert weights_key(model) != before


def test_the_dtype_belongs_to_the_key() -> None:
    model = tiny_classifier()
    assert weights_key(copy.deepcopy(model).to(torch.bfloat16)) != weights_key(model)


def test_the_mode_does_not_belong_to_the_key() -> None:
    model = tiny_classifier()
    assert weights_key(model.train()) == weights_key(model.eval())


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "relu"},
        {"num_attention_heads": 1},
        {"layer_norm_eps": 1e-5},
        {"hidden_dropout_prob": 0.3},
        {"attention_probs_dropout_prob": 0.3},
    ],
    ids=lambda change: next(iter(change)),
)
def test_equal_weights_that_compute_something_else_have_another_key(change) -> None:
    model = tiny_classifier(seed=3)
    before, weights = model_key(model), weights_key(model)
    model.config.update(change)
    assert model_key(model) != before
    assert weights_key(model) == weights


def test_key_of_a_model_does_not_depend_on_names_and_versions() -> None:
    model = tiny_classifier(seed=3)
    before = model_key(model)
    model.config.update({"_name_or_path": "a", "transformers_version": "1", "architectures": ["B"]})
    model.config.id2label, model.config.label2id = {0: "no", 1: "yes"}, {"no": 0, "yes": 1}
    assert model_key(model) == before


def test_key_of_a_saved_model_is_that_of_the_model(tmp_path: Path) -> None:
    model = tiny_classifier(seed=3)
    save_model(model, tiny_tokenizer(), tmp_path)
    assert model_key(load_saved_model(tmp_path, "classes")) == model_key(model)


def test_equal_tokenizers_have_one_key() -> None:
    assert tokenizer_key(tiny_tokenizer()) == tokenizer_key(tiny_tokenizer())


@pytest.mark.parametrize(
    "other",
    [
        lambda: tiny_tokenizer(("cat", "dog", "ran")),
        lambda: tiny_tokenizer(("dog", "cat", "sat")),
        lambda: tiny_tokenizer(do_lower_case=False),
        lambda: tiny_tokenizer(additional_special_tokens=["cat"]),
        lambda: tiny_tokenizer(truncation_side="left"),
        lambda: tiny_tokenizer(model_input_names=["input_ids", "attention_mask"]),
    ],
    ids=["word", "order", "option", "special", "end that is cut", "inputs"],
)
def test_another_tokenizer_has_another_key(other) -> None:
    assert tokenizer_key(other()) != tokenizer_key(tiny_tokenizer())


def test_the_key_of_a_tokenizer_does_not_depend_on_what_it_was_used_for() -> None:
    tokenizer = tiny_tokenizer()
    before = tokenizer_key(tokenizer)
    tokenizer(["cat sat", "dog"], truncation=True, max_length=3, padding=True)
    assert tokenizer_key(tokenizer) == before


# --- saving


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_saved_folder_gives_equal_logits(family: str, tmp_path: Path) -> None:
    model = tiny_classifier(family)
    save_model(model, tiny_tokenizer(), tmp_path)
    with torch.no_grad():
        assert torch.equal(
            load_saved_model(tmp_path, "classes").eval()(**tiny_batch()).logits, model(**tiny_batch()).logits
        )


def test_a_saved_folder_keeps_the_names_of_the_classes(tmp_path: Path) -> None:
    model = tiny_classifier(id2label={0: "no", 1: "yes"}, label2id={"no": 0, "yes": 1})
    save_model(model, tiny_tokenizer(), tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).id2label == {0: "no", 1: "yes"}


def test_saving_leaves_the_verbosity_of_transformers_alone(tmp_path: Path) -> None:
    before = transformers_logging.get_verbosity()
    save_model(tiny_classifier(), tiny_tokenizer(), tmp_path)
    assert transformers_logging.get_verbosity() == before
