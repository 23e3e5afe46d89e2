"""Scores of tagged words against a table worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from cap.data.entities import UNREAD, TagMetrics, majority_tags, score_tags
from cap.data.tasks import Task

LABELS = ("B-loc", "B-per", "I-loc", "I-per", "O")

# Right tags, answers, and what is right, given and wanted of whole entities, as CoNLL-2003 counts them.
TABLE: dict[str, tuple[str, str, tuple[int, int, int]]] = {
    "exact": ("B-per I-per O B-loc", "B-per I-per O B-loc", (2, 2, 2)),
    "too short": ("B-per I-per O O", "B-per O O O", (0, 1, 1)),
    "too long": ("O B-loc O O", "O B-loc I-loc O", (0, 1, 1)),
    "other type": ("O B-loc O O", "O B-per O O", (0, 1, 1)),
    "missed": ("B-loc O O O", "O O O O", (0, 0, 1)),
    "made up": ("O O O O", "O O B-per O", (0, 1, 0)),
    "neighbours": ("B-per B-per O O", "B-per I-per O O", (0, 1, 2)),
    "begins inside": ("O B-per I-per O", "O I-per I-per O", (1, 1, 1)),
    "type changes inside": ("B-per I-loc O O", "B-per B-loc O O", (2, 2, 2)),
    "not read": ("B-per I-per O B-loc", "B-per I-per ? ?", (1, 1, 2)),
}


def task(*metrics: str, labels: tuple[str, ...] = LABELS) -> Task:
    return Task(
        name="tokens",
        kind="tags",
        text_columns=("tokens",),
        label_column="tags",
        labels=labels,
        metrics=metrics or ("f1", "precision", "recall"),
        hub_path=None,
        hub_config=None,
    )


def numbers(tags: str, labels: tuple[str, ...] = LABELS) -> np.ndarray:
    return np.array([UNREAD if tag == "?" else labels.index(tag) for tag in tags.split()])


def by_hand(n_right: int, n_given: int, n_wanted: int) -> dict[str, float]:
    precision, recall = n_right / n_given if n_given else 0.0, n_right / n_wanted if n_wanted else 0.0
    f1 = 2 * precision * recall / (precision + recall) if n_right else 0.0
    return {"f1": f1, "precision": precision, "recall": recall}


@pytest.mark.parametrize("name", TABLE)
def test_whole_entities_of_a_row_are_counted_as_by_hand(name):
    right, given, counts = TABLE[name]
    assert score_tags(task(), [numbers(right)], [numbers(given)]) == pytest.approx(by_hand(*counts))


def test_entities_of_all_rows_count_alike():
    rows = [(numbers(right), numbers(given)) for right, given, _ in TABLE.values()]
    # The columns of the table, added up.
    expected = by_hand(6, 11, 13)
    assert score_tags(task(), *map(list, zip(*rows, strict=True))) == pytest.approx(expected)


def test_bare_tags_mark_entities_of_one_type():
    labels = ("B", "I", "O")
    right, given = numbers("B I O B", labels), numbers("B I O I", labels)
    assert score_tags(task(labels=labels), [right], [given])["f1"] == 1.0
    assert score_tags(task(labels=labels), [right], [numbers("B O O B", labels)])["precision"] == 0.5


def test_macro_f1_is_the_mean_over_the_tags_that_occur():
    labels = ("ADJ", "DET", "NOUN", "VERB", "X")  # X nowhere
    right, given = numbers("DET NOUN VERB NOUN", labels), numbers("DET NOUN NOUN ?", labels)
    # DET 1; NOUN: 1 right of 2 given and 2 wanted, 1/2; VERB 0; ADJ and X do not occur.
    scores = score_tags(task("macro_f1", "accuracy", labels=labels), [right], [given])
    assert scores == pytest.approx({"macro_f1": (1 + 0.5 + 0) / 3, "accuracy": 2 / 4})


def made(folder: Any, tags: list[str], read: list[list[int]]) -> TagMetrics:
    """Make metrics over rows of which some words were read, each of two tokens."""
    from datasets import Dataset

    lengths = np.array([2 * len(own) + 2 for own in read])
    words = [np.concatenate([[-1], np.stack([own, np.full(len(own), -1)], axis=1).flatten(), [-1]]) for own in read]
    np.save(folder / "lengths.npy", lengths)
    np.save(folder / "words.npy", np.concatenate(words).astype(np.int32))
    return TagMetrics(task(), Dataset.from_dict({"tags": [numbers(own).tolist() for own in tags]}), folder)


def seen(example_id: list[int], answers: list[str], *, width: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Answer the first tokens of the words of some rows."""
    logits, is_word = torch.zeros(len(answers), width, len(LABELS)), torch.zeros(len(answers), width, dtype=torch.bool)
    for row, own in enumerate(answers):
        for place, tag in enumerate(numbers(own).tolist()):
            logits[row, 1 + 2 * place, tag] = 1.0
            is_word[row, 1 + 2 * place] = True
    return logits, {"example_id": torch.tensor(example_id), "is_word": is_word}


def test_answers_stand_at_the_words_that_were_read(tmp_path):
    metrics = made(tmp_path, ["B-per I-per O", "O B-loc O O"], [[0, 1, 2], [1, 3]])
    metrics.update(*seen([1, 0], ["B-loc O", "B-per I-per O"], width=8))
    answers = metrics.answers()
    assert list(answers) == [0, 1]
    assert answers[1].tolist() == numbers("? B-loc ? O").tolist()
    assert metrics.compute() == {"f1": 1.0, "precision": 1.0, "recall": 1.0}
    assert not metrics.is_constant


def test_parts_of_several_processes_score_as_one(tmp_path):
    def make() -> TagMetrics:
        return made(tmp_path, ["B-per I-per O", "O B-loc O O", "O"], [[0, 1, 2], [1, 3], []])

    first, second, whole = make(), make(), make()
    first.update(*seen([2, 0], ["", "B-per O O"], width=8))
    second.update(*seen([1], ["B-loc O"], width=6))
    whole.merge([first.state(), make().state(), second.state()])
    assert whole.compute() == pytest.approx(by_hand(1, 2, 2))


def test_metrics_need_a_row(tmp_path):
    with pytest.raises(ValueError, match="at least one row"):
        made(tmp_path, ["O"], [[0]]).compute()


@pytest.mark.parametrize(
    ("labels", "metrics", "expected"),
    [
        (LABELS, (), {"f1_x": 0.0, "precision_x": 0.0, "recall_x": 0.0}),
        # Always DET: 2 of 4 right; DET 2/3, NOUN 0.
        (("DET", "NOUN"), ("macro_f1", "accuracy"), {"macro_f1_x": 1 / 3, "accuracy_x": 0.5}),
    ],
    ids=["outside of every entity", "commonest tag"],
)
def test_majority_gives_every_word_the_commonest_training_tag(labels, metrics, expected):
    from datasets import Dataset

    train, rows = [[len(labels) - 1 if labels == LABELS else 0] * 5 + [1]], [[0, 0], [1, 1]]
    found = majority_tags(
        task(*metrics, labels=labels),
        Dataset.from_dict({"tags": train}),
        Dataset.from_dict({"tags": rows}),
        suffix="_x",
    )
    assert found == pytest.approx(expected)
    assert all(math.isfinite(score) for score in found.values())
