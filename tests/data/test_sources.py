from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from cap.base.errors import InputError
from cap.data.labels import LabelColumn
from cap.data.sources import Rows, load_rows
from cap.data.tasks import Task, get_task

SUFFIXES = ["parquet", "jsonl", "json", "csv", "tsv"]
QQP = {"question1": ["a cat", "a dog", "a mat"], "question2": ["one", "two", "three"], "label": [0, 1, 1]}
NAMES = ["not_duplicate", "duplicate", "duplicate"]
VALUES = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0.25, 5.0]}


def load(folder: Path, task: str | Task = "qqp", train: int | None = None, evaluation: int | None = None) -> Rows:
    row = get_task(task) if isinstance(task, str) else task
    return load_rows(row, data_dir=folder, max_train_rows=train, max_eval_rows=evaluation)


@pytest.fixture
def folder(tmp_path: Path, write_split) -> Path:
    """Give a folder in which everything is right."""
    write_split(tmp_path / "my_pairs", "train", QQP)
    write_split(tmp_path / "my_pairs", "validation", QQP)
    return tmp_path / "my_pairs"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_rows(tmp_path: Path, folder: Path, write_split, suffix: str) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path / suffix, split, QQP | {"idx": [7, 8, 9]}, suffix)
    rows = load(tmp_path / suffix)
    assert rows.splits["train"][:] == QQP | {"example_id": [0, 1, 2]}
    assert rows.fingerprint == load(folder).fingerprint


def test_columns_have_exactly_their_types(folder: Path) -> None:
    features = load(folder).splits["validation"].features
    assert {name: feature.dtype for name, feature in features.items()} == {
        "question1": "string",
        "question2": "string",
        "label": "int64",
        "example_id": "int64",
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_values_of_a_regression_are_float32(tmp_path: Path, write_split, suffix: str) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, VALUES, suffix)
    train = load(tmp_path, "stsb").splits["train"]
    assert train.features["label"].dtype == "float32"
    assert train["label"][:] == [0.25, 5.0]


def test_the_source_names_the_folder_but_not_its_path(folder: Path) -> None:
    assert load(folder).source == "folder my_pairs"


def test_the_folder_is_left_as_it_was(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    load(folder)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_the_first_rows_are_taken(folder: Path) -> None:
    rows = load(folder, train=2, evaluation=1)
    assert rows.splits["train"]["question1"][:] == ["a cat", "a dog"]
    assert rows.splits["validation"]["example_id"][:] == [0]


def test_a_limit_above_the_rows_takes_all(folder: Path) -> None:
    assert load(folder, train=99).fingerprint == load(folder).fingerprint


def test_both_validation_splits_of_mnli_are_read_apart(tmp_path: Path, write_split) -> None:
    for split, word in {"train": "t", "validation_matched": "m", "validation_mismatched": "mm"}.items():
        write_split(tmp_path, split, {"premise": [word], "hypothesis": ["h"], "label": [2]})
    splits = load(tmp_path, "mnli").splits
    assert [splits[split]["premise"][0] for split in splits] == ["t", "m", "mm"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "text", ["NA", "null", "None", "nan", "2020-01-01", "12", "a, b", 'say "hi" now', '"hi"', "é\u2028"]
)
def test_texts_stay_what_they_are(tmp_path: Path, write_split, suffix: str, text: str) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, QQP | {"question1": [text, text, text]}, suffix)
    assert load(tmp_path).splits["train"]["question1"][:] == [text, text, text]


def test_a_lone_quotation_mark_in_a_tsv_swallows_nothing(tmp_path: Path) -> None:
    lines = ["question1\tquestion2\tlabel", '"so it begins\tb\t0', 'c "\t"d" he said\t1']
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    train = load(tmp_path).splits["train"]
    assert train["question1"][:] == ['"so it begins', 'c "']
    assert train["question2"][:] == ["b", '"d" he said']


def test_a_line_break_inside_a_quoted_csv_field_is_text(tmp_path: Path, write_split) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, QQP | {"question1": ["a\nb", "c", "d"]}, "csv")
    assert load(tmp_path).splits["train"]["question1"][0] == "a\nb"


def test_a_json_array_is_read_like_lines(tmp_path: Path) -> None:
    records = [dict(zip(QQP, row, strict=True)) for row in zip(*QQP.values(), strict=True)]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.json").write_text(json.dumps(records), encoding="utf-8")
    assert load(tmp_path).splits["train"]["question1"][:] == QQP["question1"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_labels_may_be_class_names(tmp_path: Path, folder: Path, write_split, suffix: str) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path / suffix, split, QQP | {"label": NAMES}, suffix)
    assert load(tmp_path / suffix).fingerprint == load(folder).fingerprint


@pytest.mark.parametrize("labels", [[0.0, 1.0, 1.0], [False, True, True]], ids=["floats", "booleans"])
def test_labels_may_be_other_numbers(tmp_path: Path, write_split, labels: list) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, QQP | {"label": labels})
    assert load(tmp_path).splits["train"]["label"][:] == [0, 1, 1]


