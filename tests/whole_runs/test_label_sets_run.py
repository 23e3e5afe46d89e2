"""Several labels for a text, from the door to the saved model, its scores and its predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import NICE, THINGS, sentences
from tests.formats.made_exports import QUICK, lines_of_card, make_export, make_run, read


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Write sentences whose labels are what they are about, and whether they are nice; every third has none."""
    folder = tmp_path_factory.mktemp("sets")
    for split, n_rows, seed in (("train", 32, 0), ("validation", 12, 1)):
        lines = []
        for number, row in enumerate(sentences(n_rows, seed=seed)):
            words = str(row["sentence"]).split()
            labels = [word for word in words if word in THINGS[:4]] + ["nice"] * any(word in NICE for word in words)
            lines.append(json.dumps({"text": row["sentence"], "label": labels if number % 3 else []}))
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run_dir(rows, tiny_model) -> Path:
    keys = ["task=custom", f"data_dir={rows}", f"model.name_or_path={tiny_model}", "pruning=magnitude", "sparsity=0.5"]
    return make_run(rows.parent / "run", *keys, *QUICK, "contrast=cap", "learning_rate=1e-2")


def test_run_learns_scores_and_saves_sets_of_labels(run_dir):
    record = read(run_dir, "record.json")
    config = read(run_dir / "model", "config.json")
    assert (record["status"], record["metric"]) == ("completed", "micro_f1")
    assert [*record["scores"]["pruned"]] == ["micro_f1", "macro_f1"]
    assert record["scores"]["majority"]["micro_f1"] > 0
    assert config["problem_type"] == "multi_label_classification"
    assert sorted(config["id2label"].values()) == sorted([*THINGS[:4], "nice"])


def test_predictions_are_sets_of_labels_with_a_probability_each(run_dir, rows, tmp_path):
    import hydra

    from cap.config.places import conf_dir
    from cap.evaluate import evaluate

    given = [f"model_dir={run_dir / 'model'}", "task=custom", f"data_dir={rows}", f"output_dir={tmp_path / 'out'}"]
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        evaluate(hydra.compose("evaluate", overrides=[*given, f"cache_dir={tmp_path / 'c'}", "accelerator=cpu"]))
    lines = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    right = [json.loads(line)["label"] for line in (rows / "validation.jsonl").read_text().splitlines()]
    names = [name.removeprefix("p_") for name in lines[0] if name.startswith("p_")]
    assert read(tmp_path / "out", "record.json")["scores"]["model"] == read(run_dir, "record.json")["scores"]["pruned"]
    assert [{*line["label"].split(" | ")} - {""} for line in lines] == [{*labels} for labels in right]
    assert [line["prediction"] for line in lines] == [
        " | ".join(name for name in names if float(line[f"p_{name}"]) > 0.5) for line in lines
    ]


@pytest.mark.ends
def test_lines_of_the_graphs_card_say_which_labels_a_text_has(run_dir, tmp_path, monkeypatch):
    make_export(run_dir, "onnx", tmp_path / "graph")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(lines_of_card(tmp_path / "graph"), names)
    assert names["logits"].shape == (1, 5)
    (labels,) = names["answers"]
    assert set(labels) <= set(names["labels"].values())


def test_it_is_not_scored_as_a_classifier_of_single_labels(run_dir):
    from transformers import AutoConfig

    from cap.base.errors import InputError
    from cap.base.kinds import Head
    from cap.formats.scored import require_answers

    config = AutoConfig.from_pretrained(run_dir / "model")
    with pytest.raises(InputError, match="trained for single_label_classification as this task is, got it for multi_"):
        require_answers(config, head=Head("classes", tuple(config.id2label.values())), name="it")
