"""Every format that a run can have, of one run, with the pieces alone that its rows use."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.formats.made_exports import QUICK, make_export, make_run, read

EXACT = ["compact", "sparse", "onnx", "plain"]
MADE = [*EXACT, "int8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory, spelling_model, tiny_data) -> Path:
    root = tmp_path_factory.mktemp("all")
    halves = ["pruning=structured", "sparsity=0.5", "schedule.levels=[0.5]"]
    keys = ["task=sst2", f"data_dir={tiny_data}", f"model.name_or_path={spelling_model}"]
    return make_run(root / "run", *QUICK, *halves, *keys)


@pytest.fixture(scope="module")
def everything(run) -> Path:
    from cap.formats import export_source

    traced: list[Path] = []

    def traces(*args, **options) -> None:
        traced.append(args[2])
        real(*args, **options)

    real = export_source.export_onnx
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_source, "export_onnx", traces)
        folder = make_export(run, "all", run.parent / "everything", "vocabulary=auto", "latency_seconds=0.001")
    assert len(traced) == 1  # an int8 graph is the onnx graph, quantised
    return folder


def test_each_is_checked_timed_scored_and_noted(run, everything) -> None:
    summary, noted = read(everything, "formats.json"), read(run, "record.json")["exports"]
    assert sorted(summary["formats"]) == sorted(MADE)
    assert all(summary["formats"][name] == read(everything / name) for name in MADE)
    assert sorted(noted) == sorted(f"{name}+vocabulary" for name in MADE)
    for result in summary["formats"].values():
        assert result["check"]["rows"] == 16
        assert len(result["latency_ms"]) == len(result["dense_latency_ms"]) == 4
        assert result["scores"].keys() == result["scores_of_run"].keys()


@pytest.mark.parametrize("name", EXACT)
def test_fewer_pieces_leave_the_logits_of_every_format(everything, name: str) -> None:
    check = read(everything / name)["check"]
    assert check["relative_difference"] <= check["tolerance"] == 1e-5


def test_every_format_reads_texts_with_the_tokenizer_beside_it(everything) -> None:
    from transformers import AutoTokenizer

    import cap
    from cap.formats.onnx import OnnxModel

    tokenizers = [AutoTokenizer.from_pretrained(everything / name) for name in MADE]
    texts = ["the film 日本 is good", "😀"]
    batches = [dict(one(texts, padding=True, return_tensors="pt")) for one in tokenizers]
    assert all(torch.equal(batch["input_ids"], batches[0]["input_ids"]) for batch in batches)
    with torch.no_grad():
        expected = cap.load(everything / "plain")(**batches[0]).logits
        torch.testing.assert_close(cap.load(everything / "compact")(**batches[0]).logits, expected, rtol=0, atol=1e-5)
    graph = OnnxModel(everything / "onnx" / "model.onnx")
    torch.testing.assert_close(graph(batches[0]), expected, rtol=0, atol=1e-5)


def test_the_page_has_the_table_the_picture_and_what_cannot_be_with_its_reason(everything) -> None:
    page, summary = (everything / "README.md").read_text(), read(everything, "formats.json")
    assert summary["sentence"].startswith("Ship ")
    assert summary["sentence"] in page
    assert [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ")][2:] == [
        f"| {name}" for name in ("dense; score of the run's model", *summary["formats"])
    ]
    assert "![Size against latency](formats.png)" in page
    assert (everything / "formats.png").read_bytes()[:4] == b"\x89PNG"
    assert "- semi_structured: format=semi_structured needs matrices with at most 2 of every 4" in page
    assert list(summary["refused"]) == ["masks", "semi_structured"]


def test_one_that_fails_is_told_with_the_reason_and_the_others_are_kept(run, monkeypatch, tmp_path) -> None:
    from cap.formats import every_format
    from cap.formats.export_formats import FORMATS

    broken = dataclasses.replace(FORMATS["compact"], tolerance=-1.0)
    few = {"compact": broken, "sparse": FORMATS["sparse"], "plain": FORMATS["plain"]}
    monkeypatch.setattr(every_format, "FORMATS", few)
    monkeypatch.setitem(FORMATS, "compact", broken)
    summary = read(make_export(run, "all", tmp_path / "out"), "formats.json")
    assert list(summary["formats"]) == ["sparse"]
    assert "must give the run's logits within -1" in summary["refused"]["compact"]
    assert "give vocabulary=auto" in summary["refused"]["plain"]
    assert summary["sentence"].endswith("; latency was not measured.")
    assert not (tmp_path / "out" / "formats.png").exists()
    assert "compact" not in read(run, "record.json")["exports"]


def test_a_run_that_can_have_none_is_refused(run, monkeypatch, tmp_path) -> None:
    from cap.base.errors import InputError
    from cap.formats import every_format
    from cap.formats.export_formats import FORMATS

    monkeypatch.setattr(every_format, "FORMATS", {"plain": FORMATS["plain"]})
    with pytest.raises(InputError, match="one format at least, got none:\nplain: format=plain is the run's own model"):
        make_export(run, "all", tmp_path / "out")
    assert not (tmp_path / "out").exists()
