"""``task=tokens`` from the door to the saved model, its scores, its predictions and its exports."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from cap.base.errors import InputError
from tests.data.tagged import LABELS, write_tagged
from tests.formats.made_exports import QUICK, lines_of_card, make_export, make_run, read

SCORES = {"f1", "precision", "recall"}


@pytest.fixture(scope="module")
def tagged(tmp_path_factory) -> Path:
    return write_tagged(tmp_path_factory.mktemp("tagged") / "words")


@pytest.fixture(scope="module")
def keys(tagged, tiny_model) -> list[str]:
    return ["task=tokens", f"data_dir={tagged}", f"model.name_or_path={tiny_model}", "learning_rate=1e-2"]


@pytest.fixture(scope="module")
def run_dir(tagged, keys) -> Path:
    """Prune a student that starts from a teacher which has learned the tags, by all terms."""
    teacher = ["finetune.learning_rate=1e-2", "finetune.max_epochs=4", "student_init=teacher", "learning_rate=1e-3"]
    pruning = ["pruning=structured", "sparsity=0.25", "schedule.levels=[0.125,0.25]", "schedule.epochs_per_level=1"]
    return make_run(tagged.parent / "run", *keys, *teacher, *pruning, "distill.snapshot_weight=1")


def test_retention_counts_from_a_model_that_finds_no_entity(run_dir):
    record = read(run_dir, "record.json")
    scores = record["scores"]
    assert record["metric"] == "f1"
    assert scores["majority"] == dict.fromkeys(SCORES, 0.0)
    assert set(scores["pruned"]) == SCORES
    assert scores["teacher"]["f1"] > 0.5
    assert "certainty" not in record["teacher"]  # words have classes, rows have none
    assert scores["pruned"]["f1"] > 0.5
    assert record["retention_above_majority"] == record["retention"] == scores["pruned"]["f1"] / scores["teacher"]["f1"]


def test_stock_transformers_load_a_token_classifier_that_names_its_tags(run_dir):
    from transformers import AutoModelForTokenClassification

    model = AutoModelForTokenClassification.from_pretrained(run_dir / "model")
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id == {label: number for number, label in enumerate(LABELS)}
    assert "AutoModelForTokenClassification" in (run_dir / "model" / "README.md").read_text()


def test_every_term_is_learned_from(run_dir):
    rows = list(csv.DictReader((run_dir / "logs" / "metrics.csv").read_text().splitlines()))
    logged = {name for row in rows for name, value in row.items() if value}
    assert {f"loss/{term}" for term in ("ce", "kd", "snapshot_kd", "prc", "snc", "fic")} <= logged


def test_predictions_have_a_line_for_every_word_and_the_score_of_the_run(run_dir, tagged, tmp_path):
    import hydra

    from cap.config.places import conf_dir
    from cap.data.entities import score_tags
    from cap.evaluate import evaluate
    from tests.data.test_entities import numbers, task

    given = [f"model_dir={run_dir / 'model'}", "task=tokens", f"data_dir={tagged}", f"output_dir={tmp_path / 'out'}"]
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        evaluate(hydra.compose("evaluate", overrides=[*given, f"cache_dir={tmp_path / 'c'}", "accelerator=cpu"]))
    found = read(tmp_path / "out", "record.json")["scores"]
    lines = list(csv.DictReader((tmp_path / "out" / "predictions.csv").read_text().splitlines()))
    rows = [json.loads(line) for line in (tagged / "validation.jsonl").read_text().splitlines()]
    assert found["model"] == read(run_dir, "record.json")["scores"]["pruned"]
    assert found["majority"] == dict.fromkeys(SCORES, 0.0)
    assert list(lines[0]) == ["example_id", "word", "token", "label", "prediction"]
    assert [(line["token"], line["label"]) for line in lines] == [
        pair for row in rows for pair in zip(row["tokens"], row["tags"], strict=True)
    ]
    by_row: list[Any] = [
        [line["prediction"] for line in lines if int(line["example_id"]) == n] for n in range(len(rows))
    ]
    right = [numbers(" ".join(row["tags"]), tuple(LABELS)) for row in rows]
    own = [numbers(" ".join(answers), tuple(LABELS)) for answers in by_row]
    assert score_tags(task(labels=tuple(LABELS)), right, own) == pytest.approx(found["model"])


def test_smaller_model_keeps_the_logits_of_all_real_tokens(run_dir, tmp_path):
    exported = read(make_export(run_dir, "compact", tmp_path / "small"))
    assert exported["details"]["heads"]["after"] == 6
    assert exported["check"]["relative_difference"] <= 1e-5


def test_a_tagger_keeps_the_pieces_of_its_words(spelling_model, tmp_path):
    few = write_tagged(tmp_path / "few", n_rows=6)
    rows = [json.loads(line) for line in (few / "train.jsonl").read_text().splitlines()]
    used = {word for row in rows for word in row["tokens"]}
    run = make_run(tmp_path / "run", *QUICK, "task=tokens", f"data_dir={few}", f"model.name_or_path={spelling_model}")
    exported = read(make_export(run, "plain", tmp_path / "small", "vocabulary=auto"))
    kept = exported["vocabulary"]
    assert kept["used"] == len(used)
    assert kept["rows"] == 5 + len(used) + 52 < kept["dense_rows"]  # with special tokens and letters
    assert exported["check"]["relative_difference"] <= 1e-5


def test_a_taggers_pieces_keep_numbers_of_their_own(run_dir, tmp_path):
    with pytest.raises(InputError, match=r"a tagger's words together look pieces up by number, got task=tokens; leave"):
        make_export(run_dir, "compact", tmp_path / "small", "vocabulary=auto", "vocabulary_rest=nearest")


@pytest.mark.ends
def test_graph_keeps_them_too_and_its_lines_tag_a_text(run_dir, tmp_path, monkeypatch):
    exported = read(make_export(run_dir, "onnx", tmp_path / "graph"))
    assert exported["check"]["relative_difference"] <= 1e-5
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(lines_of_card(tmp_path / "graph"), names)
    assert names["logits"].shape == (1, 7, len(LABELS))  # [CLS] the words of a text [SEP]
    assert len(names["answers"]) == 5


def test_second_order_takes_its_gradients_from_words(keys, tmp_path):
    own = ["pruning=second_order", "pruning.n_gradients=2", "pruning.gradient_rows=4", "sparsity=0.5"]
    run = make_run(tmp_path / "run", *keys, *QUICK, *own)
    assert read(run, "record.json")["sparsity"]["prunable"] == pytest.approx(0.5, abs=1e-3)
