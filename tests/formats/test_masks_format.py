"""Masks and a head on a base that many tasks share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

import cap
from cap.base.errors import InputError
from cap.formats.masks import save_masks
from cap.models.families import prunable_linears
from tests.models.tiny_models import FAMILY_NAMES, tiny_batch, tiny_classifier, tiny_tokenizer

QUERY = "bert.encoder.layer.0.attention.self.query.weight"


def saved_base(folder: Path, family: str = "bert", **options) -> Path:
    """Save an encoder without a task head, as a pre-trained model is saved."""
    tiny_classifier(family, **options).base_model.save_pretrained(folder)
    return folder


def learned(family: str = "bert", *, task: int = 1, **options) -> PreTrainedModel:
    """Prune the encoder of ``saved_base``, with a head of the task's own."""
    model = tiny_classifier(family, **options)
    generator = torch.Generator().manual_seed(task)
    with torch.no_grad():
        for linear in prunable_linears(model).values():
            linear.weight *= torch.rand(linear.weight.shape, generator=generator) > 0.9
            linear.weight += 0.0
        for name, parameter in model.named_parameters():
            if not name.startswith(model.base_model_prefix):
                parameter += torch.randn(parameter.shape, generator=generator)
    return model


def exported(folder: Path, base: Path, model: PreTrainedModel | None = None) -> Path:
    save_masks(model or learned(), tiny_tokenizer(), folder, settings={"name_or_path": str(base), "package": None})
    return folder


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return exported(tmp_path / "export", saved_base(tmp_path / "base"))


def metadata_of(folder: Path) -> dict[str, str]:
    with safe_open(folder / "masks.safetensors", framework="pt") as file:
        return file.metadata()


