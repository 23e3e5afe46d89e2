"""ONNX graphs against the models they were made of."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering

from cap.base.errors import InputError, RunError
from cap.formats.compact import compact
from cap.formats.onnx import OnnxModel, export_onnx, quantise_onnx
from cap.formats.parity import LogitsModel
from cap.models.families import prunable
from tests.models.tiny_models import FAMILY_NAMES, tiny_batch, tiny_classifier

# A graph takes up to ten seconds to trace: other families than the first are slow ends, and no graph is traced twice.
ONE_AT_ONCE = ["bert", *(pytest.param(name, marks=pytest.mark.ends) for name in FAMILY_NAMES if name != "bert")]


def other_batch() -> dict[str, Tensor]:
    """Make five rows of 11 tokens, another size than the graph was traced with, some of them padding."""
    ids = torch.randint(5, 30, (5, 11), generator=torch.Generator().manual_seed(2))
    return {"input_ids": ids, "attention_mask": (torch.arange(11) < torch.tensor([[11], [4], [1], [8], [9]])).long()}


def long_batch() -> dict[str, Tensor]:
    """Make two rows of 40 tokens, some of them padding."""
    ids = torch.randint(5, 30, (2, 40), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": (torch.arange(40) < torch.tensor([[40], [30]])).long()}


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Path:
    """Trace a classifier on two equal rows, none of whose tokens is padding."""
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    export_onnx(tiny_classifier(), {name: value[:1].expand(2, -1) for name, value in tiny_batch().items()}, path)
    return path


@pytest.mark.parametrize("family", ONE_AT_ONCE)
def test_a_graph_of_fewer_units_gives_the_logits_of_the_model_that_has_all_at_other_sizes(
    family: str, tmp_path: Path
) -> None:
    # The window of local attention is part of the graph, though the rows that it is traced on are shorter.
    model = tiny_classifier(family, **({"local_attention": 16} if family == "modernbert" else {}))
    with torch.no_grad():
        for units in [*prunable(model).heads.values(), *prunable(model).ffn.values()]:
            units.outgoing.weight[:, : units.n * units.size // 2] = 0.0
    export_onnx(compact(model).model, tiny_batch(), tmp_path / "model.onnx")
    for batch in (other_batch(), *([long_batch()] if family == "modernbert" else [])):
        with torch.no_grad():
            expected = model(**batch).logits
        torch.testing.assert_close(OnnxModel(tmp_path / "model.onnx")(batch), expected, atol=1e-5, rtol=0)


def test_a_window_is_seen_in_rows_that_are_longer() -> None:
    with torch.no_grad():
        narrow, wide = (tiny_classifier("modernbert", local_attention=n)(**long_batch()).logits for n in (16, 80))
    assert not torch.allclose(narrow, wide, atol=1e-2)


@pytest.mark.ends
def test_a_graph_of_spans_gives_start_and_end(tmp_path: Path) -> None:
    torch.manual_seed(0)  # of a family whose padding is taken out of the way; a run's own is in test_export_of_tasks
    model = AutoModelForQuestionAnswering.from_config(tiny_classifier("modernbert").config).eval()
    export_onnx(model, tiny_batch(), tmp_path / "model.onnx")
    with torch.no_grad():
        output = model(**other_batch())
    expected = torch.stack([output.start_logits, output.end_logits], dim=-1)
    found, is_real = OnnxModel(tmp_path / "model.onnx")(other_batch()), other_batch()["attention_mask"].bool()
    # Padding whose window holds no real token is computed in another way, and means nothing.
    torch.testing.assert_close(found[is_real], expected[is_real], atol=1e-5, rtol=0)


def test_a_quantised_graph_is_smaller_and_close(graph: Path, tmp_path: Path) -> None:
    quantise_onnx(graph, tmp_path / "int8.onnx")
    found, expected = (OnnxModel(path)(other_batch()) for path in (tmp_path / "int8.onnx", graph))
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)  # a layer less moves them by 0.13
    assert (tmp_path / "int8.onnx").stat().st_size < graph.stat().st_size


def test_a_graph_that_was_traced_without_padding_minds_it(graph: Path) -> None:
    with torch.no_grad():
        expected = tiny_classifier()(**other_batch()).logits
    torch.testing.assert_close(OnnxModel(graph)(other_batch()), expected, atol=1e-5, rtol=0)


def test_a_session_leaves_the_cores_to_others_between_calls(graph: Path) -> None:
    options = OnnxModel(graph)._session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert options.intra_op_num_threads == torch.get_num_threads()


def test_logits_alone_can_be_evaluated() -> None:
    found = LogitsModel(lambda batch: batch["input_ids"] * 2.0)({"input_ids": torch.ones(2, 3)})
    assert torch.equal(found.logits, torch.full((2, 3), 2.0))


def test_a_damaged_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"got model\.onnx .*export it again"):
        OnnxModel(tmp_path / "model.onnx")


def test_more_weights_than_a_file_holds_are_refused_before_anything_is_traced(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("cap.formats.onnx._MOST_BYTES", 1000)
    with pytest.raises(InputError, match=r"holds weights of .* GiB at most, got .* choose another format"):
        export_onnx(tiny_classifier(), tiny_batch(), tmp_path / "model.onnx")


def test_a_model_that_cannot_be_traced_or_quantised_is_said_in_one_line(monkeypatch, tmp_path: Path) -> None:
    def broken(*arguments, **options):
        raise NotImplementedError("no such operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", broken)
    with pytest.raises(RunError, match=r"write this model as a graph, got NotImplementedError: no such operator$"):
        export_onnx(tiny_classifier(), tiny_batch(), tmp_path / "model.onnx")

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch.onnx, "export", full)
    with pytest.raises(OSError, match="No space left"):  # which is said in words of its own
        export_onnx(tiny_classifier(), tiny_batch(), tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(RunError, match="onnxruntime could quantise this graph, got"):
        quantise_onnx(tmp_path / "model.onnx", tmp_path / "int8.onnx")


def test_missing_packages_are_named_with_the_line_that_installs_them(monkeypatch, tmp_path: Path) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    with pytest.raises(InputError, match=r"none called onnxruntime; run `pip install 'cap-pruning\[onnx\]'`"):
        export_onnx(tiny_classifier(), tiny_batch(), tmp_path / "model.onnx")
