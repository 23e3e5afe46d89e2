from __future__ import annotations

import hashlib
import json
import re
import sys
import types
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, BertConfig, BertModel

from cap import Magnitude, attach
from cap.base.errors import InputError
from cap.base.kinds import Head
from cap.models.encoders import LoadedModel, load_in_order, load_model, require_head
from cap.models.sources import ModelSource, load_config, load_tokenizer, resolve_source, tokenizer_key
from tests.models.tiny_models import FAMILY_NAMES, in_layers, tiny_batch, tiny_classifier, tiny_tokenizer

HEAD = Head("classes", ("no", "yes"))


def load(folder: Path, head: Head = HEAD) -> LoadedModel:
    return load_model(ModelSource(str(folder), f"folder {folder.name}"), head=head)


def write_weights(folder: Path) -> str:
    """Write a file in place of the weights, and return its hash."""
    (folder / "model.safetensors").write_bytes(b"weights")
    return hashlib.sha256(b"weights").hexdigest()


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install a package that carries a model; return the model's folder."""
    folder = tmp_path / "carried"
    folder.mkdir()
    module = types.ModuleType("carried_model_of_tests")
    module.get_model_path = lambda: folder
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return folder


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """Save an encoder without a task head, as pre-trained models come."""
    tiny_classifier().base_model.save_pretrained(tmp_path)
    return tmp_path


# --- resolve_source


def test_a_hub_name_is_its_own_label() -> None:
    source = resolve_source("owner/name", package=None, sha256=None, revision="v2")
    assert source == ModelSource("owner/name", "owner/name", "v2")


def test_the_label_of_a_folder_is_no_absolute_path(tmp_path: Path) -> None:
    source = resolve_source(str(tmp_path), package=None, sha256=None, revision=None)
    assert source == ModelSource(str(tmp_path), f"folder {tmp_path.name}")


def test_a_package_says_where_its_model_is(package: Path) -> None:
    source = resolve_source(None, package="carried_model_of_tests", sha256=None, revision=None)
    assert source == ModelSource(str(package), "package carried-model-of-tests")


def test_a_name_wins_over_a_package(package: Path) -> None:
    source = resolve_source("owner/name", package="carried_model_of_tests", sha256=None, revision=None)
    assert source.name_or_path == "owner/name"


def test_nothing_named_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.name_or_path must be .*got nothing; set it or choose"):
        resolve_source(None, package=None, sha256=None, revision=None)


def test_a_missing_package_is_refused_with_what_to_install() -> None:
    with pytest.raises(InputError, match=r"pip install no-such-package-of-tests.*model\.name_or_path=FOLDER"):
        resolve_source(None, package="no_such_package_of_tests", sha256=None, revision=None)


def test_weights_with_the_expected_hash_pass(package: Path) -> None:
    sha256 = write_weights(package)
    source = resolve_source(None, package="carried_model_of_tests", sha256=sha256, revision=None)
    assert source.name_or_path == str(package)


def test_a_hash_of_a_package_says_nothing_of_a_model_named_in_its_place(package: Path, tmp_path: Path) -> None:
    source = resolve_source(str(tmp_path), package="carried_model_of_tests", sha256="0" * 64, revision=None)
    assert source.name_or_path == str(tmp_path)
    with pytest.raises(InputError, match=r"model\.safetensors must lie in the model's folder"):
        resolve_source(str(tmp_path), package=None, sha256="0" * 64, revision=None)


@pytest.mark.parametrize("path", ["/nowhere/model", "./model", "a/b/c"])
def test_a_path_that_leads_nowhere_is_no_name_of_the_hub(path: str) -> None:
    with pytest.raises(InputError, match=rf"got '{path}', where there is none; correct the path"):
        load_config(resolve_source(path, package=None, sha256=None, revision=None))


def test_a_hash_that_differs_is_refused_with_both_hashes(package: Path) -> None:
    found = write_weights(package)
    with pytest.raises(InputError, match=f"must have sha256 {'0' * 64}, got {found}.*model.sha256=null"):
        resolve_source(None, package="carried_model_of_tests", sha256="0" * 64, revision=None)


def test_missing_weights_are_refused_where_a_hash_is_expected(package: Path) -> None:
    with pytest.raises(InputError, match=r"model\.safetensors must lie in the model's folder"):
        resolve_source(None, package="carried_model_of_tests", sha256="0" * 64, revision=None)


# --- load_model


def test_a_family_without_a_head_for_spans_is_refused() -> None:
    require_head("gte", "classes")
    require_head("modernbert", "span")
    with pytest.raises(InputError, match=r"needs AutoModelForQuestionAnswering, which .* not have for gte models"):
        require_head("gte", "span")


def test_a_pooler_from_the_checkpoint_is_trained(base_folder: Path) -> None:
    assert load(base_folder).has_trained_pooler


