"""The model card: every claim in it comes from the record, and its lines load the model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from cap.runs.card import CARD_KEYS, write_card, write_export_card
from tests.runs.made_cards import EXPORT, RECORD


def export_card(folder: Path, **changed: Any) -> str:
    write_export_card(folder, RECORD, EXPORT | changed, name="small", terms="CC BY-SA 4.0")
    return (folder / "README.md").read_text(encoding="utf-8")


def card(folder: Path, **changed: Any) -> str:
    write_card(folder, RECORD | changed, auto_class="AutoModelForSequenceClassification", terms="CC BY-SA 4.0")
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "said",
    [
        "python -m cap.train task=sst2 sparsity=0.9",
        "| accuracy | 0.9000 | 0.8100 | 0.5000 |",
        "Retention of accuracy: 0.900; above the majority class: 0.775",
        "0.9000 of the prunable weights are zero (0.9 was asked for)",
        "Of all encoder weights it is 0.8921, of the whole model 0.4217",
        "Terms: CC BY-SA 4.0.",
        "- The teacher stayed at chance level.",
        "seed 7, commit 0123abc",
        "8,000 train, 872 validation",
    ],
)
def test_the_card_says_how_it_was_made_what_it_scores_and_its_limits(tmp_path: Path, said: str) -> None:
    assert said in card(tmp_path)


def test_layers_that_are_gone_are_not_called_zero(tmp_path: Path) -> None:
    text = card(tmp_path, layers={"kept": [0], "n_dense": 10})
    assert "0.9000 of the prunable weights are gone with their layers (0.9 was asked for)" in text


def test_a_model_without_a_teacher_has_no_score_of_one(tmp_path: Path) -> None:
    scores = copy.deepcopy(RECORD["scores"]) | {"teacher": None}
    text = card(tmp_path, scores=scores, retention=None, retention_reason="There was no teacher.")
    assert "| accuracy | \N{EN DASH} | 0.8100 | 0.5000 |" in text
    assert "Retention of accuracy: none (There was no teacher.)" in text


@pytest.mark.parametrize(
    "said",
    [
        "```\npython -m cap.train task=sst2 sparsity=0.9\n```",
        "```\npython -m cap.export run=a format=compact\n```",
        "On 16 of the validation rows its logits differ from those of the run's model by 2.5e-07 at most.",
        "| on the validation rows | dense teacher | this model | learned nothing |",
        "| accuracy | 0.9000 | 0.8100 | 0.5000 |",
        "Of the dense model's 1,000 prunable weights, the matrices of the encoder layers, 0.9000 are zero or gone (0.9 "
        "was asked for). 400 prunable parameters are left here, of which 300 are zero.",
        "some CPU, 2 threads, beside the dense model",
        "| batch 1, tokens 32 | 2.00 | 1.50 |",
        'model, tokenizer = cap.load("small"), ',
        "- The logits were compared on other rows.",
    ],
)
def test_an_exports_card_tells_what_is_true_of_the_export(tmp_path: Path, said: str) -> None:
    assert said in export_card(tmp_path)


@pytest.mark.parametrize("loads", [True, False])
def test_transformers_is_the_library_only_where_it_loads_the_folder(tmp_path: Path, loads: bool) -> None:
    assert ("library_name: transformers" in export_card(tmp_path, loads_with_transformers=loads)) == loads


@pytest.mark.parametrize(
    ("auto_class", "library"),
    [("AutoModel", "sentence-transformers"), ("AutoModelForTokenClassification", "transformers")],
)
def test_the_library_of_a_run_is_the_one_that_its_lines_load_it_with(
    tmp_path: Path, auto_class: str, library: str
) -> None:
    write_card(tmp_path, RECORD, auto_class=auto_class, terms="mine")
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"library_name: {library}\n" in card
    assert f"from {library.replace('-', '_')} import" in card


def test_an_export_with_scores_of_its_own_shows_both_and_its_own_retention(tmp_path: Path) -> None:
    retained = {"retention": 0.889, "retention_above_majority": None, "retention_above_majority_reason": "Why not."}
    text = export_card(tmp_path, scores={"accuracy": 0.8}, retention=retained)
    assert "| on the validation rows | dense teacher | before export | this model | learned nothing |" in text
    assert "| accuracy | 0.9000 | 0.8100 | 0.8000 | 0.5000 |" in text
    assert "Retention of accuracy: 0.889; above the majority class: none (Why not.)" in text


def test_an_export_that_was_not_timed_has_no_empty_table(tmp_path: Path) -> None:
    assert "## Latency\n\nIt is smaller.\n" in export_card(tmp_path, latency_ms={}, speed_up={})


def test_a_run_without_timed_exports_has_no_latency(tmp_path: Path) -> None:
    assert "## Latency" not in card(tmp_path, exports={"compact": EXPORT | {"latency_ms": {}}})


@pytest.mark.parametrize(
    ("device", "threads", "place"),
    [("some CPU", 2, "some CPU, 2 threads"), ("GPU", None, "GPU")],
    ids=["cpu", "gpu"],
)
def test_a_runs_card_says_once_what_an_export_was_timed_on(tmp_path: Path, device, threads, place: str) -> None:
    text = card(tmp_path, exports={"compact": EXPORT | {"device": device, "threads": threads}})
    assert f"| compact | batch 1, tokens 32 | 3.00 | 2.00 | 1.50 | {place} |" in text


def test_no_absolute_path_is_on_a_card(tmp_path: Path) -> None:
    assert "/srv" not in card(tmp_path, command="python -m cap.train data_dir=/srv/data/sst2")


@pytest.mark.parametrize("key", CARD_KEYS)
def test_every_key_that_a_card_is_said_to_read_is_read(tmp_path: Path, key: str) -> None:
    changed = copy.deepcopy(RECORD)
    node, (*path, last) = changed, key.split(".")
    for part in path:
        node = node[part]
    del node[last]
    with pytest.raises(KeyError):
        write_card(tmp_path, changed, auto_class="AutoModelForSequenceClassification", terms="mine")