@pytest.mark.parametrize(
    ("names", "expected"),
    [(["not_duplicate", "duplicate"], [0, 1, 1]), (["duplicate", "not_duplicate"], [1, 0, 0])],
    ids=["same order", "other order"],
)
def test_class_labels_are_mapped_by_name(tmp_path: Path, names: list[str], expected: list[int]) -> None:
    from datasets import ClassLabel, Features, Value

    features = Features(question1=Value("string"), question2=Value("string"), label=ClassLabel(names=names))
    for split in ("train", "validation"):
        table = pa.table(QQP, schema=features.arrow_schema)
        pyarrow.parquet.write_table(table, tmp_path / f"{split}.parquet")
    assert load(tmp_path).splits["train"]["label"][:] == expected


@pytest.mark.parametrize(
    "change",
    [{"question1": ["a cat", "a dog", "a hat"]}, {"label": [0, 1, 0]}, {"question2": ["on", "etwo", "three"]}],
    ids=["text", "label", "border between rows"],
)
def test_the_fingerprint_follows_the_content(tmp_path: Path, folder: Path, write_split, change: dict) -> None:
    write_split(tmp_path / "other", "train", QQP | change)
    write_split(tmp_path / "other", "validation", QQP)
    assert load(tmp_path / "other").fingerprint != load(folder).fingerprint


def test_the_fingerprint_does_not_follow_rows_that_are_not_used(tmp_path: Path, folder: Path, write_split) -> None:
    write_split(tmp_path / "other", "train", QQP | {"label": [0, 1, 0]})
    write_split(tmp_path / "other", "validation", QQP)
    assert load(tmp_path / "other", train=2).fingerprint == load(folder, train=2).fingerprint


def test_the_fingerprint_does_not_follow_the_chunks_of_a_file(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "chunked").mkdir()
    for split in ("train", "validation"):
        pyarrow.parquet.write_table(pa.table(QQP), tmp_path / "chunked" / f"{split}.parquet", row_group_size=1)
    assert load(tmp_path / "chunked").fingerprint == load(folder).fingerprint


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"data_dir must be a folder with a file for the split train, got .*nowhere.*not there"
    ):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_missing_split_is_named_with_what_there_is(folder: Path, split: str) -> None:
    (folder / f"{split}.parquet").rename(folder / "test.parquet")
    with pytest.raises(InputError, match=rf"needs a file for the split {split} .*test\.parquet"):
        load(folder)


def test_two_files_for_one_split_are_refused(folder: Path) -> None:
    (folder / "train.csv").write_text("question1,question2,label\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"one file for the split train, got train\.parquet, train\.csv"):
        load(folder)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_column_is_named_with_what_there_is(tmp_path: Path, folder: Path, write_split, suffix: str) -> None:
    (folder / "train.parquet").unlink()
    write_split(folder, "train", {"question1": ["a"], "query": ["b"], "label": [0]}, suffix)
    with pytest.raises(InputError, match="lacks question2 and has question1, query, label"):
        load(folder)


@pytest.mark.parametrize("content", ["", "question1,question2,label\n"], ids=["no byte", "only a header"])
def test_an_empty_file_is_refused(folder: Path, content: str) -> None:
    (folder / "train.parquet").unlink()
    (folder / "train.csv").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"train\.csv.*empty"):
        load(folder)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_file_that_is_not_what_its_suffix_says_is_refused(folder: Path, suffix: str) -> None:
    (folder / "train.parquet").unlink()
    (folder / f"train.{suffix}").write_text("hello\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"train\.{suffix} must be a readable {suffix} file"):
        load(folder)


def test_a_tsv_row_with_too_few_columns_is_refused(folder: Path) -> None:
    (folder / "train.parquet").unlink()
    (folder / "train.tsv").write_text("question1\tquestion2\tlabel\na\tb\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"train\.tsv must .* tsv file, got: row 0 .* has 2 columns in place of 3"):
        load(folder)


@pytest.mark.parametrize(
    ("label", "complaint"),
    [
        ([0, 1, 2], r"0 \(not_duplicate\), 1 \(duplicate\), got 2 in row 2"),
        ([0, -1, 1], "got -1 in row 1 .*hidden labels"),
        ([0.0, 0.5, 1.0], r"got 0\.5 in row 1"),
        ([0, None, 1], "got None in row 1"),
        (["duplicate", "dup", "duplicate"], "got 'dup' in row 1"),
    ],
    ids=["outside", "hidden", "fraction", "null", "unknown name"],
)
def test_a_label_outside_the_table_is_named_with_its_row(
    folder: Path, write_split, label: list, complaint: str
) -> None:
    write_split(folder, "validation", QQP | {"label": label})
    with pytest.raises(InputError, match=complaint):
        load(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None], ids=["nan", "inf", "null"])
def test_a_value_that_is_no_number_is_named_with_its_row(tmp_path: Path, write_split, value: float | None) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, split, VALUES | {"label": [1.0, value]})
    with pytest.raises(InputError, match=r"finite numbers, got .* in row 1"):
        load(tmp_path, "stsb")


