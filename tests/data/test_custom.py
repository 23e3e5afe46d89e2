from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from cap.base.errors import InputError
from cap.data.custom import custom_task
from cap.data.labels import read_labels
from cap.data.own_files import OwnFiles
from cap.data.sources import load_rows
from cap.data.tasks import Task

ANY_FORMAT = ["parquet", "jsonl", "csv", "tsv"]
KEYS: dict[str, Any] = {"text_columns": ["text"], "label_column": "label", "label_type": None, "metrics": None}


@pytest.fixture
def write(tmp_path: Path, write_split):
    """Write training and validation rows with these labels and made-up texts; return the folder."""

    def write_labels(train: list, validation: list | None = None, suffix: str = "parquet") -> Path:
        for split, labels in (("train", train), ("validation", train if validation is None else validation)):
            texts = [f"text {row}" for row in range(len(labels))]
            if suffix == "jsonl":
                # pandas would make floats of whole numbers beside a null, and one kind of everything.
                lines = [json.dumps({"text": t, "label": y}) for t, y in zip(texts, labels, strict=True)]
                (tmp_path / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
            else:
                write_split(tmp_path, split, {"text": texts, "label": labels}, suffix)
        return tmp_path

    return write_labels


def task_of(folder: Path | None, **keys: Any) -> Task:
    return custom_task(OwnFiles(data_dir=folder, **(KEYS | keys)))


def labels_of(task: Task, folder: Path, split: str = "train") -> list:
    rows = load_rows(task, data_dir=folder, max_train_rows=None, max_eval_rows=None)
    return rows.splits[split]["label"][:]


def write_class_labels(folder: Path, split: str, numbers: list[int], names: list[str]) -> None:
    from datasets import ClassLabel, Features, Value

    schema = Features(text=Value("string"), label=ClassLabel(names=names)).arrow_schema
    table = pa.table({"text": [f"text {row}" for row in range(len(numbers))], "label": numbers}, schema=schema)
    pa.parquet.write_table(table, folder / f"{split}.parquet")


@pytest.mark.parametrize("suffix", ANY_FORMAT)
@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["spam", "ham", "spam"], ("ham", "spam"), [1, 0, 1]),
        ([2, 0, 1, 0], ("0", "1", "2"), [2, 0, 1, 0]),
        ([5, 1, 4, 2, 3], ("1", "2", "3", "4", "5"), [4, 0, 3, 1, 2]),
        ([20, 10, 9], ("9", "10", "20"), [2, 1, 0]),
        ([1, -1, 0], ("-1", "0", "1"), [2, 0, 1]),
        (["a1", "1", "a1"], ("1", "a1"), [1, 0, 1]),
        (["NA", "null", "None"], ("NA", "None", "null"), [0, 2, 1]),
        (["007", "010", "007"], ("007", "010"), [0, 1, 0]),
    ],
    ids=["words", "from 0", "from 1", "sparse", "negative", "words and numbers", "words like nothing", "leading zeros"],
)
def test_labels_become_the_same_classes_in_every_format(
    write, suffix: str, labels: list, names: tuple, numbers: list
) -> None:
    folder = write(labels, suffix=suffix)
    task = task_of(folder)
    assert (task.kind, task.labels) == ("classes", names)
    assert labels_of(task, folder) == numbers


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_booleans_are_false_and_true(write, suffix: str) -> None:
    folder = write([True, False, True], suffix=suffix)
    task = task_of(folder)
    assert task.labels == ("false", "true")
    assert labels_of(task, folder) == [1, 0, 1]


@pytest.mark.parametrize("suffix", ANY_FORMAT)
@pytest.mark.parametrize(
    "labels", [[0.25, 4.0, 1.0], [1e-3, 2.0, 3e5], [-0.5, 0.5, 0.0]], ids=["decimals", "exponents", "signs"]
)
def test_other_numbers_are_values_in_every_format(write, suffix: str, labels: list[float]) -> None:
    folder = write(labels, suffix=suffix)
    task = task_of(folder)
    assert (task.kind, task.labels) == ("number", ())
    assert labels_of(task, folder) == pytest.approx(labels)


