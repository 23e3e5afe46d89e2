from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForQuestionAnswering, PreTrainedModel

import cap
from cap.base.errors import InputError
from cap.formats.compact import compact, save_compact
from cap.formats.sparse import save_sparse
from cap.models.families import prunable
from tests.cases import each_with_the_first
from tests.models.tiny_models import FAMILY_NAMES, INTERMEDIATE, tiny_batch, tiny_classifier, tiny_tokenizer

FORMATS = ["compact", "sparse", "plain"]


def pruned(family: str) -> PreTrainedModel:
    model = tiny_classifier(family)
    with torch.no_grad():
        for units in prunable(model).ffn.values():
            units.outgoing.weight[:, ::2] = 0.0
    return model


def saved(family: str, form: str, folder: Path) -> PreTrainedModel:
    model = pruned(family)
    write = {
        "compact": lambda: save_compact(compact(model).model, tiny_tokenizer(), folder),
        "sparse": lambda: save_sparse(model, tiny_tokenizer(), folder),
        "plain": lambda: model.save_pretrained(folder),
    }
    write[form]()
    return model


every_format = pytest.mark.parametrize("form", FORMATS)


@pytest.mark.parametrize(("family", "form"), each_with_the_first(FAMILY_NAMES, FORMATS))
def test_every_format_loads_into_the_stock_class_with_the_same_logits(family: str, form: str, tmp_path: Path) -> None:
    model = saved(family, form, tmp_path)
    loaded = cap.load(tmp_path)
    assert type(loaded) is type(model)
    assert not loaded.training
    with torch.no_grad():
        expected, found = model(**tiny_batch()).logits, loaded(**tiny_batch()).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "n_units"), [("compact", INTERMEDIATE // 2), ("sparse", INTERMEDIATE), ("plain", INTERMEDIATE)]
)
def test_only_the_compact_one_is_smaller(form: str, n_units: int, tmp_path: Path) -> None:
    saved("bert", form, tmp_path)
    assert [units.n for units in prunable(cap.load(tmp_path)).ffn.values()] == [n_units] * 2


def test_a_plain_folder_is_loaded_without_a_word(tmp_path: Path, capfd) -> None:
    saved("bert", "plain", tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"left.over": torch.zeros(1)}, file, {"format": "pt"})
    capfd.readouterr()
    cap.load(tmp_path)
    assert capfd.readouterr() == ("", "")


@every_format
def test_a_folder_may_be_given_as_a_string(form: str, tmp_path: Path) -> None:
    saved("bert", form, tmp_path)
    assert cap.load(str(tmp_path)).config.model_type == "bert"


@every_format
def test_a_loaded_model_can_be_saved_in_its_format_again(form: str, tmp_path: Path) -> None:
    saved("bert", form, tmp_path / "first")
    model = cap.load(tmp_path / "first")
    write = {
        "compact": save_compact,
        "sparse": save_sparse,
        "plain": lambda model, _, folder: model.save_pretrained(folder),
    }
    write[form](model, tiny_tokenizer(), tmp_path / "second")
    torch.testing.assert_close(
        dict(cap.load(tmp_path / "second").state_dict()), dict(model.state_dict()), rtol=0, atol=0
    )


def test_what_save_pretrained_makes_of_a_compact_model_loads_too(tmp_path: Path) -> None:
    model = compact(pruned("bert")).model
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(dict(cap.load(tmp_path).state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_a_plain_question_answering_model_loads_as_one(tmp_path: Path) -> None:
    AutoModelForQuestionAnswering.from_config(tiny_classifier().config).save_pretrained(tmp_path)
    assert type(cap.load(tmp_path)).__name__ == "BertForQuestionAnswering"


def test_half_precision_loads_as_float32(tmp_path: Path) -> None:
    pruned("bert").half().save_pretrained(tmp_path)
    assert cap.load(tmp_path).dtype == torch.float32


def test_two_models_in_one_folder_are_refused(tmp_path: Path) -> None:
    saved("bert", "sparse", tmp_path)
    saved("bert", "plain", tmp_path)
    with pytest.raises(
        InputError, match=r"must hold one model, got .* both encoder\.safetensors and model\.safetensors"
    ):
        cap.load(tmp_path)


@pytest.mark.parametrize("place", ["nowhere", "file"])
def test_what_is_no_folder_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"must be a folder with a config\.json"):
        cap.load(tmp_path / place)


def test_a_plain_folder_without_weights_is_refused(tmp_path: Path) -> None:
    tiny_classifier().config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"architectures in .* got nothing"):
        cap.load(tmp_path)


@pytest.mark.parametrize("n_bytes", [0, 1000, -4], ids=["empty", "names_cut", "end_cut"])
def test_a_damaged_plain_folder_is_refused(n_bytes: int, tmp_path: Path) -> None:
    saved("bert", "plain", tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:n_bytes])
    with pytest.raises(InputError, match=r"whole folder that BertForSequenceClassification\.from_pretrained loads"):
        cap.load(tmp_path)


def test_a_plain_folder_whose_head_is_missing_is_refused(tmp_path: Path) -> None:
    saved("bert", "plain", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("classifier")}
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"without classifier\.bias, classifier\.weight"):
        cap.load(tmp_path)


def test_a_compact_folder_that_lost_its_layout_is_refused(tmp_path: Path) -> None:
    saved("bert", "compact", tmp_path)
    tiny_classifier().save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "config.json").replace(tmp_path / "config.json")
    with pytest.raises(InputError, match="must be a whole folder"):
        cap.load(tmp_path)


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_a_graph_beside_the_weights_it_was_made_of_is_no_hindrance(weights: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    (tmp_path / weights).touch()
    with pytest.raises(InputError, match=r"must be a folder with a config\.json"):
        cap.load(tmp_path)


def test_a_graph_is_refused_with_what_runs_it(tmp_path: Path) -> None:
    tiny_classifier().config.save_pretrained(tmp_path)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match=r"with model\.onnx, a graph that onnxruntime runs; .* in its README\.md"):
        cap.load(tmp_path)


def test_importing_the_package_imports_nothing_large() -> None:
    code = "import sys, cap; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="'cap' has no attribute 'lod'"):
        _ = cap.lod
