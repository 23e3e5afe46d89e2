"""Exports of runs whose answers are spans, numbers or a user's own classes, and of 2:4 runs on a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.data.questions import question_columns
from tests.formats.made_exports import QUICK, lines_of_card, make_export, make_run, read, write_rows

pytestmark = pytest.mark.ends  # most trace a graph

HALVES = ("pruning=structured", "sparsity=0.5", "schedule.levels=[0.5]", *QUICK)


@pytest.fixture(scope="module")
def squad_run(tmp_path_factory, tiny_model) -> Path:
    """Make a run on the made-up questions, in windows of different lengths."""
    root = tmp_path_factory.mktemp("squad")
    columns = question_columns()
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    data = write_rows(root / "questions", rows)
    keys = ["task=squad", f"data_dir={data}", "max_length=64", "task.stride=8", f"model.name_or_path={tiny_model}"]
    return make_run(root / "run", *HALVES, *keys)


@pytest.fixture(scope="module")
def squad_graph(squad_run) -> Path:
    return make_export(squad_run, "onnx", squad_run.parent / "graph")


def test_spans_keep_their_logits_on_all_real_tokens(squad_run, squad_graph, tmp_path) -> None:
    checks = [read(folder)["check"] for folder in (squad_graph, make_export(squad_run, "compact", tmp_path / "small"))]
    assert max(check["relative_difference"] for check in checks) <= 1e-5


def test_the_lines_of_a_graph_of_spans_ask_a_question_about_a_context(squad_graph, monkeypatch) -> None:
    monkeypatch.chdir(squad_graph.parent)
    lines, names = lines_of_card(squad_graph), {}
    exec(lines, names)
    assert 'tokenizer(["the question"], ["the context"], padding=True, truncation="only_second"' in lines
    assert names["start"].shape == names["end"].shape == (1, 7)  # [CLS] the ? [SEP] the ? [SEP]


def test_numbers_are_scored_again_after_rounding(tiny_model, tmp_path) -> None:
    rows = [
        {"sentence1": f"the film is {word}", "sentence2": "a very good book", "label": value}
        for word, value in (("good", 4.0), ("bad", 1.0), ("fine", 3.5), ("ugly", 0.5), ("great", 5.0), ("poor", 2.0))
    ]
    data = write_rows(tmp_path / "stsb", rows)
    run = make_run(tmp_path / "run", *HALVES, "task=stsb", f"data_dir={data}", f"model.name_or_path={tiny_model}")
    result = read(make_export(run, "int8", tmp_path / "int8"))
    assert set(result["scores"]) == set(result["scores_of_run"]) == {"pearson", "spearman"}
    assert result["retention"]["retention_reason"] == "There is no teacher."


def test_outputs_are_matched_with_a_users_own_labels_by_name(tiny_model, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    rows = [{"text": f"the film is {word}", "label": word} for word in ("good", "bad", "good", "fine")] * 4
    data = write_rows(tmp_path / "mine", rows)
    keys = ["task=custom", f"data_dir={data}", f"model.name_or_path={tiny_model}", "learning_rate=1e-2"]
    run = make_run(tmp_path / "run", *HALVES, *keys, "trainer.max_steps=8")
    file, config = run / "model" / "model.safetensors", run / "model" / "config.json"
    weights = load_file(file)
    turned = {name: value.roll(1, 0) if name.startswith("classifier") else value for name, value in weights.items()}
    save_file({name: value.contiguous() for name, value in turned.items()}, file, metadata={"format": "pt"})
    changed = json.loads(config.read_text()) | {"id2label": {"0": "good", "1": "bad", "2": "fine"}}
    config.write_text(json.dumps(changed))
    result = read(make_export(run, "int8", tmp_path / "int8"))
    assert result["scores_of_run"]["accuracy"] >= 0.5
    assert result["scores"] == pytest.approx(result["scores_of_run"])
    assert "its outputs are matched by name" in result["notes"][0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs kernels for 2:4 matrices")
def test_a_run_in_the_pattern_goes_through_the_sparse_kernels(tiny_data, tiny_model, tmp_path) -> None:
    from transformers import AutoTokenizer, BertConfig, BertForPreTraining

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    wide = BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=1, num_attention_heads=2, intermediate_size=256
    )
    BertForPreTraining(wide).bert.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    pattern = ["pruning=magnitude", "pruning.pattern=2:4", "sparsity=0.5"]
    data = ["task=sst2", f"data_dir={tiny_data}", f"model.name_or_path={tmp_path / 'wide'}"]
    run = make_run(tmp_path / "run", *QUICK, *pattern, *data)
    result = read(make_export(run, "semi_structured", tmp_path / "out", "latency_seconds=0.001"))
    assert result["check"]["relative_difference"] < 0.05
    assert set(result["scores"]) == {"accuracy"}
    assert (result["device"], result["threads"]) == (torch.cuda.get_device_name(), None)
    assert len(result["speed_up"]) == 4
    assert "library_name: transformers" in (tmp_path / "out" / "README.md").read_text()