def test_a_pooler_whose_bias_is_all_zero_is_not_trained(base_folder: Path, tmp_path: Path) -> None:
    bert = BertModel.from_pretrained(base_folder)
    bert.pooler.dense.bias.data.zero_()
    bert.save_pretrained(tmp_path)
    assert not load(tmp_path).has_trained_pooler


def test_a_pooler_that_the_checkpoint_lacks_is_not_trained(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    BertModel(BertConfig(vocab_size=30, **sizes), add_pooling_layer=False).save_pretrained(tmp_path)
    assert not load(tmp_path).has_trained_pooler


@pytest.mark.parametrize("family", ["roberta", "electra", "distilbert"])
def test_a_classifier_without_a_pooler_has_no_trained_one(family: str, tmp_path: Path) -> None:
    tiny_classifier(family).save_pretrained(tmp_path)
    assert not load(tmp_path).has_trained_pooler


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_encoder_s_weights_are_those_of_the_folder(family: str, tmp_path: Path) -> None:
    saved = tiny_classifier(family).base_model
    saved.save_pretrained(tmp_path)
    loaded = load(tmp_path).model.base_model.state_dict()
    assert all(torch.equal(loaded[name], saved.state_dict()[name]) for name in loaded)


def test_weights_are_loaded_in_float32_whatever_they_were_saved_in(tmp_path: Path) -> None:
    tiny_classifier().to(torch.bfloat16).save_pretrained(tmp_path)
    assert {parameter.dtype for parameter in load(tmp_path).model.parameters()} == {torch.float32}


def fresh_head(folder: Path, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return load(folder).model.classifier.weight.detach()


def test_a_fresh_head_is_drawn_from_the_global_seed(base_folder: Path) -> None:
    assert torch.equal(fresh_head(base_folder, 1), fresh_head(base_folder, 1))


def test_fresh_heads_of_two_seeds_differ(base_folder: Path) -> None:
    assert not torch.equal(fresh_head(base_folder, 1), fresh_head(base_folder, 2))


def test_the_head_knows_the_names_of_its_classes(base_folder: Path) -> None:
    config = load(base_folder, Head("classes", ("a", "b", "c"))).model.config
    assert (config.num_labels, config.id2label, config.label2id) == (
        3,
        {0: "a", 1: "b", 2: "c"},
        {"a": 0, "b": 1, "c": 2},
    )


@pytest.mark.parametrize(
    ("head", "expected"),
    [(HEAD, "single_label_classification"), (Head("number"), "regression"), (Head("span"), None)],
    ids=["classes", "number", "span"],
)
def test_the_problem_follows_from_the_head(base_folder: Path, head: Head, expected: str | None) -> None:
    assert load(base_folder, head).model.config.problem_type == expected


# --- what cannot be loaded


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"got 'folder {tmp_path.name}'.*save it again"):
        load(tmp_path)


def test_a_model_that_is_no_classifier_is_refused(tmp_path: Path) -> None:
    from transformers import CLIPTextConfig

    CLIPTextConfig(vocab_size=20, bos_token_id=1, eos_token_id=2).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="Unrecognized configuration class"):
        load(tmp_path)


def test_a_head_of_another_width_is_replaced_by_a_fresh_one(tmp_path: Path) -> None:
    tiny_classifier(num_labels=3).save_pretrained(tmp_path)
    assert load(tmp_path).model.classifier.weight.shape == (2, 32)


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_outputs_of_a_trained_head_are_matched_by_name(family: str, tmp_path: Path) -> None:
    names = {0: "Yes", 1: "no", 2: "maybe"}
    model = tiny_classifier(family, id2label=names, label2id={name: i for i, name in names.items()})
    model.save_pretrained(tmp_path)
    head = Head("classes", ("no", "maybe", "yes"))
    loaded, notes = load_in_order(ModelSource(str(tmp_path), "folder mine"), head=head)
    with torch.no_grad():
        expected = model(**tiny_batch()).logits[:, [1, 2, 0]]
        assert torch.equal(loaded.model.eval()(**tiny_batch()).logits, expected)
    assert notes == ["folder mine has its labels in the order ['Yes', 'no', 'maybe']; its outputs are matched by name."]
    assert loaded.model.config.id2label == {0: "no", 1: "maybe", 2: "yes"}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("no", "yes"), []),
        (("LABEL_0", "LABEL_1"), []),
        (
            ("bad", "good"),
            ["The head of it was trained for ['bad', 'good']; this task begins with it for ['no', 'yes']."],
        ),
    ],
    ids=["the task's", "none", "others"],
)
def test_a_trained_head_stays_as_it_is_where_no_name_says_otherwise(names, said, tmp_path: Path) -> None:
    model = tiny_classifier(id2label=dict(enumerate(names)), label2id={name: i for i, name in enumerate(names)})
    model.save_pretrained(tmp_path)
    loaded, notes = load_in_order(ModelSource(str(tmp_path), "it"), head=HEAD)
    assert torch.equal(loaded.model.classifier.weight, model.classifier.weight)
    assert notes == said


