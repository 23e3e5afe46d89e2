"""Texts of any column, each once, and pairs that are held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROWS = [
    {"a": "one film", "b": "a film", "c": "the plot", "score": 0.5},
    {"a": "one song", "b": "a song", "c": "one film", "score": 1.0},
    {"a": "one film", "b": "a play", "c": "the cast", "score": 0.0},
]
PAIRS = [{"a": "the plot", "b": "a plot", "score": 3}, {"a": "one cast", "b": "a cast", "score": 1}]


def write(folder: Path, train: list[dict[str, Any]] = ROWS, validation: list[dict[str, Any]] = PAIRS) -> Path:
    for split, rows in (("train", train), ("validation", validation)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def task_of(folder: Path | None, **changes: Any):
    from cap.data import custom

    given = {"text_columns": ["a", "b", "c"], "label_column": "score", "label_type": None, "metrics": None}
    return custom.task_of("embed", folder, given | changes)


def read(folder: Path, *, max_train_rows: int | None = None, **changes: Any):
    from cap.data.sources import load_rows

    task = task_of(folder, **changes)
    return load_rows(task, data_dir=folder, max_train_rows=max_train_rows, max_eval_rows=None)


def test_training_has_every_text_of_all_columns_once_and_none_that_is_scored(tmp_path):
    rows = read(write(tmp_path)).splits["train"]
    assert rows["text"][:] == ["one film", "one song", "a film", "a song", "a play", "the cast"]
    assert rows["example_id"][:] == list(range(6))


def test_validation_pairs_are_the_two_columns_that_the_file_has_in_the_order_of_the_key(tmp_path):
    rows = read(write(tmp_path), text_columns=["b", "c", "a"]).splits["validation"]
    assert rows["first"][:] == ["a plot", "a cast"]
    assert rows["second"][:] == ["the plot", "one cast"]
    assert rows["score"][:] == [3.0, 1.0]


def test_limit_counts_rows_of_the_file(tmp_path):
    assert read(write(tmp_path), max_train_rows=1).splits["train"]["text"][:] == ["one film", "a film"]


def test_training_file_needs_one_of_the_columns_only(tmp_path):
    folder = write(tmp_path, [{"c": "the idea"}, {"c": "the plot"}])
    assert read(folder).splits["train"]["text"][:] == ["the idea"]


def test_numbers_of_named_classes_are_scores(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Value

    write(tmp_path)
    (tmp_path / "validation.jsonl").unlink()
    features = Features(a=Value("string"), b=Value("string"), score=ClassLabel(names=["other", "same"]))
    rows = [row | {"score": row["score"] // 2} for row in PAIRS]
    Dataset.from_list(rows, features=features).to_parquet(tmp_path / "validation.parquet")
    assert read(tmp_path).splits["validation"]["score"][:] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("scored", "metrics"),
    [("score", ("spearman",)), (None, ("recall_at_10", "ndcg_at_10"))],
    ids=["scores", "retrieval"],
)
def test_metrics_follow_from_what_pairs_have(tmp_path, scored, metrics):
    assert task_of(tmp_path, label_column=scored).metrics == metrics


def test_pairs_become_two_examples_each_that_stay_together(tmp_path):
    from cap.data.datamodule import CapDataModule
    from tests.models.tiny_models import tiny_tokenizer

    tokenizer = tiny_tokenizer(("a", "one", "the", "film", "song", "play", "plot", "cast"), model_max_length=16)
    module = CapDataModule(
        rows=read(write(tmp_path)),
        task=task_of(tmp_path),
        tokenizer=tokenizer,
        tokenizer_key="tiny",
        max_length=8,
        batch_size=2,
        seed=0,
        cache_dir=tmp_path / "cache",
    )
    module.setup()
    examples = module.eval_dataloaders()["validation"].dataset
    batch = examples.__getitems__([0, 1, 2, 3])
    texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert texts == ["the plot", "a plot", "one cast", "a cast"]
    assert examples.groups.tolist() == [0, 0, 1, 1]
    assert "labels" not in batch
    assert (module.n_train, module.train_groups, module.train_labels) == (6, None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_columns": None}, "reads texts from different columns"),
        ({"text_columns": ["a", "a"]}, "reads texts from different columns"),
        ({"text_columns": ["a", "score"]}, "none of which holds the pairs' scores"),
        ({"label_type": "number"}, "task.label_type belongs to task=custom"),
        ({"metrics": ["recall_at_10"]}, "spearman, pearson; got 'recall_at_10'"),
        ({"metrics": ["spearman"], "label_column": None}, r"recall_at_10, ndcg_at_10; got 'spearman'"),
        ({"text_columns": ["a"]}, "are pairs: two of .* got a of its columns"),
        ({"text_columns": ["a", "x"]}, "are pairs: two of .* got a of its columns"),
        ({"label_column": "x"}, "lacks x"),
        ({"label_column": None}, "needs more than 10 different ones, got 2"),
    ],
)
def test_keys_that_do_not_fit_are_refused_in_one_sentence(tmp_path, changes, message):
    from cap.base.errors import InputError

    with pytest.raises(InputError, match=message):
        read(write(tmp_path), **changes)


def test_a_folder_is_needed():
    from cap.base.errors import InputError

    with pytest.raises(InputError, match="needs data_dir=DIR"):
        task_of(None)


def test_empty_texts_are_left_out_of_training(tmp_path, caplog):
    rows = read(write(tmp_path, train=[{"a": "one more"}, {"a": ""}, {"a": " "}]))
    assert rows.splits["train"]["text"][:] == ["one more"]
    assert "has 2 rows with an empty a" in caplog.text


@pytest.mark.parametrize(
    ("train", "validation", "message"),
    [
        (ROWS, [{"a": "the plot", "score": 1}], "are pairs: two of .* got a of its columns a, score"),
        (ROWS, [row | {"c": "x"} for row in PAIRS], "are pairs: two of .* got a, b, c"),
        ([{"x": "one"}], PAIRS, "train.jsonl lacks a, b, c"),
        ([{"a": None}, {"a": "x"}], PAIRS, "column a must hold text in every row"),
        ([{"a": 3}], PAIRS, "column a of .*train.jsonl must hold text"),
        ([{"a": "the plot"}], PAIRS, "must not be those of the validation pairs, got 1 different texts"),
        (ROWS, [row | {"score": "alike"} for row in PAIRS], "must be finite numbers, got 'alike' in row 0"),
        (ROWS, [row | {"score": 1} for row in PAIRS], "two different ones at least, got only 1.0"),
        (ROWS, [], "every split needs rows|are pairs"),
    ],
    ids=["single", "three", "no column", "empty", "number", "all held out", "words", "constant", "no rows"],
)
def test_files_that_do_not_fit_are_refused_in_one_sentence(tmp_path, train, validation, message):
    from cap.base.errors import InputError

    with pytest.raises(InputError, match=message):
        read(write(tmp_path, train, validation))
