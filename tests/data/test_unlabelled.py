"""Rows without a label: where they come from, what is left out of them, and how they are served."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from cap.base.errors import InputError
from cap.data.custom import custom_task
from cap.data.datamodule import NO_LABEL, CapDataModule
from cap.data.own_files import OwnFiles
from cap.data.sources import Rows, load_rows
from cap.data.tasks import Task, get_task
from cap.data.unlabelled import with_unlabelled

SUFFIXES = ["parquet", "jsonl", "json", "csv", "tsv"]
QQP = {"question1": ["cat", "dog", "mat"], "question2": ["one", "two", "one"], "label": [0, 1, 1]}
# The first row is a training row; the second shares one of its texts only.
MORE = {"question1": ["cat", "cat", "house"], "question2": ["one", "two", "three"], "label": [1, 7, None]}
NEW = {"question1": ["cat", "house"], "question2": ["two", "three"]}
VALIDATED = QQP | {"question1": ["red", "blue", "green"]}


@pytest.fixture
def folder(tmp_path: Path, write_split) -> Path:
    """Give three training and three other validation rows."""
    write_split(tmp_path / "pairs", "train", QQP)
    write_split(tmp_path / "pairs", "validation", VALIDATED)
    return tmp_path / "pairs"


def load(
    folder: Path,
    file: Path | None = None,
    task: str | Task = "qqp",
    *,
    train: int | None = None,
    most: int | None = None,
    keep: bool = False,
) -> Rows:
    row = get_task(task) if isinstance(task, str) else task
    rows = load_rows(row, data_dir=folder, max_train_rows=train, max_eval_rows=None, keep_unlabelled=keep)
    return with_unlabelled(rows, row, file=file, max_rows=most, keep_unlabelled=keep)


# --- a file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_of_any_format_gives_its_texts_and_no_labels(tmp_path, folder, write_split, suffix: str) -> None:
    rows = load(folder, write_split(tmp_path, "more", MORE, suffix))
    assert rows.unlabelled.rows[:] == NEW
    assert rows.unlabelled.source == f"file more.{suffix}"


def test_a_file_needs_no_label_column(tmp_path, folder, write_split) -> None:
    assert load(folder, write_split(tmp_path, "more", NEW)).unlabelled.rows[:] == NEW


def test_texts_that_training_has_are_left_out_and_counted(tmp_path, folder, write_split, caplog) -> None:
    caplog.set_level(logging.INFO, logger="cap")
    assert load(folder, write_split(tmp_path, "more", MORE)).unlabelled.n_repeated == 1
    assert "from file more.parquet: 2; left out are 1 whose texts training has already, and 0 " in caplog.text


def test_training_rows_that_are_not_used_are_no_training_rows(folder) -> None:
    rows = load(folder, folder / "train.parquet", train=1)
    assert rows.unlabelled.rows["question1"][:] == ["dog", "mat"]
    assert rows.splits["train"]["question1"][:] == ["cat"]


def test_the_first_rows_that_are_left_are_taken(tmp_path, folder, write_split) -> None:
    rows = load(folder, write_split(tmp_path, "more", MORE), most=1)
    assert rows.unlabelled.rows["question2"][:] == ["two"]


def test_nothing_left_is_said_and_is_as_if_there_were_none(folder, caplog) -> None:
    assert load(folder, folder / "train.parquet").unlabelled is None
    assert "no row without a label is left" in caplog.text


def test_texts_of_validation_rows_are_left_out_and_counted(tmp_path, folder, write_split, caplog) -> None:
    caplog.set_level(logging.INFO, logger="cap")
    assert load(folder, folder / "validation.parquet").unlabelled is None
    assert "left out are 0 whose texts training has already, and 3 whose texts are those of validation" in caplog.text
    more = {name: [*MORE[name], *VALIDATED[name]] for name in ("question1", "question2")}
    unlabelled = load(folder, write_split(tmp_path, "more", more)).unlabelled
    assert (unlabelled.n_repeated, unlabelled.n_validated, unlabelled.rows.num_rows) == (1, 3, 2)
    # A text of both counts once.
    write_split(folder, "validation", VALIDATED | {"question1": ["cat", "blue", "green"]})
    unlabelled = load(folder, write_split(tmp_path, "more", MORE)).unlabelled
    assert (unlabelled.n_repeated, unlabelled.n_validated, unlabelled.rows.num_rows) == (1, 0, 2)


def test_the_rows_of_the_task_are_what_they_were(tmp_path, folder, write_split) -> None:
    rows = load(folder, write_split(tmp_path, "more", MORE))
    assert rows.fingerprints == load(folder).fingerprints
    assert rows.splits["train"][:] == QQP | {"example_id": [0, 1, 2]}


def test_the_record_follows_the_content_of_the_file(tmp_path, folder, write_split) -> None:
    first = load(folder, write_split(tmp_path / "a", "more", MORE)).unlabelled.describe()
    same = load(folder, write_split(tmp_path / "b", "more", MORE, "csv")).unlabelled.describe()
    other = load(folder, write_split(tmp_path / "c", "more", MORE | {"question1": ["cat", "a", "b"]})).unlabelled
    assert first["fingerprint"] == same["fingerprint"] != other.fingerprint
    assert first["n_repeated"] == 1


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        ({"question1": ["cat"], "text": ["two"]}, r"data\.unlabelled file more\.parquet lacks question2"),
        (
            {"question1": ["cat", "dog"], "question2": ["two", None]},
            r"question2 must hold text in every row, got nothing",
        ),
        ({"question1": ["cat"], "question2": [1]}, r"question2 of data\.unlabelled file more\.parquet must hold text"),
        ({"question1": [], "question2": []}, r"got none in data\.unlabelled file more\.parquet"),
    ],
    ids=["no column", "no text", "numbers", "no rows"],
)
def test_a_file_that_does_not_fit_is_refused(tmp_path, folder, write_split, columns: dict, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        load(folder, write_split(tmp_path, "more", columns))


@pytest.mark.parametrize(
    ("name", "found"), [("nowhere.parquet", "not there"), ("a.txt", "another kind"), ("b.csv", "not a file")]
)
def test_what_is_no_file_of_a_known_kind_is_refused(tmp_path, folder, name: str, found: str) -> None:
    (tmp_path / "a.txt").write_text("cat\n", encoding="utf-8")
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(InputError, match=rf"data\.unlabelled must be a file .*{name}, which is {found}"):
        load(folder, tmp_path / name)


# --- training rows without a label -------------------------------------------------------------------------------

EMPTY = {
    "sst2": (["a", "b", "c", "d"], [1, None, -1, 0], [1, 0]),
    "stsb": (["a", "b", "c", "d"], [2.5, None, -1.0, 0.0], [2.5, 0.0]),
}


def write_training_rows(write_split, folder: Path, task: str, suffix: str) -> Path:
    texts, labels, _ = EMPTY[task]
    columns = {name: texts for name in get_task(task).text_columns}
    write_split(folder, "train", columns | {"label": labels}, suffix)
    write_split(folder, "validation", {name: ["x", "y"] for name in columns} | {"label": [0, 1]}, suffix)
    return folder


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("task", EMPTY)
def test_empty_and_hidden_labels_are_kept_apart_if_asked(tmp_path, write_split, task: str, suffix: str) -> None:
    rows = load(write_training_rows(write_split, tmp_path, task, suffix), task=task, keep=True)
    column = get_task(task).text_columns[0]
    assert rows.splits["train"]["label"][:] == EMPTY[task][2]
    assert rows.splits["train"]["example_id"][:] == [0, 1]
    assert rows.splits["train"][column][:] == ["a", "d"]
    assert rows.unlabelled.rows[column][:] == ["b", "c"]
    assert rows.unlabelled.source == "the training rows"


@pytest.mark.parametrize("label", [None, -1], ids=["empty", "hidden"])
def test_an_empty_label_is_refused_if_not_asked_and_the_key_is_named(tmp_path, write_split, label) -> None:
    write_split(tmp_path, "train", {"sentence": ["a", "b"], "label": [1, label]}, "jsonl")
    write_split(tmp_path, "validation", {"sentence": ["a"], "label": [1]}, "jsonl")
    with pytest.raises(InputError, match=r"in row 1 .* set data\.keep_unlabelled=true"):
        load(tmp_path, task="sst2")


def test_an_empty_label_of_validation_is_refused_all_the_same(tmp_path, write_split) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, {"sentence": ["a", "b"], "label": [1, -1]})
    with pytest.raises(InputError, match=r"got -1 in row 1 .* of data_dir file validation\.parquet"):
        load(tmp_path, task="sst2", keep=True)


def test_a_wrong_label_is_named_with_its_row_among_all(tmp_path, write_split) -> None:
    write_split(tmp_path, "train", {"sentence": ["a", "b", "c"], "label": [-1, 1, 9]})
    write_split(tmp_path, "validation", {"sentence": ["a"], "label": [1]})
    with pytest.raises(InputError, match=r"got 9 in row 2 "):
        load(tmp_path, task="sst2", keep=True)


def test_the_limit_counts_rows_with_a_label(tmp_path, write_split) -> None:
    write_split(tmp_path, "train", {"sentence": ["a", "b", "c", "d"], "label": [-1, 1, 0, 1]})
    write_split(tmp_path, "validation", {"sentence": ["x"], "label": [1]})
    rows = load(tmp_path, task="sst2", keep=True, train=2)
    assert rows.splits["train"]["sentence"][:] == ["b", "c"]
    assert rows.unlabelled.rows["sentence"][:] == ["a"]


def test_labelled_rows_have_the_fingerprint_of_a_file_without_the_others(tmp_path, write_split) -> None:
    write_split(tmp_path / "mixed", "train", {"sentence": ["a", "b", "c"], "label": [1, -1, 0]})
    write_split(tmp_path / "alone", "train", {"sentence": ["a", "c"], "label": [1, 0]})
    for name in ("mixed", "alone"):
        write_split(tmp_path / name, "validation", {"sentence": ["x"], "label": [1]})
    mixed, alone = (load(tmp_path / name, task="sst2", keep=True) for name in ("mixed", "alone"))
    assert mixed.fingerprint == alone.fingerprint


def test_a_file_that_holds_the_training_rows_adds_none_of_their_empty_ones_again(tmp_path, write_split) -> None:
    file = write_split(tmp_path, "train", {"sentence": ["a", "b", "c"], "label": [1, -1, 0]})
    write_split(tmp_path, "validation", {"sentence": ["x"], "label": [1]})
    rows = load(tmp_path, file, task="sst2", keep=True)
    assert rows.unlabelled.rows["sentence"][:] == ["b"]
    assert rows.unlabelled.n_repeated == 3


def test_training_rows_without_any_label_are_refused(tmp_path, write_split) -> None:
    write_split(tmp_path, "train", {"sentence": ["a", "b"], "label": [-1, -1]})
    write_split(tmp_path, "validation", {"sentence": ["x"], "label": [1]})
    with pytest.raises(InputError, match="training needs rows with a label, got 2 without one"):
        load(tmp_path, task="sst2", keep=True)


# --- a user's own task -------------------------------------------------------------------------------------------


def custom(write_split, folder: Path, train: list, validation: list, suffix: str = "parquet", **keys) -> Task:
    for split, labels in (("train", train), ("validation", validation)):
        write_split(folder, split, {"text": [f"{split} {i}" for i in range(len(labels))], "label": labels}, suffix)
    given = {"text_columns": ["text"], "label_column": "label", "label_type": None, "metrics": None}
    return custom_task(OwnFiles(data_dir=folder, keep_unlabelled=True, **(given | keys)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_classes_of_your_own_are_read_off_the_labels_that_are_there(tmp_path, write_split, suffix: str) -> None:
    task = custom(write_split, tmp_path, ["spam", None, "ham"], ["ham", "spam"], suffix)
    assert task.labels == ("ham", "spam")
    rows = load(tmp_path, task=task, keep=True)
    assert rows.splits["train"]["label"][:] == [1, 0]
    assert rows.unlabelled.rows["text"][:] == ["train 1"]


def test_a_gap_makes_no_numbers_of_whole_numbers(tmp_path, write_split) -> None:
    task = custom(write_split, tmp_path, [10, None, 20], [20, 10])  # pandas stores the first as floats
    assert (task.kind, task.labels) == ("classes", ("10", "20"))
    assert load(tmp_path, task=task, keep=True).splits["train"]["label"][:] == [0, 1]


def test_minus_one_is_a_value_of_your_own_numbers(tmp_path, write_split) -> None:
    task = custom(write_split, tmp_path, [-1.0, None, 0.5], [0.25, 1.0])
    rows = load(tmp_path, task=task, keep=True)
    assert rows.splits["train"]["label"][:] == [-1.0, 0.5]
    assert rows.unlabelled.rows["text"][:] == ["train 1"]


def test_a_class_called_minus_one_is_one_if_validation_has_it(tmp_path, write_split) -> None:
    task = custom(write_split, tmp_path, [-1, 0, 1], [-1, 1, 0])
    assert load(tmp_path, task=task, keep=True).splits["train"]["label"][:] == [0, 1, 2]


def test_minus_one_in_training_rows_alone_is_refused(tmp_path, write_split) -> None:
    task = custom(write_split, tmp_path, [-1, 0, 1], [1, 0])
    with pytest.raises(InputError, match=r"hold the label -1, which no validation row has"):
        load(tmp_path, task=task, keep=True)


def test_minus_one_hides_a_label_that_has_names(tmp_path) -> None:
    features = Features({"text": Value("string"), "label": ClassLabel(names=["ham", "spam"])})
    for split, labels in (("train", [1, -1, 0]), ("validation", [0, 1])):
        rows = Dataset.from_dict({"text": [f"{split} {i}" for i in range(len(labels))], "label": labels})
        table = rows.data.table.replace_schema_metadata(features.arrow_schema.metadata)
        pa.parquet.write_table(table, tmp_path / f"{split}.parquet")
    given = {"text_columns": ["text"], "label_column": "label", "label_type": None, "metrics": None}
    task = custom_task(OwnFiles(data_dir=tmp_path, keep_unlabelled=True, **given))
    rows = load(tmp_path, task=task, keep=True)
    assert rows.splits["train"]["label"][:] == [1, 0]
    assert rows.unlabelled.rows["text"][:] == ["train 1"]


def test_a_column_without_any_label_is_refused(tmp_path, write_split) -> None:
    with pytest.raises(InputError, match="must hold a label in some row"):
        custom(write_split, tmp_path, [None, None], ["a", "b"])


# --- batches -----------------------------------------------------------------------------------------------------

N_LABELLED, N_MORE = 43, 30


@pytest.fixture
def make_data(tmp_path: Path, pair_columns, write_split, tokenizer):
    """Make a data module with or without the rows that have no label."""
    columns = pair_columns(N_LABELLED + N_MORE)
    write_split(tmp_path / "data", "train", {name: values[:N_LABELLED] for name, values in columns.items()})
    write_split(tmp_path / "data", "validation", pair_columns(10))
    more = {name: [f"{text} red" for text in columns[name][N_LABELLED:]] for name in ("question1", "question2")}
    file = write_split(tmp_path, "more", more)

    def make(*, with_more: bool = True, **options) -> CapDataModule:
        settings = {"tokenizer_key": "k", "max_length": 64, "batch_size": 4, "seed": 3, "cache_dir": tmp_path / "cache"}
        rows = load(tmp_path / "data", file if with_more else None)
        return CapDataModule(rows=rows, task=get_task("qqp"), tokenizer=tokenizer, **(settings | options))

    return make


def test_rows_without_a_label_follow_the_others(make_data) -> None:
    data = make_data()
    assert (data.n_labelled, data.n_train) == (N_LABELLED, N_LABELLED + N_MORE)
    assert torch.equal(data.train_labels[:N_LABELLED], make_data(with_more=False).train_labels)
    assert data.train_labels[N_LABELLED:].unique().tolist() == [NO_LABEL]


def test_batches_cover_all_rows_and_say_which_have_a_label(make_data) -> None:
    batches = list(make_data().train_dataloader())
    example_id = torch.cat([batch["example_id"] for batch in batches])
    is_labelled = torch.cat([batch["is_labelled"] for batch in batches])
    assert sorted(example_id.tolist()) == list(range(N_LABELLED + N_MORE))
    assert torch.equal(is_labelled, example_id < N_LABELLED)


def test_encoding_covers_all_rows(make_data) -> None:
    example_id = torch.cat([batch["example_id"] for batch in make_data().encoding_dataloader()])
    assert sorted(example_id.tolist()) == list(range(N_LABELLED + N_MORE))


@pytest.mark.parametrize("of", ["train_dataloader", "labelled_dataloader"])
def test_labelled_rows_come_in_the_very_batches_that_they_have_alone(make_data, of: str) -> None:
    part = make_data().labelled() if of == "train_dataloader" else make_data()
    batches, expected = list(getattr(part, of)()), list(make_data(with_more=False).train_dataloader())
    assert len(batches) == len(expected)
    assert all(batch.keys() == other.keys() for batch, other in zip(batches, expected, strict=True))
    assert all(
        torch.equal(batch[name], other[name]) for batch, other in zip(batches, expected, strict=True) for name in batch
    )


def test_only_what_depends_on_all_rows_has_another_key(make_data) -> None:
    data, alone = make_data(), make_data(with_more=False)
    assert data.labelled_key == data.labelled().key == alone.labelled_key == alone.key != data.key


def test_who_learned_nothing_does_not_count_rows_without_a_label(make_data) -> None:
    assert make_data().majority() == make_data(with_more=False).majority()


def test_values_without_a_label_are_marked_too(tmp_path, write_split, tokenizer) -> None:
    columns = {"sentence1": ["cat", "dog"], "sentence2": ["one", "two"]}
    for split in ("train", "validation"):
        write_split(tmp_path / "data", split, columns | {"label": [0.5, 2.0]})
    file = write_split(tmp_path, "more", {"sentence1": ["mat"], "sentence2": ["three"]})
    settings = {"tokenizer_key": "k", "max_length": 8, "batch_size": 4, "seed": 3, "cache_dir": tmp_path / "cache"}
    rows = load(tmp_path / "data", file, "stsb")
    data = CapDataModule(rows=rows, task=get_task("stsb"), tokenizer=tokenizer, **settings)
    assert data.train_labels.tolist() == [0.5, 2.0, NO_LABEL]
    assert data.train_labels.dtype == torch.float32