def test_names_of_a_head_that_the_checkpoint_lacks_mean_nothing(tmp_path: Path) -> None:
    model = tiny_classifier(id2label={0: "yes", 1: "no"}, label2id={"yes": 0, "no": 1})
    model.base_model.save_pretrained(tmp_path)
    torch.manual_seed(3)
    loaded, notes = load_in_order(ModelSource(str(tmp_path), "it"), head=HEAD)
    assert notes == []
    assert torch.equal(loaded.model.classifier.weight, fresh_head(tmp_path, 3))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_checkpoint_without_some_weights_of_its_encoder_is_refused(family: str, tmp_path: Path) -> None:
    tiny_classifier(family).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if in_layers(name) and weights[name].dim() == 2)
    save_file({name: value for name, value in weights.items() if name != lost}, tmp_path / "model.safetensors")
    with pytest.raises(
        InputError, match=r"the model must have all weights .* without \S+weight, so that .*save it again"
    ):
        load(tmp_path)


@pytest.mark.parametrize("layout", [None, {"version": 1}], ids=["a broken folder", "an export"])
def test_weights_of_other_shapes_are_refused(layout: dict[str, int] | None, tmp_path: Path) -> None:
    model = tiny_classifier()
    model.config.intermediate_size //= 2
    if layout is not None:
        model.config.cap_layout = layout
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"must have the shapes .*; .* and 3 more") as caught:
        load(tmp_path)
    assert ("it is an export that cap.load opens" in str(caught.value)) == (layout is not None)


def test_a_checkpoint_whose_weights_have_other_names_is_refused_with_those(tmp_path: Path) -> None:
    tiny_classifier().save_pretrained(tmp_path)
    weights = {f"net.{name}": value for name, value in load_file(tmp_path / "model.safetensors").items()}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"it has net\.bert\.embeddings\..* instead: save it with save_pretrained"):
        load(tmp_path)


def test_a_checkpoint_that_was_saved_with_its_masks_on_is_refused_with_what_was_forgotten(tmp_path: Path) -> None:
    model = tiny_classifier()
    pruner = attach(model, Magnitude())
    pruner.update_masks(0.5)
    model.save_pretrained(tmp_path / "on")
    with pytest.raises(InputError, match=r"saved with its masks on: call pruner\.fold\(\) before save_pretrained"):
        load(tmp_path / "on")
    pruner.fold()
    model.save_pretrained(tmp_path / "folded")
    assert load(tmp_path / "folded").drawn == ()


def test_damaged_weights_are_refused(base_folder: Path) -> None:
    weights = base_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError):
        load(base_folder)


@pytest.mark.parametrize(
    "content",
    [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", b"", b"PK\x03\x04 no archive"],
    ids=["pointer", "empty", "archive"],
)
def test_a_damaged_pickle_is_refused_without_advice_to_run_it(base_folder: Path, content: bytes) -> None:
    (base_folder / "model.safetensors").unlink()
    (base_folder / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"a file of weights that is damaged, or a pointer of git lfs"):
        load(base_folder)


def test_a_tokenizer_that_needs_sentencepiece_says_so(tmp_path: Path) -> None:
    config = {"model_type": "deberta-v2", "vocab_size": 10}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "DebertaV2Tokenizer"}))
    (tmp_path / "spm.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    with pytest.raises(
        InputError, match=r"has a tokenizer that only sentencepiece reads; install it: pip install sent"
    ):
        load_tokenizer(ModelSource(str(tmp_path), "folder"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave the Hub an empty cache; the libraries copy the environment into constants when they are imported."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "loader",
    [load_config, load_tokenizer, lambda source: load_model(source, head=HEAD)],
    ids=["config", "tokenizer", "classifier"],
)
def test_a_hub_name_that_is_not_in_the_cache_is_refused_with_what_to_run(loader) -> None:
    name = "no-such-owner-of-tests/no-such-model"
    with pytest.raises(InputError, match=re.escape(f"got '{name}'") + f".*hf download {name}"):
        loader(ModelSource(name, name))


# --- configuration and tokenizer


def test_the_configuration_is_read_without_weights(tmp_path: Path) -> None:
    tiny_classifier().config.save_pretrained(tmp_path)
    assert load_config(ModelSource(str(tmp_path), "folder")).hidden_size == 32


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    tiny_classifier().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"must come with its tokenizer, got it with one that knows no word.*save_pre"):
        load_tokenizer(ModelSource(str(tmp_path), "it"))


def test_a_saved_tokenizer_loads_as_the_same_one(tmp_path: Path) -> None:
    tiny_classifier().config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert tokenizer_key(load_tokenizer(ModelSource(str(tmp_path), "folder"))) == tokenizer_key(tiny_tokenizer())


def test_the_stock_base_model_loads_from_the_same_folder(base_folder: Path) -> None:
    assert AutoModel.from_pretrained(base_folder).config.hidden_size == 32
