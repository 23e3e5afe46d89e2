from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from cap.base.errors import InputError
from cap.data.files import read_columns, split_file

TEXT_AND_LABEL = ("text", "label")


def read(folder: Path, name: str, content: str | bytes, wanted: tuple[str, ...] = TEXT_AND_LABEL) -> pa.Table:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_columns(file, wanted)


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.jsonl", "train.json"])
def test_the_byte_order_mark_of_utf_8_is_no_text(tmp_path: Path, name: str) -> None:
    contents = {
        "train.csv": 'text,label\n"é, b",spam\n',
        "train.tsv": "text\tlabel\né, b\tspam\n",
        "train.jsonl": '{"text": "é, b", "label": "spam"}\n',
        "train.json": '[{"text": "é, b", "label": "spam"}]',
    }
    table = read(tmp_path, name, contents[name].encode("utf-8-sig"))
    assert table.to_pydict() == {"text": ["é, b"], "label": ["spam"]}


@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["unix", "windows"])
@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("train.csv", ["text,label", "a cat,x", "a dog,y", ""]),
        ("train.tsv", ["text\tlabel", "a cat\tx", "a dog\ty", ""]),
        ("train.jsonl", ['{"text": "a cat", "label": "x"}', '{"text": "a dog", "label": "y"}', ""]),
    ],
    ids=["csv", "tsv", "jsonl"],
)
def test_both_ends_of_lines_are_read_alike(tmp_path: Path, name: str, lines: list[str], end: str) -> None:
    table = read(tmp_path, name, end.join(lines))
    assert table.to_pydict() == {"text": ["a cat", "a dog"], "label": ["x", "y"]}


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.csv", "text,label\na cat,x\ncafé,y\n"),
        ("train.tsv", "text\tlabel\na cat\tx\ncafé\ty\n"),
        ("train.jsonl", '{"text": "a cat", "label": "x"}\n\n{"text": "café", "label": "y"}\n'),
    ],
    ids=["csv", "tsv", "jsonl"],
)
def test_an_old_encoding_is_named_with_file_and_line(tmp_path: Path, name: str, content: str, encoding: str) -> None:
    with pytest.raises(InputError, match=rf"{name} .*must be in UTF-8 and line 3 is not; save it as UTF-8"):
        read(tmp_path, name, content.encode(encoding))


def test_an_old_encoding_of_the_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be in UTF-8 and line 1 is not"):
        read(tmp_path, "train.csv", "café,label\na,x\n".encode("latin-1"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_utf_16_is_refused(tmp_path: Path, name: str, encoding: str) -> None:
    with pytest.raises(InputError, match="must be in UTF-8 and line 1 is not"):
        read(tmp_path, name, 'text,label\n"a cat",x\n'.encode(encoding))


@pytest.mark.parametrize(
    ("name", "content", "n_found"),
    [
        ("train.csv", "text,label\na,x\n\nwell, yes,y\n", 3),
        ("train.csv", "text,label\na,x\nb\n", 1),
        ("train.csv", 'text,label\n"a\nb",x\n"c,y\n', 1),
        ("train.tsv", "text\tlabel\na\tx\nb\ty\tz\n", 3),
    ],
    ids=["comma in a text", "too few", "open quotation", "tsv"],
)
def test_a_ragged_row_is_named_with_its_number(tmp_path: Path, name: str, content: str, n_found: int) -> None:
    with pytest.raises(InputError, match=rf"{name} .*row 1 \(counted from 0 .* has {n_found} columns in place of 2"):
        read(tmp_path, name, content)


def test_a_line_break_in_a_tsv_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"has 1 columns in place of 2: '\"a'; a tsv holds no line breaks within a text"
    ):
        read(tmp_path, "train.tsv", 'text\tlabel\n"a\nb"\tx\n')


def test_a_ragged_row_far_down_keeps_its_number(tmp_path: Path) -> None:
    rows = ["a quiet sentence of some length,x\n"] * 100_000
    with pytest.raises(InputError, match=r"row 100000 \(counted from 0"):
        read(tmp_path, "train.csv", "".join(["text,label\n", *rows, "well, yes,y\n"]))


def test_an_escaped_quotation_mark_is_one(tmp_path: Path) -> None:
    assert read(tmp_path, "train.csv", 'text,label\n"say ""hi"", now",x\n')["text"].to_pylist() == ['say "hi", now']


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("train.csv", "text;label\na, b;x\n", "single column 'text;label': csv .* by a comma, .* by a semicolon"),
        ("train.csv", "text\tlabel\na\tx\n", "csv columns are told apart by a comma, these seem to be by a tab"),
        ("train.csv", "\ntext|label\na|x\n", "these seem to be by a vertical bar"),
        ("train.tsv", "text,label\na,x\n", "tsv columns are told apart by a tab, these seem to be by a comma"),
    ],
    ids=["semicolon", "tab", "bar", "comma in tsv"],
)
def test_another_delimiter_is_named(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        read(tmp_path, name, content)


def test_a_file_of_one_column_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, "train.csv", "text\na cat\n").to_pydict() == {"text": ["a cat"]}


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "train.parquet"])
def test_a_column_that_comes_twice_is_refused(tmp_path: Path, name: str) -> None:
    table = pa.table([["a"], ["b"], ["x"]], names=["text", "text", "label"])
    pa.parquet.write_table(table, tmp_path / "train.parquet")
    contents = {
        "train.csv": b"text,text,label\na,b,x\n",
        "train.tsv": b"text\ttext\tlabel\na\tb\tx\n",
        "train.parquet": (tmp_path / "train.parquet").read_bytes(),
    }
    with pytest.raises(InputError, match=rf"{name} .*more than one column is called text"):
        read(tmp_path, name, contents[name])


