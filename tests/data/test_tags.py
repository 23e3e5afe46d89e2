"""Words and tags as they are read, and the task that they describe."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from cap.base.errors import InputError
from cap.data.custom import task_of
from cap.data.sources import load_rows
from cap.data.tags import begins_without_mark, entity_types
from cap.data.tasks import Task
from tests.data.tagged import LABELS, write_tagged

OWN: dict[str, Any] = {"text_columns": ["tokens"], "label_column": "tags", "label_type": None, "metrics": None}
GOOD = {"tokens": ["a", "film", "is", "good"], "tags": ["O", "B-x", "I-x", "O"]}


def described(folder: Path, **changed: Any) -> Task:
    return task_of("tokens", folder, OWN | changed)


def write(folder: Path, train: list[dict], validation: list[dict] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for split, rows in (("train", train), ("validation", validation or [GOOD])):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def complaint(folder: Path, **changed: Any) -> str:
    with pytest.raises(InputError) as caught:
        described(folder, **changed)
    return str(caught.value)


def test_tags_of_the_training_rows_are_the_labels_in_alphabetical_order(tmp_path):
    task = described(write_tagged(tmp_path / "d"))
    assert (task.kind, task.labels) == ("tags", tuple(LABELS))
    assert task.head.n_outputs == 4


@pytest.mark.parametrize(
    ("tags", "metrics"),
    [
        (["O", "B-x", "I-x", "O"], ("f1", "precision", "recall")),
        (["B", "I", "O", "O"], ("f1", "precision", "recall")),
        (["DET", "NOUN", "VERB", "ADJ"], ("macro_f1", "accuracy")),
        ([3, 0, 1, 2], ("macro_f1", "accuracy")),
    ],
    ids=["typed", "bare", "plain", "numbers"],
)
def test_scores_follow_from_what_tags_mark(tmp_path, tags, metrics):
    rows = [GOOD | {"tags": tags}]
    assert described(write(tmp_path / "d", rows, rows)).metrics == metrics


def test_numbers_take_the_names_and_the_order_that_parquet_has_for_them(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    names = ["O", "B-x", "I-x"]
    features = Features({"tokens": Sequence(Value("string")), "tags": Sequence(ClassLabel(names=names))})
    rows = Dataset.from_dict({"tokens": [["a", "film"]], "tags": [[0, 1]]}, features=features)
    for split in ("train", "validation"):
        rows.to_parquet(tmp_path / f"{split}.parquet")
    task = described(tmp_path)
    assert task.labels == tuple(names)
    loaded = load_rows(task, data_dir=tmp_path, max_train_rows=None, max_eval_rows=None)
    assert loaded.splits["train"]["tags"][:] == [[0, 1]]


def test_rows_hold_words_and_the_numbers_of_their_tags(tmp_path):
    folder = write(tmp_path / "d", [GOOD, {"tokens": ["good"], "tags": ["B-x"]}])
    rows = load_rows(described(folder), data_dir=folder, max_train_rows=None, max_eval_rows=None)
    assert rows.splits["train"].column_names == ["tokens", "tags", "example_id"]
    assert rows.splits["train"]["tags"][:] == [[2, 0, 1, 2], [0]]


def test_conll_json_and_parquet_of_the_same_rows_have_one_fingerprint(tmp_path):
    import pandas as pd

    found = {}
    for suffix in ("jsonl", "parquet", "conll"):
        folder = write(tmp_path / suffix, [GOOD])
        for split in ("train", "validation"):
            lines = "".join(f"{word}\t{tag}\n" for word, tag in zip(GOOD["tokens"], GOOD["tags"], strict=True))
            (folder / f"{split}.jsonl").unlink() if suffix != "jsonl" else None
            if suffix == "conll":
                (folder / f"{split}.conll").write_text(lines, encoding="utf-8")
            elif suffix == "parquet":
                pd.DataFrame([GOOD]).to_parquet(folder / f"{split}.parquet")
        rows = load_rows(described(folder), data_dir=folder, max_train_rows=None, max_eval_rows=None)
        found[suffix] = rows.fingerprint
    assert len(set(found.values())) == 1


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"tags": ["O", "B-x"]}, "one tag for each word of column tokens, got 2 for 4 words in row 1"),
        ({"tokens": [], "tags": []}, "column tokens must hold at least one word in every row, got none in row 1"),
        ({"tokens": None, "tags": ["O"]}, "column tokens must hold at least one word in every row, got none in row 1"),
        ({"tokens": ["a", " ", "is", "b"]}, "column tokens must hold a word at every place, got ' ' in row 1"),
        ({"tags": ["O", None, "O", "O"]}, "column tags must hold a tag at every place, got None in row 1"),
    ],
    ids=["lengths", "empty sentence", "null sentence", "blank word", "null tag"],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_bad_row_is_named_with_its_file(tmp_path, bad, expected, split):
    rows = [GOOD, GOOD | bad]
    folder = write(tmp_path / "d", rows, rows) if split == "train" else write(tmp_path / "d", [GOOD], rows)
    message = complaint(folder)
    assert expected in message
    assert f"(counted from 0) of data_dir file {split}.jsonl" in message


def test_tag_that_no_training_row_has_is_refused(tmp_path):
    message = complaint(write(tmp_path / "d", [GOOD], [GOOD, GOOD | {"tags": ["O", "B-y", "O", "O"]}]))
    assert "every tag must be among those of data_dir file train.jsonl (B-x, I-x, O), got 'B-y' in row 1" in message
    assert "data_dir file validation.jsonl" in message


@pytest.mark.parametrize(
    ("rows", "changed", "expected"),
    [
        ([{"tokens": ["a"]}], {}, "data_dir file train.jsonl lacks tags and has tokens; name yours with"),
        ([{"tokens": "a film", "tags": "O O"}], {}, "column tokens must hold a list of words in every row, got string"),
        ([GOOD | {"tags": [0.5, 1.0, 1.0, 0.5]}], {}, "column tags must hold a list of tags (names or whole numbers)"),
        ([{"tokens": ["a"], "tags": ["O"]}], {}, "two different ones at least, got only O in data_dir file train"),
        ([GOOD | {"tags": ["O", "B-x", "E-x", "O"]}], {}, "got 'E-x' beside 'B-x'; write tags of other schemes"),
        ([GOOD], {"label_type": "classes"}, "task.label_type belongs to task=custom, got 'classes'"),
        ([GOOD], {"text_columns": ["tokens", "more"]}, "reads one column of words"),
        ([GOOD], {"text_columns": ["tags"], "label_column": "tokens"}, "not called tags or example_id"),
        ([GOOD], {"metrics": ["accurracy"]}, "must be among accuracy"),
        ([GOOD | {"tags": ["A", "N", "V", "A"]}], {"metrics": ["f1"]}, "where tags mark entities by B- and I-"),
    ],
    ids=[
        "no tags",
        "texts",
        "fractions",
        "one tag",
        "scheme",
        "label type",
        "two columns",
        "reserved",
        "typo",
        "plain",
    ],
)
def test_files_and_keys_that_cannot_work_are_refused(tmp_path, rows, changed, expected):
    assert expected in complaint(write(tmp_path / "d", rows, rows), **changed)


def test_other_schemes_are_scored_tag_by_tag_where_that_is_asked_for(tmp_path):
    rows = [GOOD | {"tags": ["O", "B-x", "E-x", "O"]}]
    assert described(write(tmp_path / "d", rows, rows), metrics=["macro_f1"]).metrics == ("macro_f1",)


def test_folder_is_required():
    with pytest.raises(InputError, match=r"needs data_dir=DIR with train\.\* .*conll.*; got none"):
        task_of("tokens", None, OWN)


def test_entities_that_begin_inside_are_accepted_and_said_once(tmp_path, caplog):
    inside = GOOD | {"tags": ["I-x", "I-x", "O", "I-x"]}
    with caplog.at_level(logging.WARNING):
        described(write(tmp_path / "d", [GOOD, inside, GOOD | {"tags": ["O", "B-x", "B-x", "I-x"]}], [inside]))
    (said,) = [record.message for record in caplog.records]
    assert "2 in data_dir file train.jsonl, 2 in data_dir file validation.jsonl" in said


def test_what_scores_zero_is_said(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        described(write(tmp_path / "d", [GOOD]))
    assert "a model that answers O throughout finds no entity: its f1 is 0" in caplog.text


@pytest.mark.parametrize(
    ("tags", "expected"),
    [("B-x I-x O", 0), ("I-x I-x", 1), ("B-x I-y", 1), ("O I-x O I-x", 2), ("B I O I", 1)],
)
def test_begins_inside_are_counted(tags, expected):
    assert begins_without_mark(tags.split()) == expected


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["O", "I-a", "B-b"], ("a", "b")), (["O", "B", "I"], ("",)), (["O", "NOUN"], None), (["I", "N"], None)],
    ids=["typed", "bare", "plain", "I among others"],
)
def test_types_of_entities(names, expected):
    assert entity_types(names) == expected


def test_rows_without_labels_and_probes_are_refused_before_anything_is_read(compose_config, tmp_path):
    from cap.config.check import check
    from cap.config.probe import probed_task

    with pytest.raises(InputError, match="with task=tokens, whose answers are tags of words; leave it out"):
        check(compose_config("task=tokens", "data.keep_unlabelled=true"))
    with pytest.raises(InputError, match="got tokens, whose answers are tags of words"):
        probed_task("tokens")