@pytest.mark.parametrize("text", [".5", "5.", "1e3", "+0.5", "-1E-2", " 2.5 "])
def test_a_text_that_is_no_whole_number_makes_a_column_of_numbers(write, text: str) -> None:
    assert task_of(write(["1", text, "2"])).kind == "number"


@pytest.mark.parametrize("text", ["1.5.2", "0x10", "1_000", "12-31", "e5", "nan", "½"])
def test_a_text_that_is_no_number_makes_a_column_of_words(write, text: str) -> None:
    assert task_of(write(["1", text, "2"])).kind == "classes"


@pytest.mark.parametrize("values", [[1, 2.5], [2.5, 1]], ids=["train whole", "validation whole"])
def test_one_file_of_other_numbers_makes_both_files_numbers(write, values: list) -> None:
    assert task_of(write([values[0], 0 * values[0]], [values[1], 0 * values[1]])).kind == "number"


def test_a_class_label_keeps_its_names_and_their_order(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_class_labels(tmp_path, split, [1, 0, 1], ["west", "east", "north"])
    task = task_of(tmp_path)
    assert task.labels == ("west", "east", "north")
    assert labels_of(task, tmp_path) == [1, 0, 1]


def test_numbers_as_names_of_a_class_label_are_not_taken_for_class_numbers(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_class_labels(tmp_path, split, [0, 1, 2], ["3", "1", "2"])
    task = task_of(tmp_path)
    assert task.labels == ("3", "1", "2")
    assert labels_of(task, tmp_path) == [0, 1, 2]


def test_class_labels_in_another_order_are_mapped_by_name(tmp_path: Path) -> None:
    write_class_labels(tmp_path, "train", [0, 1], ["west", "east"])
    write_class_labels(tmp_path, "validation", [0, 1], ["east", "west"])
    assert labels_of(task_of(tmp_path), tmp_path, "validation") == [1, 0]


def test_words_of_one_format_meet_class_labels_of_another(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,west\nb,east\n", encoding="utf-8")
    write_class_labels(tmp_path, "validation", [0, 1], ["west", "east"])
    task = task_of(tmp_path)
    assert task.labels == ("east", "west")
    assert labels_of(task, tmp_path, "validation") == [1, 0]


def test_categories_are_read_as_their_names(tmp_path: Path) -> None:
    import pandas as pd

    for split in ("train", "validation"):
        frame = pd.DataFrame({"text": ["a", "b", "c"], "label": pd.Categorical(["x", "y", "x"], ["z", "y", "x"])})
        frame.to_parquet(tmp_path / f"{split}.parquet")
    task = task_of(tmp_path)
    assert task.labels == ("x", "y")
    assert labels_of(task, tmp_path) == [0, 1, 0]


def test_blanks_around_a_word_do_not_count(write) -> None:
    folder = write(["spam", " ham"], ["spam ", "ham"], suffix="csv")
    task = task_of(folder)
    assert task.labels == ("ham", "spam")
    assert labels_of(task, folder, "validation") == [1, 0]


def test_whole_numbers_can_be_values(write) -> None:
    folder = write([3, 1, 2])
    task = task_of(folder, label_type="number")
    assert task.kind == "number"
    assert labels_of(task, folder) == [3.0, 1.0, 2.0]


def test_whole_numbers_stored_as_floats_can_be_classes(write) -> None:
    folder = write([3.0, 1.0, 3.0])
    task = task_of(folder, label_type="classes")
    assert task.labels == ("1", "3")
    assert labels_of(task, folder) == [1, 0, 1]


@pytest.mark.parametrize(
    ("train", "validation", "kind"),
    [
        ([0, 1, 0], [0.0, 1.0], "classes"),
        ([0.0, 1.0, 0.0], [0, 1], "classes"),
        ([0, 1, 2], [0.0, 1.5], "number"),
        ([0.5, 1.0, 2.0], [0, 1], "number"),
    ],
)
def test_class_numbers_of_which_one_file_has_made_floats_are_classes(write, train, validation, kind) -> None:
    folder = write(train, validation)
    task = task_of(folder)
    assert task.kind == kind
    if kind == "classes":
        assert (task.labels, labels_of(task, folder, "validation")) == (("0", "1"), [0, 1])


def test_whole_numbers_stored_as_floats_are_pointed_out(write, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="cap")
    assert task_of(write([3.0, 1.0, 3.0])).kind == "number"
    assert "set task.label_type=classes" in caplog.text


@pytest.mark.parametrize(
    ("labels", "label_type"),
    [([3.0, 1.0], "number"), ([3.0, 1.0, 2.5], None)],
    ids=["said to be numbers", "a half among them"],
)
def test_what_is_surely_a_number_is_not_pointed_out(
    write, caplog: pytest.LogCaptureFixture, labels: list, label_type: str | None
) -> None:
    caplog.set_level(logging.WARNING, logger="cap")
    task_of(write(labels), label_type=label_type)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("labels", "metrics"),
    [
        (["a", "b"], ("accuracy", "f1")),
        (["a", "b", "c"], ("accuracy", "macro_f1")),
        ([0.5, 1.5], ("pearson", "spearman")),
    ],
    ids=["two classes", "three classes", "numbers"],
)
def test_scores_follow_from_the_labels(write, labels: list, metrics: tuple) -> None:
    assert task_of(write(labels)).metrics == metrics


def test_scores_can_be_chosen_and_the_first_is_monitored(write) -> None:
    assert task_of(write(["a", "b"]), metrics=["matthews", "accuracy"]).monitored == "matthews"


@pytest.mark.parametrize(
    ("labels", "metrics", "complaint"),
    [
        (["a", "b"], ["acuracy"], r"task\.metrics .* must be among accuracy, .*got 'acuracy'"),
        (["a", "b"], ["pearson"], r"task\.metrics of a classification task"),
        ([0.5, 1.5], ["accuracy"], r"task\.metrics of a regression task"),
        (["a", "b", "c"], ["accuracy", "f1"], r"f1 where there are two classes, .* got 3 classes \(a, b, c\)"),
        (["a", "b"], [], r"task\.metrics .* one name at least"),
    ],
    ids=["unknown", "of numbers", "of classes", "f1 of three", "none"],
)
def test_scores_that_do_not_fit_are_refused(write, labels: list, metrics: list[str], complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        task_of(write(labels), metrics=metrics)


def test_the_task_asks_for_nothing_but_the_folder(write) -> None:
    task = task_of(write(["a", "b"]))
    assert (task.name, task.hub_path, task.hub_config) == ("custom", None, None)
    assert task.validation_splits == ("validation",)


def test_pairs_are_read_in_the_given_order(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("answer,question,fits\nyes,is it?,1\nno,who?,0\n", encoding="utf-8")
    task = task_of(tmp_path, text_columns=["question", "answer"], label_column="fits")
    rows = load_rows(task, data_dir=tmp_path, max_train_rows=None, max_eval_rows=None).splits["train"]
    assert rows.column_names[:2] == ["question", "answer"]
    assert rows[0] == {"question": "is it?", "answer": "yes", "label": 1, "example_id": 0}


def test_the_classes_do_not_follow_the_rows_that_are_used(write) -> None:
    folder = write(["a", "b", "c"])
    rows = load_rows(task_of(folder), data_dir=folder, max_train_rows=1, max_eval_rows=1)
    assert rows.splits["train"]["label"][:] == [0]


def test_says_what_it_read_off_the_files(write, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="cap")
    task_of(write(["spam", "ham"]))
    assert "column label holds 2 classes (ham, spam); scored by accuracy, f1 of spam" in caplog.text


@pytest.mark.parametrize(
    "labels",
    [[*range(10)], [*range(11)] * 2, [*range(100)] * 2, [f"intent {n}" for n in range(150)] * 2],
    ids=["few", "half of the rows", "a hundred", "many words"],
)
def test_labels_that_repeat_are_classes(write, labels: list) -> None:
    assert len(task_of(write(labels)).labels) == len(set(labels))


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([*range(101)] * 3, "101 different whole numbers in the 303 rows .* set task.label_type=number or"),
        ([*range(11)] + [0] * 10, "11 different whole numbers in the 21 rows"),
        (
            [f"a tale of {n}" for n in range(20)],
            r"20 different words in the 20 rows .* set task\.label_type=classes, or",
        ),
    ],
    ids=["many", "hardly a repeat", "texts"],
)
def test_labels_that_may_be_no_classes_need_a_word_of_the_user(write, labels: list, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        task_of(write(labels))


def test_many_whole_numbers_are_classes_if_the_user_says_so(write) -> None:
    assert len(task_of(write([*range(150)]), label_type="classes").labels) == 150


def test_numbers_with_a_decimal_comma_are_no_classes(write) -> None:
    labels = ["1,5", "2,0", "3", "-3,5"] * 5
    with pytest.raises(InputError, match=r"written with a point, got the label '1,5' in row 0 .*; write 1\.5 for 1,5"):
        task_of(write(labels, suffix="csv"))
    assert len(task_of(write(labels, suffix="csv"), label_type="classes").labels) == 4


def test_a_class_whose_name_is_none_is_warned_of(write, caplog) -> None:
    assert task_of(write(["ham", "spam", "NaN"] * 5, suffix="csv")).labels == ("NaN", "ham", "spam")
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("task=custom: 'NaN' is learned as a class, 5 rows of data_dir file train.csv; leave the")


@pytest.mark.parametrize("odd", ["n/a", "nan", "1,5"])
def test_a_few_words_among_numbers_look_like_damage(write, odd: str) -> None:
    labels = ["1", "2", "3"] * 10 + [odd]
    with pytest.raises(InputError, match=rf"got '{odd}' in row 30 .*train\.csv where 60 of 62 rows hold numbers"):
        task_of(write(labels, suffix="csv"))


def test_a_few_words_among_numbers_are_classes_if_the_user_says_so(write) -> None:
    labels = ["1", "2", "3"] * 10 + ["many"]
    assert task_of(write(labels, suffix="csv"), label_type="classes").labels == ("1", "2", "3", "many")


def test_a_few_words_among_numbers_are_named_if_the_user_says_numbers(write) -> None:
    with pytest.raises(InputError, match=r"finite numbers, got 'many' in row 2 .*train\.csv"):
        task_of(write(["1", "2", "many"], suffix="csv"), label_type="number")


@pytest.mark.parametrize(
    ("train", "validation", "complaint"),
    [
        (["a", "b"], ["a", "c"], r"those of .*train\.parquet \(a, b\), got 'c' in row 1 .*validation\.parquet"),
        ([1, 2], [2, 0], r"\(1, 2\), got 0 in row 1"),
        ([10, 20], [1, 10], r"\(10, 20\), got 1 in row 0"),
        (["a", "b"], ["0", "1"], r"\(a, b\), got '0' in row 0"),
        (["a", "b"], [0, 1], r"\(a, b\), got 0 in row 0"),
        ([False, True], [0, 1], r"\(false, true\), got 0 in row 0"),
        ([0, 1], [-1, -1], r"\(0, 1\), got -1 in row 0"),
    ],
    ids=["word", "number", "class number", "number for a word", "other kind", "number for a boolean", "hidden"],
)
def test_a_label_of_validation_alone_is_named_with_its_row(
    write, train: list, validation: list, complaint: str
) -> None:
    with pytest.raises(InputError, match=complaint):
        task_of(write(train, validation))


@pytest.mark.parametrize("value", [0, 1, 1.0, "0"], ids=repr)
def test_a_number_is_no_class_number_where_classes_are_called_by_numbers(write, value: object) -> None:
    task = task_of(write([10, 20]))
    with pytest.raises(InputError, match=r"must be 10, 20, got .* in row 0"):
        read_labels(task, pa.table({"label": [value]}), "a file")


@pytest.mark.parametrize("label", ["a", 7, True], ids=["word", "number", "boolean"])
def test_a_single_class_is_refused(write, label: object) -> None:
    with pytest.raises(InputError, match=r"two different labels at least, got only \w+ in .*train\.parquet"):
        task_of(write([label, label], [label, label]))


@pytest.mark.parametrize(("train", "validation"), [([0.5, 0.5], [0.5, 1.5]), ([0.5, 1.5], [0.5])], ids=["train", "val"])
def test_a_constant_number_is_refused(write, train: list, validation: list) -> None:
    with pytest.raises(InputError, match=r"need two different ones at least, got only 0\.5 in data_dir file"):
        task_of(write(train, validation))


@pytest.mark.parametrize(
    ("labels", "suffix", "place"),
    [
        (["a", None, "b"], "parquet", "None in row 1"),
        (["a", "", "b"], "csv", "'' in row 1"),
        (["a", "b", " "], "tsv", "' ' in row 2"),
        ([1, None, 2], "jsonl", "None in row 1"),
        ([0.5, float("nan"), 1.5], "parquet", "nan in row 1|None in row 1"),
        ([None, None], "jsonl", "None in row 0"),
    ],
    ids=["null", "empty", "blank", "null number", "nan", "nothing at all"],
)
def test_an_empty_label_is_named_with_its_row(write, labels: list, suffix: str, place: str) -> None:
    with pytest.raises(InputError, match=rf"label must hold a label in every row, got ({place}) "):
        task_of(write(labels, suffix=suffix))


@pytest.mark.parametrize(
    ("labels", "suffix"),
    [([0.5, float("inf"), 1.5], "parquet"), (["0.5", "1e400", "1"], "csv"), ([0.5, 1e39, 1.0], "jsonl")],
    ids=["infinity", "too large for a float", "too large for float32"],
)
def test_a_number_without_a_value_is_named_with_its_row(write, labels: list, suffix: str) -> None:
    with pytest.raises(InputError, match=r"finite numbers, got .* in row 1 \(counted from 0\)"):
        task_of(write(labels, suffix=suffix))


def test_words_said_to_be_numbers_are_named(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_class_labels(tmp_path, split, [1, 0], ["west", "east"])
    with pytest.raises(InputError, match=r"finite numbers, got '1 \(east\)' in row 0"):
        task_of(tmp_path, label_type="number")


def test_fractions_said_to_be_classes_are_named(write) -> None:
    with pytest.raises(InputError, match=r"needs words, whole numbers or booleans, got 0\.5 in row 1"):
        task_of(write([1.0, 0.5]), label_type="classes")


def test_numbers_and_words_in_one_json_column_are_refused(write) -> None:
    with pytest.raises(InputError, match="column label must hold one kind of value, got a number in row 0 and text"):
        task_of(write([1, "x"], suffix="jsonl"))


def test_an_object_is_no_label(write) -> None:
    with pytest.raises(InputError, match="must hold a class name or a number in every row, got struct"):
        task_of(write([{"a": 1}, {"a": 2}], suffix="jsonl"))


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"text_columns": ["text", "label", "third"]}, "one or two columns"),
        ({"text_columns": []}, "one or two columns"),
        ({"text_columns": None}, "one or two columns"),
        ({"text_columns": ["text", "label"]}, "must name different columns"),
        ({"text_columns": ["text", "text"]}, "must name different columns"),
        ({"text_columns": ["label"], "label_column": "text"}, "must not be called label or example_id, got label"),
        ({"text_columns": ["example_id"]}, "must not be called label or example_id"),
        ({"label_column": None}, r"task\.label_column names the column"),
        ({"label_type": "float"}, r"task\.label_type must be classes, number or null \(inferred\), got 'float'"),
        (
            {"label_column": "target"},
            r"reads the columns text, target; .* lacks target and has text, label; name yours",
        ),
        ({"text_columns": ["body"]}, "lacks body and has text, label"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_keys_that_do_not_fit_are_refused(write, keys: dict, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        task_of(write(["a", "b"]), **keys)


def test_a_text_column_of_numbers_is_refused(tmp_path: Path, write_split) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, {"text": [1, 2], "label": ["a", "b"]})
    with pytest.raises(InputError, match=r"column text of .* must hold text, got int64"):
        labels_of(task_of(tmp_path), tmp_path)


def test_no_folder_is_refused() -> None:
    with pytest.raises(InputError, match=r"needs data_dir=DIR with train\.\* and validation\.\*"):
        task_of(None)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data_dir must be a folder .*nowhere, which is not there"):
        task_of(tmp_path / "nowhere")


def test_a_file_without_rows_is_refused(write) -> None:
    folder = write(["a", "b"], suffix="csv")
    (folder / "validation.csv").write_text("text,label\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"needs rows, got none in data_dir file validation\.csv"):
        task_of(folder)