def bits(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone().contiguous().view(torch.int32) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_weights_and_logits_come_back_to_the_bit(family: str, tmp_path: Path) -> None:
    model = learned(family)
    folder = exported(tmp_path / "export", saved_base(tmp_path / "base", family), model)
    state = torch.get_rng_state()
    loaded = cap.load(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert (type(loaded), loaded.training) == (type(model), False)
    torch.testing.assert_close(bits(loaded), bits(model), rtol=0, atol=0)
    with torch.no_grad():
        assert torch.equal(loaded(**tiny_batch()).logits, model(**tiny_batch()).logits)


def test_masks_take_hardly_more_than_one_bit_a_weight(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 512}
    model = learned(**sizes)
    folder = exported(tmp_path / "export", saved_base(tmp_path / "base", **sizes), model)
    n_weights = sum(linear.weight.numel() for linear in prunable_linears(model).values())
    assert 8 * (folder / "masks.safetensors").stat().st_size <= 1.1 * n_weights
    assert set(load_file(folder / "trained.safetensors")) == {"classifier.weight", "classifier.bias"}


def test_tasks_share_a_base_that_nothing_is_written_to(tmp_path: Path) -> None:
    base = saved_base(tmp_path / "base")
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    models = [learned(task=task) for task in (1, 2)]
    folders = [exported(tmp_path / str(i), base, model) for i, model in enumerate(models)]
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    assert metadata_of(folders[0]) == metadata_of(folders[1])
    for folder, model in zip(folders, models, strict=True):
        torch.testing.assert_close(bits(cap.load(folder)), bits(model), rtol=0, atol=0)


def test_whatever_else_was_trained_comes_with_the_head(tmp_path: Path) -> None:
    model = learned()
    with torch.no_grad():
        model.bert.pooler.dense.bias[0] += 1.0
        model.bert.embeddings.word_embeddings.weight[0] = -0.0
    base = tiny_classifier()
    with torch.no_grad():
        base.bert.embeddings.word_embeddings.weight[0] = 0.0
    base.base_model.save_pretrained(tmp_path / "base")
    folder = exported(tmp_path / "export", tmp_path / "base", model)
    own = {"classifier.weight", "classifier.bias", "bert.pooler.dense.bias", "bert.embeddings.word_embeddings.weight"}
    assert set(load_file(folder / "trained.safetensors")) == own
    torch.testing.assert_close(bits(cap.load(folder)), bits(model), rtol=0, atol=0)


def test_base_may_have_a_head_of_another_width(tmp_path: Path) -> None:
    tiny_classifier(num_labels=5).save_pretrained(tmp_path / "base")
    model = learned(num_labels=3)
    model.load_state_dict(tiny_classifier(num_labels=5).bert.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in tiny_classifier(num_labels=5).bert.named_parameters():
            model.bert.get_parameter(name).copy_(parameter)
    folder = exported(tmp_path / "export", tmp_path / "base", model)
    torch.testing.assert_close(bits(cap.load(folder)), bits(model), rtol=0, atol=0)


def test_base_that_moved_can_be_named(export: Path, tmp_path: Path) -> None:
    moved = shutil.move(tmp_path / "base", tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"the base model must be .* lies elsewhere, name it: cap\.load\(.*, base="):
        cap.load(export)
    torch.testing.assert_close(bits(cap.load(export, base=moved)), bits(learned()), rtol=0, atol=0)


def test_masks_are_scored_on_a_base_that_moved(export: Path, tmp_path: Path) -> None:
    from cap.base.kinds import Head
    from cap.formats.scored import load_scored
    from cap.models.sources import ModelSource

    moved = shutil.move(tmp_path / "base", tmp_path / "elsewhere")
    source, head = ModelSource(str(export), "folder export"), Head("classes", ("a", "b", "c"))
    with pytest.raises(InputError, match=r"name it: cap\.load\(.*\), or base=FOLDER of cap\.evaluate"):
        load_scored(source, head)
    found = load_scored(source, head, base=str(moved))
    torch.testing.assert_close(bits(found.model.model), bits(learned()), rtol=0, atol=0)
    with pytest.raises(
        InputError, match=r"base belongs to an export with format=masks, got base=x with folder elsewhere"
    ):
        load_scored(ModelSource(str(moved), "folder elsewhere"), head, base="x")


def test_place_of_the_base_is_kept_as_it_was_given(export: Path, tmp_path: Path) -> None:
    found = metadata_of(export)
    assert (found["cap_masks"], found["base_name_or_path"]) == ("1", str(tmp_path / "base"))
    assert "base_package" not in found


def test_package_that_only_the_file_names_is_not_imported(export: Path) -> None:
    file = export / "masks.safetensors"
    save_file(load_file(file), file, {"cap_masks": "1", "base_key": "0", "base_package": "antigravity"})
    with pytest.raises(
        InputError, match=r"one that conf/model names \(.*\), got 'antigravity' in masks\.safetensors in "
    ):
        cap.load(export)


@pytest.mark.parametrize("other", ["weights", "family"])
def test_another_base_is_refused_by_its_key(export: Path, tmp_path: Path, other: str) -> None:
    options = {"seed": 5} if other == "weights" else {"family": "roberta"}
    base = saved_base(tmp_path / "other", **options)
    with pytest.raises(InputError, match=r"weights have the key [0-9a-f]{16}, but those of folder other have [0-9a-f]"):
        cap.load(export, base=base)


def test_base_in_which_one_bit_differs_is_refused(export: Path, tmp_path: Path) -> None:
    file = tmp_path / "base" / "model.safetensors"
    weights = load_file(file)
    weights["encoder.layer.1.output.dense.bias"].view(torch.int32)[3] ^= 1
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(InputError, match="masks must be put on the base that they were learned on"):
        cap.load(export)


def test_weights_that_were_trained_are_refused_with_what_to_do(tmp_path: Path) -> None:
    model = learned()
    with torch.no_grad():
        weight = model.get_parameter(QUERY)
        weight.view(-1)[weight.view(-1).nonzero()[0]] += 1e-3
    with pytest.raises(InputError, match=rf"but 1 of the 12 matrices .* folder base, {QUERY} first; prune with"):
        exported(tmp_path / "export", saved_base(tmp_path / "base"), model)
    assert not (tmp_path / "export").exists()


def test_base_is_named_for_masks_alone(export: Path, tmp_path: Path) -> None:
    learned().save_pretrained(tmp_path / "plain")
    with pytest.raises(InputError, match=r"base names the model that masks lie on, .* leave it out"):
        cap.load(tmp_path / "plain", base=tmp_path / "base")


def test_masks_beside_a_model_are_refused(export: Path) -> None:
    learned().save_pretrained(export)
    with pytest.raises(InputError, match=r"both masks\.safetensors and model\.safetensors"):
        cap.load(export)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({QUERY: None}, rf"got something else for {QUERY}"),
        ({QUERY: torch.zeros(127, dtype=torch.uint8)}, rf"something else for {QUERY} .*1024 bits take 128 bytes"),
        ({QUERY: torch.zeros(128)}, rf"got something else for {QUERY}"),
    ],
    ids=["missing", "fewer bytes", "other numbers"],
)
def test_masks_that_do_not_fit_are_refused(export: Path, changes, message: str) -> None:
    file, metadata = export / "masks.safetensors", metadata_of(export)
    tensors = {name: tensor for name, tensor in (load_file(file) | changes).items() if tensor is not None}
    save_file(tensors, file, metadata)
    with pytest.raises(InputError, match=message):
        cap.load(export)


@pytest.mark.parametrize("version", ["2", None])
def test_another_version_is_refused_by_its_name(export: Path, version: str | None) -> None:
    file = export / "masks.safetensors"
    save_file(load_file(file), file, {} if version is None else {"cap_masks": version})
    with pytest.raises(InputError, match=rf"must be of version 1 .* got version {version!r}"):
        cap.load(export)


def test_head_that_is_missing_is_refused(export: Path) -> None:
    file = export / "trained.safetensors"
    tensors = load_file(file)
    del tensors["classifier.bias"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(InputError, match=r"classifier\.bias missing"):
        cap.load(export)
