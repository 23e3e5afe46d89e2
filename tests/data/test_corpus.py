from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from cap.base.errors import InputError
from cap.base.kinds import Kind
from cap.data.corpus import corpus_texts
from cap.data.tasks import get_task


def texts(folder: Path, task: str = "sst2") -> list[str]:
    return [text for part in corpus_texts(folder, get_task(task)) for text in part]


def texts_of_kind(folder: Path, kind: Kind, *columns: str) -> list[Any]:
    task = dataclasses.replace(
        get_task("sst2"), kind=kind, text_columns=columns, labels=("B-a", "O") if kind == "tags" else ()
    )
    return [text for part in corpus_texts(folder, task) for text in part]


def test_lines_and_the_columns_of_the_task_are_texts_and_other_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\n  \ntwo\n", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"sentence": "three", "label": 1, "source": "four"}) + "\n")
    (tmp_path / "c.csv").write_text("sentence,label\nfive,1\n")
    (tmp_path / "README.md").write_text("six")
    assert texts(tmp_path) == ["one", "two", "three", "five"]


def test_texts_come_some_at_a_time_and_conll_files_are_for_words_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {n}\n" for n in range(2500)), encoding="utf-8")
    rows = "".join(json.dumps({"sentence": f"row {n}"}) + "\n" for n in range(1500))
    (tmp_path / "b.jsonl").write_text(rows)
    (tmp_path / "c.conll").write_text("one O\n\n")
    parts = list(corpus_texts(tmp_path, get_task("sst2")))
    assert [len(part) for part in parts] == [1000, 1000, 500, 1000, 500]
    assert parts[2][-1] == "line 2499"


def test_both_texts_of_a_pair_are_read(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\nleft\tright\n")
    assert texts(tmp_path, "mrpc") == ["left", "right"]


def test_lists_of_words_stay_lists_beside_lines_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text\n", encoding="utf-8")
    rows = [{"tokens": ["two", "words"], "tags": ["O", "O"]}, {"tokens": [], "tags": []}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert texts_of_kind(tmp_path, "tags", "tokens") == ["some text", ["two", "words"]]


def test_pairs_and_training_texts_of_an_encoder_have_columns_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"sentence": "one"}) + "\n")
    (tmp_path / "validation.jsonl").write_text(json.dumps({"a": "two", "b": "three"}) + "\n")
    assert texts_of_kind(tmp_path, "encoding", "sentence", "a", "b") == ["one", "two", "three"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "without text"),
        ({"a.txt": " \n\n", "notes.md": "words"}, "without text"),
        ({"a.jsonl": '{"text": "one"}\n'}, "lacks sentence and has text; rename its columns"),
    ],
    ids=["no file", "no text", "no such column"],
)
def test_a_folder_without_text_is_refused(files: dict[str, str], reason: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=reason):
        texts(tmp_path)


@pytest.mark.parametrize(("name", "found"), [("gone", "not there"), ("file.txt", "a file")])
def test_what_is_no_folder_is_refused(name: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("one")
    with pytest.raises(InputError, match=rf"vocabulary must be auto, .* or a folder of texts: .* which is {found}"):
        texts(tmp_path / name)


def test_a_text_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("größer".encode("latin-1"))
    with pytest.raises(InputError, match=r"needs texts in UTF-8, got .*a\.txt"):
        texts(tmp_path)
