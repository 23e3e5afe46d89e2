from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EMBEDDINGS = [
    "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.position_embeddings.weight",
    "bert.embeddings.token_type_embeddings.weight",
    "bert.embeddings.LayerNorm.weight",
    "bert.embeddings.LayerNorm.bias",
]
POOLER = ["bert.pooler.dense.weight", "bert.pooler.dense.bias"]
HEAD = ["classifier.weight", "classifier.bias"]


def run(compose_config, overrides: list[str]) -> tuple[dict[str, torch.Tensor], dict]:
    """Train, and return the saved weights and the record."""
    from cap.train import train

    cfg = compose_config(*overrides)
    train(cfg)
    run_dir = Path(cfg.output_dir)
    return load_file(run_dir / "model" / "model.safetensors"), json.loads((run_dir / "record.json").read_text())


def unchanged(after: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, weight in after.items() if torch.equal(weight, before[name])}


@pytest.mark.parametrize("pruning", ["movement", "first_order"])
def test_frozen_embeddings_are_saved_as_they_were_and_all_else_is_trained(
    compose_config, tiny_overrides, tiny_model, pruning
):
    start = ["student_init=pretrained", "weight_decay=0.1"]
    after, record = run(compose_config, [*tiny_overrides, f"pruning={pruning}", *start])
    before = {f"bert.{name}": weight for name, weight in load_file(tiny_model / "model.safetensors").items()}
    assert unchanged({name: after[name] for name in before}, before) == set(EMBEDDINGS)
    assert record["config"]["freeze"] == ["embeddings"]


def test_nothing_is_frozen_where_units_are_pruned(compose_config, tiny_overrides, tiny_model):
    levels = ["schedule.levels=[0.25,0.5]", "schedule.epochs_per_level=1"]
    after, record = run(compose_config, [*tiny_overrides, "pruning=structured", *levels])
    before = {f"bert.{name}": weight for name, weight in load_file(tiny_model / "model.safetensors").items()}
    assert unchanged({name: after[name] for name in before}, before) == set()
    assert record["config"]["freeze"] == []


@pytest.mark.parametrize(
    ("freeze", "names"),
    [("[embeddings,pooler,head]", {*EMBEDDINGS, *POOLER, *HEAD}), ("[head]", set(HEAD)), ("[pooler]", set(POOLER))],
    ids=["all that surrounds the encoder", "head", "pooler"],
)
def test_student_that_starts_from_its_teacher_keeps_of_it_what_is_frozen(
    compose_config, tiny_overrides, tmp_path, freeze, names
):
    after, _ = run(compose_config, [*tiny_overrides, "student_init=teacher", f"freeze={freeze}"])
    (teacher,) = (tmp_path / "cache" / "teachers").glob("*/model.safetensors")
    assert unchanged(after, load_file(teacher)) == names


def test_teacher_is_fine_tuned_with_its_embeddings_whatever_is_frozen(
    compose_config, tiny_overrides, tmp_path, tiny_model
):
    run(compose_config, [*tiny_overrides, "freeze=[embeddings]"])
    (teacher,) = (tmp_path / "cache" / "teachers").glob("*/model.safetensors")
    after = load_file(teacher)
    before = {f"bert.{name}": weight for name, weight in load_file(tiny_model / "model.safetensors").items()}
    assert not unchanged({name: after[name] for name in EMBEDDINGS}, before)


def test_part_that_the_model_lacks_is_refused(compose_config, tiny_overrides, tmp_path):
    from transformers import BertTokenizerFast, DistilBertConfig, DistilBertModel

    from cap.base.errors import InputError
    from cap.config.check import check
    from cap.training.preparation import prepare

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the"]
    config = DistilBertConfig(vocab_size=len(words), dim=32, n_layers=1, n_heads=4, hidden_dim=64)
    DistilBertModel(config).save_pretrained(tmp_path / "model")
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "model")
    wanted = [*tiny_overrides, f"model.name_or_path={tmp_path / 'model'}", "freeze=[embeddings,pooler]"]
    with pytest.raises(InputError, match=r"got \['embeddings', 'pooler'\] for a Distil\w+, which has no pooler; leave"):
        prepare(check(compose_config(*wanted)))


@pytest.mark.parametrize("has_pooler", [False, True], ids=["absent", "untrained"])
def test_pooler_that_starts_at_random_is_not_frozen(compose_config, tiny_overrides, tmp_path, tiny_model, has_pooler):
    import shutil

    from transformers import BertModel

    from cap.base.errors import InputError
    from cap.config.check import check
    from cap.training.preparation import prepare

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    bert = BertModel.from_pretrained(folder)
    bert.pooler.dense.bias.data.zero_()
    bert.pooler = bert.pooler if has_pooler else None
    bert.save_pretrained(folder)
    wanted = [*tiny_overrides, f"model.name_or_path={folder}", "student_init=pretrained", "freeze=[pooler]"]
    with pytest.raises(InputError, match="keeps untrained weights: the pooler of the checkpoint is absent"):
        prepare(check(compose_config(*wanted)))
