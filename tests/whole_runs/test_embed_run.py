"""``task=embed`` from the door to the saved encoder, its scores, its predictions and its exports."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.paired import write_paired
from tests.formats.made_exports import lines_of_card, make_export, make_run, read


@pytest.fixture(scope="module")
def paired(tmp_path_factory) -> Path:
    return write_paired(tmp_path_factory.mktemp("paired") / "pairs")


@pytest.fixture(scope="module")
def run_dir(paired, tiny_model) -> Path:
    """Prune units of an encoder that is contrasted with its dense form and its snapshots, too."""
    keys = ["task=embed", f"data_dir={paired}", "task.label_column=score", f"model.name_or_path={tiny_model}"]
    pruning = ["pruning=structured", "sparsity=0.25", "schedule.levels=[0.125,0.25]", "schedule.epochs_per_level=1"]
    return make_run(paired.parent / "run", *keys, *pruning, "distill.hidden_weight=1", "keep_levels=[0.125]")


def texts(paired: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in (paired / "validation.jsonl").read_text().splitlines()]
    return [(row["sentence1"], row["sentence2"]) for row in rows]


def test_record_sets_the_pruned_encoder_beside_the_dense_one(run_dir, tiny_model):
    record = read(run_dir, "record.json")
    scores = record["scores"]
    assert record["metric"] == "spearman"
    assert scores["majority"] == {"spearman": 0.0}
    assert record["retention"] == scores["pruned"]["spearman"] / scores["teacher"]["spearman"]
    assert record["retention_above_majority"] is None
    assert record["teacher"]["name"] == f"folder {tiny_model.name}"
    assert record["config"]["distill"]["ce_weight"] == 0.0
    assert record["config"]["contrast"]["finetuned"] is False
    assert record["sparsity"]["prunable"] == pytest.approx(0.25, abs=1e-3)
    assert set(record["data"]["files"]) == {"train.jsonl", "validation.jsonl"}


def test_terms_are_those_without_labels(run_dir):
    rows = list(csv.DictReader((run_dir / "logs" / "metrics.csv").read_text().splitlines()))
    logged = {name for row in rows for name, value in row.items() if value and name.startswith("loss/")}
    assert logged == {"loss/kd", "loss/hidden", "loss/prc", "loss/snc", "loss/total"}


def test_pooler_that_nothing_reads_keeps_its_weights(run_dir, tiny_model):
    from safetensors.torch import load_file

    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model, run_dir / "model"))
    assert before["pooler.dense.weight"].equal(after["pooler.dense.weight"])
    assert read(run_dir, "record.json")["dynamics"]["frozen"] == 32 * 32 + 32
    assert not before["encoder.layer.0.attention.self.query.weight"].equal(
        after["encoder.layer.0.attention.self.query.weight"]
    )


@pytest.mark.parametrize("folder", ["model", "levels/0.125"])
def test_sentence_transformers_load_it_and_give_the_score_of_the_record(run_dir, paired, folder):
    import torch
    from sentence_transformers import SentenceTransformer
    from torchmetrics.functional import spearman_corrcoef

    record = read(run_dir, "record.json")
    (kept,) = [line for line in record["kept"] if line["folder"] == folder] or [{"scores": record["scores"]["pruned"]}]
    vectors = SentenceTransformer(str(run_dir / folder), device="cpu").encode(
        [text for pair in texts(paired) for text in pair], show_progress_bar=False
    )
    lines = (paired / "validation.jsonl").read_text().splitlines()
    cosines = torch.from_numpy((vectors[::2] * vectors[1::2]).sum(axis=1))
    scores = torch.tensor([float(json.loads(line)["score"]) for line in lines])
    assert float(spearman_corrcoef(cosines, scores)) == pytest.approx(kept["scores"]["spearman"], abs=1e-3)


def evaluated(folder: Path, *given: str) -> Path:
    import hydra

    from cap.config.places import conf_dir
    from cap.evaluate import evaluate

    keys = ["task=embed", f"output_dir={folder}", f"cache_dir={folder.parent / 'cache'}", "accelerator=cpu"]
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        evaluate(hydra.compose("evaluate", overrides=[*keys, *given]))
    return folder


def test_predictions_are_similarities_and_have_the_score_of_the_run(run_dir, paired, tmp_path):
    given = [f"model_dir={run_dir / 'model'}", f"data_dir={paired}", "task.label_column=score"]
    found = evaluated(tmp_path / "out", *given)
    lines = list(csv.DictReader((found / "predictions.csv").read_text().splitlines()))
    assert read(found, "record.json")["scores"]["model"] == read(run_dir, "record.json")["scores"]["pruned"]
    assert list(lines[0]) == ["example_id", "label", "prediction"]
    assert len(lines) == 32
    assert all(-1 <= float(line["prediction"]) <= 1.001 for line in lines)


def test_smaller_encoder_keeps_the_vectors_and_finds_documents_of_pairs_without_scores(run_dir, paired, tmp_path):
    from sentence_transformers import SentenceTransformer

    exported = read(make_export(run_dir, "compact", tmp_path / "small"))
    assert exported["details"]["heads"]["after"] == 6
    assert exported["check"]["relative_difference"] <= 1e-5
    names: dict[str, Any] = {}
    exec(lines_of_card(tmp_path / "small").replace('"small"', f'"{tmp_path / "small"}"'), names)
    assert names["vectors"].shape == (2, 32)
    stock = SentenceTransformer(str(run_dir / "model"), device="cpu")
    vectors = stock.encode(["a text", "another one"], show_progress_bar=False)
    stock[0].model = names["model"]
    np.testing.assert_allclose(stock.encode(["a text", "another one"], show_progress_bar=False), vectors, atol=1e-5)
    found = evaluated(tmp_path / "out", f"model_dir={tmp_path / 'small'}", f"data_dir={paired}")
    scores = read(found, "record.json")["scores"]
    assert set(scores["model"]) == {"recall_at_10", "ndcg_at_10"}
    assert scores["model"]["recall_at_10"] > scores["majority"]["recall_at_10"] > 0


@pytest.mark.ends
def test_graph_gives_the_vectors_beside_the_hidden_states(run_dir, paired, tmp_path, monkeypatch):
    import onnxruntime
    from sentence_transformers import SentenceTransformer

    exported = read(make_export(run_dir, "onnx", tmp_path / "graph"))
    assert exported["check"]["relative_difference"] <= 1e-5
    monkeypatch.chdir(tmp_path)
    asked = ["the film is good", "the very bad play is the film"]
    names: dict[str, Any] = {}
    exec(lines_of_card(tmp_path / "graph").replace('"a text", "another one"', str(asked)[1:-1]), names)
    stock = SentenceTransformer(str(run_dir / "model"), device="cpu").encode(asked, show_progress_bar=False)
    np.testing.assert_allclose(names["vectors"], stock, atol=1e-5, rtol=0)
    session = onnxruntime.InferenceSession(tmp_path / "graph" / "model.onnx")
    assert [output.name for output in session.get_outputs()] == ["last_hidden_state", "sentence_embedding"]


def test_fewer_pieces_are_those_of_the_training_texts(run_dir, paired, tmp_path):
    from sentence_transformers import SentenceTransformer

    exported = read(make_export(run_dir, "plain", tmp_path / "plain", "vocabulary=auto"))
    # Every word of the validation pairs is in some training text, so that they are read as before.
    assert exported["scores"] == pytest.approx(read(run_dir, "record.json")["scores"]["pruned"])
    asked = [text for pair in texts(paired) for text in pair]
    before, after = (
        SentenceTransformer(str(folder), device="cpu").encode(asked, show_progress_bar=False)
        for folder in (run_dir / "model", tmp_path / "plain")
    )
    np.testing.assert_allclose(after, before, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["teacher=none"], "is its teacher, got teacher=none"),
        (["distill=none"], "distill.weight must be > 0, got 0"),
        (["data.unlabelled=x.csv"], "whose answers are encodings"),
        (["freeze=[head]", "student_init=teacher"], "has no head"),
        (["task.stride=4"], "task.stride belongs to"),
        (["sparsity=0.25", "pruning=layers"], "whole layers"),
    ],
    ids=["no teacher", "no alignment", "unlabelled", "head", "stride", "layers"],
)
def test_keys_that_do_not_fit_are_refused(paired, tiny_model, tmp_path, keys, message):
    from cap.base.errors import InputError

    given = ["task=embed", f"data_dir={paired}", "task.label_column=score", f"model.name_or_path={tiny_model}"]
    with pytest.raises(InputError, match=message):
        make_run(tmp_path / "run", *given, *keys)


def test_there_is_no_teacher_to_fine_tune(compose_config, paired):
    from cap.base.errors import InputError
    from cap.finetune import finetune

    with pytest.raises(InputError, match="whose teacher is the pre-trained model as it is"):
        finetune(compose_config("task=embed", f"data_dir={paired}"))