@pytest.mark.parametrize(("text", "found"), [(None, "null"), ("", "''"), (" \t", "' ")], ids=["null", "empty", "blank"])
def test_an_empty_text_is_named_with_its_row(tmp_path: Path, write_split, text: str | None, found: str) -> None:
    write_split(tmp_path, "train", {"sentence": ["one", "two", text], "label": [0, 1, 1]})
    write_split(tmp_path, "validation", {"sentence": ["a play"], "label": [1]})
    with pytest.raises(InputError, match=f"sentence must hold text .*{found}.* in row 2"):
        load(tmp_path, "sst2")


def test_an_empty_half_of_a_published_pair_is_kept_and_said(folder: Path, write_split, caplog) -> None:
    write_split(folder, "train", QQP | {"question2": ["one", "two", ""]})  # as two rows of QQP are, also in a folder
    assert load(folder).splits["train"]["question2"][2] == ""
    assert "has 1 rows with an empty question2" in caplog.text
    write_split(folder, "train", QQP | {"question2": ["one", "two", None]})
    with pytest.raises(InputError, match=r"question2 must hold text .*nothing \(null\) in row 2"):
        load(folder)


@pytest.mark.parametrize(
    "kind", [pa.dictionary(pa.int32(), pa.string()), pa.string_view()], ids=["a category of pandas", "views"]
)
def test_texts_may_have_any_type_of_text(folder: Path, kind: pa.DataType) -> None:
    texts = {"question1": ["a", "b", "a"], "question2": ["one", "two", "three"]}
    columns = {name: pa.array(values).cast(kind) for name, values in texts.items()}
    pyarrow.parquet.write_table(pa.table({**QQP, **columns}), folder / "train.parquet")
    assert load(folder).splits["train"]["question1"][:] == texts["question1"]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_text_may_be_longer_than_the_blocks_a_file_is_read_in(folder: Path, write_split, suffix: str) -> None:
    long = "word " * 500_000
    for split in ("train", "validation"):
        (folder / f"{split}.parquet").unlink()
        write_split(folder, split, QQP | {"question2": ["one", long, "three"]}, suffix)
    assert load(folder).splits["train"]["question2"][1] == long


def test_a_text_column_of_numbers_is_refused(folder: Path, write_split) -> None:
    write_split(folder, "train", QQP | {"question2": [1, 2, 3]})
    with pytest.raises(InputError, match=r"question2 of .* must hold text, got int64"):
        load(folder)


@pytest.mark.parametrize("limit", [0, -5])
@pytest.mark.parametrize("which", ["train", "evaluation"])
def test_a_limit_below_one_is_refused(folder: Path, which: str, limit: int) -> None:
    with pytest.raises(InputError, match=rf"rows takes the first rows and must be at least 1, got {limit}"):
        load(folder, **{which: limit})


def test_a_task_without_a_hub_needs_a_folder() -> None:
    custom = replace(get_task("sst2"), name="custom", hub_path=None, hub_config=None)
    with pytest.raises(InputError, match=r"task=custom .* needs data_dir=DIR with train\.\*, validation\.\*"):
        load_rows(custom, data_dir=None, max_train_rows=None, max_eval_rows=None)


@pytest.fixture
def hub_with(monkeypatch: pytest.MonkeyPatch):
    """Put a table with a given last text in the place of the Hub's."""

    def put(text: str | None) -> None:
        table = pa.table({**QQP, "question2": pa.array(["one", "two", text])})
        monkeypatch.setattr("cap.data.sources.read_hub", lambda task: ({"train": table, "validation": table}, "hub x"))

    return put


def test_an_empty_text_of_the_hub_is_kept_and_said(hub_with, caplog: pytest.LogCaptureFixture) -> None:
    hub_with("")
    rows = load_rows(get_task("qqp"), data_dir=None, max_train_rows=None, max_eval_rows=None)
    assert rows.splits["train"]["question2"][2] == ""
    assert "1 rows with an empty question2" in caplog.text


def test_a_null_text_of_the_hub_is_refused(hub_with) -> None:
    hub_with(None)
    with pytest.raises(InputError, match="null"):
        load_rows(get_task("qqp"), data_dir=None, max_train_rows=None, max_eval_rows=None)


def test_rows_without_a_text_or_a_label_are_named_together(tmp_path: Path, write_split) -> None:
    texts = ["a film", "", "a book", " ", *[""] * 5]
    write_split(tmp_path, "train", {"sentence": texts, "label": [0] * 9})
    write_split(tmp_path, "validation", {"sentence": ["a play"], "label": [1]})
    with pytest.raises(InputError, match=r"the empty text '' in row 1 and 6 more \(3, 4, 5, 6, 7, \.\.\.\) \(counted"):
        load(tmp_path, task="sst2")
    with pytest.raises(InputError, match=r"got None in row 1 and 1 more \(2\) \(counted from 0\)"):
        LabelColumn(pa.table({"label": ["no", None, None]}), "label", "a file")
