"""ONNX graphs against the models they were made of."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering

from cap.errors import InputError
from cap.models.onnx import OnnxModel, export_onnx, quantise_onnx
from tests.models.tiny_models import FAMILY_NAMES, tiny_batch, tiny_classifier


def other_batch() -> dict[str, Tensor]:
    """Make five rows of 11 tokens, another size than the graph was traced with, some of them padding."""
    ids = torch.randint(5, 30, (5, 11), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "attention_mask": (torch.arange(11) < torch.tensor([[11], [4], [1], [8], [9]])).long()}


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_a_graph_gives_the_models_logits_at_other_sizes(family: str, tmp_path: Path) -> None:
    model = tiny_classifier(family)
    export_onnx(model, tiny_batch(), tmp_path / "model.onnx")
    with torch.no_grad():
        expected = model(**other_batch()).logits
    torch.testing.assert_close(OnnxModel(tmp_path / "model.onnx")(other_batch()), expected, atol=1e-5, rtol=0)


def test_a_graph_of_spans_gives_start_and_end(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(tiny_classifier().config).eval()
    export_onnx(model, tiny_batch(), tmp_path / "model.onnx")
    with torch.no_grad():
        output = model(**other_batch())
    expected = torch.stack([output.start_logits, output.end_logits], dim=-1)
    torch.testing.assert_close(OnnxModel(tmp_path / "model.onnx")(other_batch()), expected, atol=1e-5, rtol=0)


def test_a_quantised_graph_is_smaller_and_close(tmp_path: Path) -> None:
    model = tiny_classifier()
    export_onnx(model, tiny_batch(), tmp_path / "model.onnx")
    quantise_onnx(tmp_path / "model.onnx", tmp_path / "int8.onnx")
    found, expected = (OnnxModel(tmp_path / name)(other_batch()) for name in ("int8.onnx", "model.onnx"))
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.2, rtol=0)
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size


def test_a_damaged_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"got model\.onnx .*export it again"):
        OnnxModel(tmp_path / "model.onnx")


def test_missing_packages_are_named_with_the_line_that_installs_them(monkeypatch, tmp_path: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    with pytest.raises(InputError, match=r"none called onnxruntime; run `pip install 'cap-pruning\[onnx\]'`"):
        export_onnx(tiny_classifier(), tiny_batch(), tmp_path / "model.onnx")