def test_columns_that_nobody_asked_for_may_come_twice(tmp_path: Path) -> None:
    assert read(tmp_path, "train.csv", "text,label,,\na,x,,\n")["label"].to_pylist() == ["x"]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (["1", '"x"'], r"column label must hold one kind of value, got a number in row 0 and text in row 1"),
        (["null", '"x"', "true"], "got text in row 1 and true or false in row 2"),
        (["1", "true"], "got a number in row 0 and true or false in row 1"),
        (["[1]", "2"], "got a list in row 0 and a number in row 1"),
        (["1", str(2**70)], "column label must hold one kind of value, .*too large"),
    ],
    ids=["number and word", "word and boolean", "number and boolean", "list and number", "huge"],
)
def test_a_json_column_of_several_kinds_is_named_with_rows(tmp_path: Path, values: list[str], complaint: str) -> None:
    lines = [f'{{"text": "a", "label": {value}}}' for value in values]
    with pytest.raises(InputError, match=complaint):
        read(tmp_path, "train.jsonl", "\n".join(lines))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_columns_that_nobody_reads_do_no_harm_and_are_named(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pa.parquet.write_table(pa.table({"text": ["a", "b"], "meta": [{"k": 1}, {"k": 2}]}), tmp_path / name)
    else:
        (tmp_path / name).write_text('{"text": "a", "meta": 3}\n{"text": "b", "meta": "x", "late": 1}\n')
    table = read_columns(tmp_path / name, ("text", "query"))
    assert table.column("text").to_pylist() == ["a", "b"]
    assert set(table.column_names) - {"late"} == {"text", "meta"}
    assert table.column("meta").null_count == 2


def test_texts_of_arrows_views_are_texts_wherever_they_stand(tmp_path: Path) -> None:
    view = pa.string_view()
    columns = {"text": pa.array(["a"], view), "words": pa.array([["a", "b"]], pa.list_(view))}
    pa.parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    table = read_columns(tmp_path / "rows.parquet", ("text", "words"))
    assert [str(field.type) for field in table.schema] == ["string", "list<item: string>"]
    assert table.to_pylist() == [{"text": "a", "words": ["a", "b"]}]


def test_whole_and_other_numbers_are_one_kind(tmp_path: Path) -> None:
    table = read(tmp_path, "train.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": 2.5}\n')
    assert table["label"].to_pylist() == [1.0, 2.5]


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data_dir must be a folder .*nowhere, which is not there"):
        split_file(tmp_path / "nowhere", "train", kind="classes")


def test_a_file_in_place_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    with pytest.raises(InputError, match=r"data_dir must be a folder .*train\.csv, which is not a folder"):
        split_file(tmp_path / "train.csv", "train", kind="classes")


def test_a_workbook_is_not_taken_for_a_table(tmp_path: Path) -> None:
    (tmp_path / "train.xlsx").touch()
    with pytest.raises(InputError, match=r"train with one of .*\.csv.* with train\.xlsx; add the file"):
        split_file(tmp_path, "train", kind="classes")


@pytest.mark.parametrize(
    ("kind", "other", "formats"),
    [
        ("classes", "train.conll", r"\.parquet, \.jsonl, \.json, \.csv, \.tsv\)"),
        ("tags", "train.csv", r"\.parquet, \.jsonl, \.json, \.conll\)"),
    ],
)
def test_only_formats_that_hold_the_rows_of_the_task_are_offered(tmp_path, kind, other, formats) -> None:
    (tmp_path / other).touch()
    with pytest.raises(InputError, match=rf"train with one of {formats}, got a folder .* with {other}"):
        split_file(tmp_path, "train", kind=kind)
    (tmp_path / "train.jsonl").touch()
    assert split_file(tmp_path, "train", kind=kind).name == "train.jsonl"
