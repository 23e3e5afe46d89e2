"""The model card: every claim in it comes from the record, and its lines load the model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from cap.results.card import write_card

RECORD: dict[str, Any] = {
    "command": "python -m cap.train task=sst2 sparsity=0.9",
    "config": {"task": {"name": "sst2"}, "pruning": {"name": "movement"}},
    "environment": {"git_commit": "0123abc"},
    "model": "package some-encoder",
    "seed": 7,
    "metric": "accuracy",
    "scores": {"teacher": {"accuracy": 0.9}, "pruned": {"accuracy": 0.81}, "majority": {"accuracy": 0.5}},
    "retention": 0.9,
    "retention_reason": None,
    "retention_above_majority": 0.775,
    "retention_above_majority_reason": None,
    "sparsity": {"asked": 0.9, "prunable": 0.90004, "encoder": 0.8921, "model": 0.4217},
    "data": {"source": "folder sst2", "fingerprint": "feed", "n_rows": {"train": 8000, "validation": 872}},
    "warnings": ["The teacher stayed at chance level."],
}


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


def test_a_model_without_a_teacher_has_no_score_of_one(tmp_path: Path) -> None:
    scores = copy.deepcopy(RECORD["scores"]) | {"teacher": None}
    text = card(tmp_path, scores=scores, retention=None, retention_reason="There was no teacher.")
    assert "| accuracy | \N{EN DASH} | 0.8100 | 0.5000 |" in text
    assert "Retention of accuracy: none (There was no teacher.)" in text
