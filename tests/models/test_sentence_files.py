"""A saved encoder in sentence-transformers: the same vectors, by the files that cap writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

TEXTS = ["the cat sat", "dog", "the cat sat the dog sat the cat sat"]
WORDS = ("cat", "dog", "sat", "the")


def saved(folder: Path, pooling: Any, *, max_length: int = 8):
    """Save a tiny encoder with its files."""
    from cap.models.encoders import save_model
    from cap.models.sentence_files import write_sentence_files
    from tests.models.tiny_models import HIDDEN, tiny_classifier, tiny_tokenizer

    model, tokenizer = tiny_classifier().base_model, tiny_tokenizer(WORDS, model_max_length=40)
    folder.mkdir()
    save_model(model, tokenizer, folder)
    write_sentence_files(folder, pooling=pooling, dim=HIDDEN, max_length=max_length)
    return model, tokenizer


@pytest.mark.parametrize("pooling", ["mean", "first_token"])
def test_vectors_are_those_of_cap(tmp_path, pooling):
    from sentence_transformers import SentenceTransformer

    from cap.models.pooled import PooledModel, evaluating

    model, tokenizer = saved(tmp_path / "m", pooling)
    encode = PooledModel(model, pooling)
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=8, return_tensors="pt")
    with evaluating(encode):
        output = encode(dict(batch))
    loaded = SentenceTransformer(str(tmp_path / "m"), device="cpu")
    found = loaded.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)
    assert loaded.max_seq_length == 8
    torch.testing.assert_close(found, output.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.logits.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("pooling", ["mean", "first_token"])
def test_pooling_is_read_back(tmp_path, pooling):
    from cap.models.pooling import resolve_encoding
    from cap.models.sources import ModelSource

    saved(tmp_path / "m", pooling)
    source = ModelSource(str(tmp_path / "m"), "m")
    assert resolve_encoding("auto", source) == pooling
    assert resolve_encoding("cls", source) == "first_token"
    assert resolve_encoding("mean", source) == "mean"


def test_encoder_without_such_files_is_averaged_whatever_its_pooler(tiny_model):
    from cap.models.pooling import resolve_encoding
    from cap.models.sources import ModelSource

    assert resolve_encoding("auto", ModelSource(str(tiny_model), "tiny")) == "mean"


def test_modules_behind_the_pooling_are_refused(tmp_path):
    from cap.base.errors import InputError
    from cap.models.pooling import resolve_encoding
    from cap.models.sources import ModelSource

    saved(tmp_path / "m", "mean")
    modules = json.loads((tmp_path / "m" / "modules.json").read_text())
    dense = {"idx": 3, "name": "3", "path": "3_Dense", "type": "sentence_transformers.models.Dense"}
    (tmp_path / "m" / "modules.json").write_text(json.dumps([*modules, dense]))
    with pytest.raises(InputError, match="got m with Dense behind them"):
        resolve_encoding("auto", ModelSource(str(tmp_path / "m"), "m"))
