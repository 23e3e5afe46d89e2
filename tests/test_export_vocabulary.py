"""Exports with the pieces alone that some texts use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.formats.made_exports import QUICK, lines_of_card, make_export, make_run, read

TRAIN = ["the film is good", "the film is bad"] * 4
VALIDATION = ["the film is good", "the film is great"]  # one word of eight is new


@pytest.fixture(scope="module")
def run(tmp_path_factory, spelling_model) -> Path:
    root = tmp_path_factory.mktemp("vocabulary")
    data = root / "data"
    data.mkdir()
    for split, texts in (("train", TRAIN), ("validation", VALIDATION)):
        rows = [json.dumps({"sentence": text, "label": row % 2}) for row, text in enumerate(texts)]
        (data / f"{split}.jsonl").write_text("\n".join(rows))
    halves = ["pruning=structured", "sparsity=0.5", "schedule.levels=[0.5]"]
    keys = ["task=sst2", f"data_dir={data}", f"model.name_or_path={spelling_model}"]
    return make_run(root / "run", *QUICK, *halves, *keys)


@pytest.fixture(scope="module")
def plain(run) -> Path:
    return make_export(run, "plain", run.parent / "plain", "vocabulary=auto")


def test_stock_transformers_loads_what_is_left(plain) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(plain), AutoTokenizer.from_pretrained(plain)
    # Five special tokens, the five words of the training rows, and all letters in both places.
    assert model.config.vocab_size == len(tokenizer) == model.get_input_embeddings().num_embeddings == 62
    with torch.no_grad():
        assert model(**tokenizer("the great film 日本 😀 \x01", return_tensors="pt")).logits.isfinite().all()


def test_the_cards_own_lines_load_it(plain, monkeypatch) -> None:
    monkeypatch.chdir(plain.parent)
    names: dict = {}
    exec(lines_of_card(plain), names)
    assert names["model"].config.vocab_size == len(names["tokenizer"])


def test_what_it_costs_is_measured_and_said(run, plain) -> None:
    result = read(plain)
    assert result["vocabulary"] == {
        "corpus": "the run's training rows",
        "dense_rows": 76,
        "rows": 62,
        "used": 5,
        "validation_tokens": 8,
        "changed_tokens": 1,
        "changed": 0.125,
        "rest": "split",
    }
    assert result["check"]["largest_difference"] < 1e-6
    before, after = result["scores_of_run"]["accuracy"], result["scores"]["accuracy"]
    said = (
        "Of the 76 rows of the word embedding 62 are left, of which 5 are used in the run's training rows; 12.50% of "
        f"the 8 validation tokens changed. Scores: accuracy {before:.4f} before the export, {after:.4f} after it."
    )
    assert result["sentence"].endswith(said)
    assert said in (plain / "README.md").read_text()
    noted = read(run, "record.json")["exports"]
    assert noted["plain+vocabulary"]["vocabulary"] == result["vocabulary"]
    assert "plain" not in noted


@pytest.mark.parametrize("name", ["plain", pytest.param("onnx", marks=pytest.mark.ends)])
def test_rows_that_are_shared_are_so_in_the_folder_too(run, tmp_path, name: str) -> None:
    from transformers import AutoTokenizer

    folder = make_export(run, name, tmp_path / "shared", "vocabulary=auto", "vocabulary_rest=nearest")
    result, whole = read(folder), AutoTokenizer.from_pretrained(run / "model")
    assert (result["vocabulary"]["rest"], result["vocabulary"]["changed"]) == ("nearest", 0.125)
    assert (
        "share the row that is nearest to their own. Load tokenizer.json in each process"
        in (folder / "README.md").read_text()
    )
    encoded = AutoTokenizer.from_pretrained(folder)("the scene is great")
    assert encoded.tokens() == whole("the scene is great").tokens()
    assert max(encoded["input_ids"]) < result["vocabulary"]["rows"] == 62
    assert read(run, "record.json")["exports"][f"{name}+vocabulary-nearest"]["vocabulary"] == result["vocabulary"]


def test_a_model_whose_pieces_share_rows_is_not_trained_on(run, tmp_path, tiny_data) -> None:
    from cap.base.errors import InputError

    folder = make_export(run, "plain", tmp_path / "shared", "vocabulary=auto", "vocabulary_rest=nearest")
    keys = ["task=sst2", f"data_dir={tiny_data}", f"model.name_or_path={folder}"]
    with pytest.raises(InputError, match=r"numbers of their own, .* made with vocabulary_rest=nearest; take the run's"):
        make_run(tmp_path / "again", *QUICK, *keys)


def test_fewer_units_and_fewer_pieces_go_together(run, tmp_path) -> None:
    import cap

    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "some.txt").write_text("the book\n")
    folder = make_export(run, "compact", tmp_path / "small", f"vocabulary={tmp_path / 'words'}")
    result, model = read(folder), cap.load(folder)
    assert result["vocabulary"]["corpus"] == "folder words"
    assert model.config.vocab_size == result["vocabulary"]["rows"] == 59
    assert result["size"]["prunable_parameters"] * 2 == result["size"]["dense_prunable_parameters"]
    # Of the embedding 17 rows of 32 numbers went, beside the units.
    units = read(make_export(run, "compact", tmp_path / "compact"))["size"]["parameters"]
    assert result["size"]["parameters"] == units - 17 * 32


def test_the_logits_are_compared_with_those_of_the_runs_own_pieces(run, tmp_path, monkeypatch) -> None:
    from cap.base.errors import RunError

    monkeypatch.setattr("cap.formats.vocabulary.Vocabulary.numbered_as_before", lambda self, batch: batch)
    with pytest.raises(RunError, match="format=plain must give the run's logits"):
        make_export(run, "plain", tmp_path / "out", "vocabulary=auto")


@pytest.mark.parametrize(
    ("name", "vocabulary", "expected"),
    [
        ("plain", "null", r"got vocabulary=null, with which it would be run/model once more"),
        ("compact", "nowhere", "vocabulary must be auto, .* which is not there"),
        (
            "compact",
            "null vocabulary_rest=nearest",
            "got vocabulary=null; give vocabulary=auto, or leave vocabulary_rest",
        ),
        ("compact", "auto vocabulary_rest=near", "vocabulary_rest must be one of split, nearest, got 'near'"),
    ],
)
def test_what_cannot_work_is_refused(run, tmp_path, name: str, vocabulary: str, expected: str) -> None:
    from cap.base.errors import InputError

    with pytest.raises(InputError, match=expected):
        make_export(run, name, tmp_path / "out", *f"vocabulary={vocabulary}".split())


def test_other_rows_than_the_runs_are_refused(run, tiny_data, tmp_path) -> None:
    from cap.base.errors import InputError

    with pytest.raises(InputError, match=r"another vocabulary changes the logits, .* or leave vocabulary out"):
        make_export(run, "compact", tmp_path / "out", "vocabulary=auto", f"data_dir={tiny_data}")
