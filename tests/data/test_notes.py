from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cap.data.notes import notes_on_rows
from cap.data.sources import load_rows
from cap.data.tasks import get_task


@pytest.fixture
def rows_of(tmp_path: Path, write_split):
    """Write both splits of a task and read them."""

    def read(name: str, train: dict[str, list], validation: dict[str, list]):
        for split, columns in (("train", train), ("validation", validation)):
            write_split(tmp_path / name, split, columns)
        task = get_task(name)
        return task, load_rows(task, data_dir=tmp_path / name, max_train_rows=None, max_eval_rows=None)

    return read


def test_validation_rows_that_are_trained_on_are_counted(rows_of, caplog) -> None:
    train = {"sentence": ["a film", "a book"], "label": [0, 1]}
    task, rows = rows_of("sst2", train, {"sentence": ["a book", "a play", "a book"], "label": [0, 1, 1]})
    (note,) = notes_on_rows(task, rows, {}, max_length=8)
    assert note == "2 of 3 examples of validation have the texts of a training row: a score on them says less."
    assert note in caplog.text


def test_a_pair_is_trained_on_if_both_its_texts_are_those_of_one_row(rows_of) -> None:
    train = {"question1": ["a", "b", "ab"], "question2": ["x", "y", "c"], "label": [0, 1, 0]}
    validation = {"question1": ["a", "a", "a"], "question2": ["x", "y", "bc"], "label": [0, 1, 0]}
    task, rows = rows_of("qqp", train, validation)
    (note,) = notes_on_rows(task, rows, {}, max_length=8)
    assert note.startswith("1 of 3 examples of validation ")


def test_texts_that_fill_the_length_are_counted_and_a_few_are_no_note(rows_of, caplog) -> None:
    columns = {"sentence": ["a film"], "label": [1]}
    task, rows = rows_of("sst2", columns, {"sentence": ["a play"], "label": [0]})
    full = {"train": (1, 1000), "validation": (10, 1000)}
    notes = notes_on_rows(task, rows, full, max_length=8)
    said = "examples of {} have 8 tokens or more: what is longer is cut there (max_length)."
    assert notes == [f"10 of 1,000 {said.format('validation')}"]
    assert f"1 of 1,000 {said.format('train')}" in caplog.text


def test_classes_are_counted_in_the_order_of_the_task(rows_of, caplog) -> None:
    caplog.set_level(logging.INFO, logger="cap")
    task, rows = rows_of("sst2", {"sentence": ["a", "b", "c"], "label": [1, 1, 0]}, {"sentence": ["d"], "label": [0]})
    assert notes_on_rows(task, rows, {}, max_length=8) == []
    assert "classes of train: negative 1, positive 2" in caplog.text
