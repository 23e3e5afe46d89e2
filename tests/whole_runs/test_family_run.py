"""Families whose layers hold several matrices or a gated FFN, from the door to the record and the exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import NASTY, NICE, THINGS
from tests.formats.made_exports import QUICK, make_export, read

FAMILIES = ["modernbert", "gte"]


@pytest.fixture(params=FAMILIES)
def overrides(request, tiny_overrides, tmp_path) -> list[str]:
    """Choose a tiny model of a family, with a word tokenizer that knows of no token types."""
    from transformers import AutoModel, BertTokenizerFast

    from tests.models.tiny_models import tiny_classifier

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "is", "very", *NICE, *NASTY, *THINGS]
    AutoModel.from_config(tiny_classifier(request.param).config).save_pretrained(tmp_path / "model")
    tokenizer = BertTokenizerFast(
        vocab={word: i for i, word in enumerate(words)}, model_input_names=["input_ids", "attention_mask"]
    )
    tokenizer.save_pretrained(tmp_path / "model")
    return [*tiny_overrides, f"model.name_or_path={tmp_path / 'model'}"]


def run(compose_config, *overrides: str) -> tuple[Path, dict]:
    from cap.train import train

    cfg = compose_config(*overrides)
    train(cfg)
    return Path(cfg.output_dir), json.loads((Path(cfg.output_dir) / "record.json").read_text())


def test_a_run_with_every_term_trains_the_layers_alone_and_meets_its_target(compose_config, overrides, tmp_path):
    from transformers import AutoModelForSequenceClassification

    from cap.models.families import parameters_of

    terms = ["contrast=cap", "distill.hidden_weight=1", "distill.snapshot_weight=1"]
    wanted = ["pruning=movement", "sparsity=0.9", "student_init=pretrained"]
    run_dir, record = run(compose_config, *overrides, *terms, *wanted)
    assert record["pooling"] == "mean"
    assert list(record["matrix_kinds"].values())[:3] == ["query", "key", "value"]
    assert {round(n_zero / n, 2) for n_zero, n in record["matrices"].values()} == {0.9}
    assert record["sparsity"]["prunable"] == pytest.approx(0.9, abs=1e-3)
    assert {"kd", "ce", "hidden", "prc", "snc", "fic"} <= set(record["gradient_shares"])
    model = AutoModelForSequenceClassification.from_pretrained(run_dir / "model")
    before = load_file(tmp_path / "model" / "model.safetensors")
    after = {name.removeprefix(f"{model.base_model_prefix}."): value for name, value in model.state_dict().items()}
    names = [n.removeprefix(f"{model.base_model_prefix}.") for n in parameters_of(model, ["embeddings"])]
    assert names
    assert all(torch.equal(after[name], before[name]) for name in names)


def test_half_of_the_units_leave_a_smaller_model_of_the_same_logits(compose_config, overrides, tmp_path):
    run_dir, record = run(compose_config, *overrides, "pruning=structured", "sparsity=0.5", *QUICK)
    assert record["sparsity"]["prunable"] == 0.5
    result = read(make_export(run_dir, "compact", tmp_path / "small"))
    assert result["check"]["relative_difference"] <= 1e-5
