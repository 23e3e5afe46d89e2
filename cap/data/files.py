"""Read a split's file of any format as an Arrow table; nothing is written or cached."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from cap.base.errors import InputError
from cap.base.files import file_sha256
from cap.base.kinds import Kind
from cap.data.conll import read_conll
from cap.data.tasks import Task


def split_file(data_dir: Path, split: str, *, kind: Kind | None) -> Path:
    """Find the one file of a split.

    Args:
        data_dir: An existing folder.
        split: The file's name without its suffix.
        kind: What an answer of the task is, see ``cap.base.kinds``; not every format holds every kind of rows.

    Returns:
        Its path.

    Raises:
        InputError: If there is no such folder, no such file, or more than one.
    """
    if not data_dir.is_dir():
        raise InputError(
            f"data_dir must be a folder with a file for the split {split}, got {data_dir}, which is "
            f"{'not a folder' if data_dir.exists() else 'not there'}; correct the path"
        )
    suffixes, found = suffixes_of(kind), _files_of(data_dir, split, kind)
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(
            f"data_dir needs one file for the split {split}, got {', '.join(path.name for path in found)} "
            f"in {data_dir}; keep one of them"
        )
    there = sorted(data_dir.iterdir())
    names = [path.name for path in there] or ["nothing"]
    others = [path.stem for path in there if path.suffix in suffixes and path.stem != "train" and split != "train"]
    raise InputError(
        f"data_dir needs a file for the split {split} ({split} with one of {', '.join(suffixes)}), got a folder "
        f"{data_dir} with {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}; add the file or correct the path"
        f"{f', or let cap.evaluate score another one: data.split={others[0]}' if others else ''}"
    )


def has_split(data_dir: Path, split: str, *, kind: Kind | None) -> bool:
    """Say whether there is a file of a split, see ``split_file``."""
    return bool(_files_of(data_dir, split, kind))


def suffixes_of(kind: Kind | None) -> tuple[str, ...]:
    """List the suffixes of files that can hold rows of a kind of answers."""
    return _OF_WORDS if kind == "tags" else _OF_TEXTS


def _files_of(data_dir: Path, split: str, kind: Kind | None) -> list[Path]:
    return [path for suffix in suffixes_of(kind) if (path := data_dir / f"{split}{suffix}").is_file()]


def file_hashes(data_dir: Path, splits: Sequence[str], *, kind: Kind | None) -> dict[str, str]:
    """Hash the splits' files, by name; equal bytes are equal rows, but not the other way round.

    Raises:
        InputError: As ``split_file``.
    """
    files = [split_file(data_dir, split, kind=kind) for split in splits]
    return {file.name: file_sha256(file) for file in files}


NAME_YOURS = "name yours with task.text_columns and task.label_column"
"""What to do about columns that one's own files call otherwise."""


def require_columns(
    task: str, table: pa.Table, wanted: Sequence[str], where: str, *, advice: str = "rename its columns"
) -> None:
    """Refuse a table that lacks a column or has no row.

    Args:
        task: Its name, for the message.
        table: What was read.
        wanted: Names of the columns.
        where: What a message calls the table.
        advice: What to do about a column that is missing.

    Raises:
        InputError: If it does; the message names what there is.
    """
    missing = [name for name in wanted if name not in table.column_names]
    if missing:
        raise InputError(
            f"task={task} reads the columns {', '.join(wanted)}; {where} lacks {', '.join(missing)} "
            f"and has {', '.join(table.column_names) or 'none'}; {advice}"
        )
    if table.num_rows == 0:
        raise InputError(f"every split needs rows, got none in {where}; give a file that is not empty")


def read_table(file: Path, task: Task) -> pa.Table:
    """Read the columns of a task from a split's file, see ``read_columns``."""
    return read_columns(file, (*task.text_columns, *([task.label_column] if task.label_column else [])))


def read_columns(file: Path, wanted: tuple[str, ...], *, key: str = "data_dir") -> pa.Table:
    """Read a split's file.

    Args:
        file: One that ``split_file`` found, or that a key names.
        wanted: Only these columns are taken where the format allows a choice and the file has all of them.
        key: The key that gave the file, for messages.

    Returns:
        The file's columns; those of csv and tsv all as strings, "NA", "null" and "None" among them.

    Raises:
        InputError: If there is no such file, if it cannot be read as what its suffix says, or has one of the columns
            twice.
    """
    if not file.is_file() or file.suffix not in _READERS:
        raise InputError(
            f"{key} must be a file with one of the suffixes {', '.join(_READERS)}, got {file}, which is "
            f"{'not a file' if file.is_dir() else 'another kind' if file.exists() else 'not there'}; correct the path"
        )
    try:
        if file.suffix != ".parquet":
            _require_utf8(file)
        table = _READERS[file.suffix](file, wanted)
        twice = [name for name in wanted if table.column_names.count(name) > 1]
        if twice:
            raise ValueError(f"more than one column is called {twice[0]}; rename or remove the others")
    except (OSError, ValueError, OverflowError, pa.ArrowException) as error:
        raise InputError(
            f"{key} file {file.name} must be a readable {file.suffix[1:]} file, got: {error}; "
            "write it again, or give it the suffix of its format"
        ) from error
    return table


def _require_utf8(file: Path) -> None:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                # UTF-16 without its mark passes for UTF-8 with zeros in between.
                is_utf8 = "\0" not in line.decode()
            except UnicodeDecodeError:
                is_utf8 = False
            if not is_utf8:
                raise ValueError(f"its text must be in UTF-8 and line {number} is not; save it as UTF-8")


def _read_parquet(file: Path, wanted: tuple[str, ...]) -> pa.Table:
    with pa.parquet.ParquetFile(file) as parquet:
        names = list(parquet.schema_arrow.names)
        present = [name for name in dict.fromkeys(wanted) if name in names]
        table = _without_views(parquet.read(columns=present))
        return table if len(present) == len(wanted) else _with_names(table, names, parquet.metadata.num_rows)


def _read_json(file: Path, wanted: tuple[str, ...]) -> pa.Table:
    # Not through pyarrow: its inference turns a column of dates, say, from text into timestamps.
    text = file.read_text(encoding="utf-8-sig")
    if text.lstrip().startswith("["):
        records = json.loads(text)
    else:
        records = [_parsed(line, number) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            raise ValueError(f"row {row} is {type(record).__name__}, not an object with the columns as keys")
    if not records:
        return pa.table({name: pa.array([], pa.string()) for name in wanted})
    present = [name for name in wanted if any(name in record for record in records)]
    table = pa.table({name: _array([record.get(name) for record in records], name) for name in present})
    names = list(dict.fromkeys(name for record in records for name in record))
    return table if len(present) == len(wanted) else _with_names(table, names, len(records))


def _with_names(table: pa.Table, names: Sequence[str], n_rows: int) -> pa.Table:
    """Add the columns of a file that were not read, empty: where one is missing, a message names what there is."""
    empty = pa.nulls(n_rows)
    columns = {name: table.column(name) if name in table.column_names else empty for name in names}
    return pa.table(columns).replace_schema_metadata(table.schema.metadata)


def _without_views(table: pa.Table) -> pa.Table:
    """Give columns of Arrow's string views the type that everybody reads, lists of them too."""
    for place, field in enumerate(table.schema):
        is_list = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
        if pa.types.is_string_view(field.type.value_type if is_list else field.type):
            plain = field.with_type(pa.list_(pa.string()) if is_list else pa.string())
            table = table.set_column(place, plain, table.column(place).cast(plain.type))
    return table


def _parsed(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number} is no JSON ({error})") from error


def _array(values: list[Any], name: str) -> pa.Array:
    try:
        return pa.array(values)
    except (OverflowError, pa.ArrowException) as error:
        first_rows: dict[str, int] = {}
        for row, value in enumerate(values):
            if value is not None:
                first_rows.setdefault(_KINDS.get(type(value), "another kind"), row)
        found = " and ".join(f"{kind} in row {row}" for kind, row in first_rows.items())
        reason = f"got {found}" if len(first_rows) > 1 else str(error)
        raise ValueError(f"column {name} must hold one kind of value, {reason} (rows counted from 0)") from error


def _read_csv(file: Path, wanted: tuple[str, ...]) -> pa.Table:
    return _read_delimited(file, pa.csv.ParseOptions(delimiter=",", newlines_in_values=True))


def _read_tsv(file: Path, wanted: tuple[str, ...]) -> pa.Table:
    # GLUE's own files hold lone quotation marks, which would swallow lines if they opened a quotation. A field that
    # is quoted as a whole, as writers of csv do it, is still unwrapped.
    table = _read_delimited(file, pa.csv.ParseOptions(delimiter="\t", quote_char=False))
    names = [_unquoted(pa.array([name]))[0].as_py() for name in table.column_names]
    return pa.table([_unquoted(column) for column in table.columns], names=names)


def _unquoted(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    is_quoted = pc.match_substring_regex(column, r'^"([^"]|"")*"$')
    inner = pc.replace_substring(pc.utf8_slice_codeunits(column, 1, -1), '""', '"')
    return pc.if_else(is_quoted, inner, column)


def _read_delimited(file: Path, parsing: pa.csv.ParseOptions) -> pa.Table:
    _require_header(file, parsing.delimiter)
    try:
        try:
            return _read_blocks(file, parsing)
        except pa.ArrowInvalid as error:
            if "straddling" not in str(error):
                raise
            # A row must fit into two blocks, of 1 MiB unless told, and a text may be nearly as long as the file.
            return _read_blocks(file, parsing, block_size=min(file.stat().st_size, 2**31 - 1))
    except pa.ArrowInvalid as error:
        ragged = _RAGGED.search(str(error))
        if ragged is None:
            raise
        number, n_expected, n_found, text = ragged.groups()
        rule = "put it in quotation marks" if parsing.delimiter == "," else "replace it by a space"
        advice = f"where the {_DELIMITERS[parsing.delimiter]} is part of a text, {rule}"
        if int(n_found) < int(n_expected) and parsing.delimiter == "\t":
            advice = "a tsv holds no line breaks within a text: replace them by spaces, or write csv, jsonl or parquet"
        raise ValueError(
            f"row {int(number) - 2} (counted from 0 after the header, empty lines left out) has {n_found} columns in "
            f"place of {n_expected}: {text!r}; {advice}"
        ) from error


def _read_blocks(file: Path, parsing: pa.csv.ParseOptions, *, block_size: int | None = None) -> pa.Table:
    # Only one thread counts the rows, for the message about a ragged one.
    reading = pa.csv.ReadOptions(use_threads=False, block_size=block_size)
    with pa.csv.open_csv(file, read_options=reading, parse_options=parsing) as opened:
        names = opened.schema.names
    texts = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False, quoted_strings_can_be_null=False
    )
    return pa.csv.read_csv(file, read_options=reading, parse_options=parsing, convert_options=texts)


def _require_header(file: Path, delimiter: str) -> None:
    with file.open(encoding="utf-8-sig") as lines:
        header = next((line.strip("\n") for line in lines if line.strip()), "")
    if not header:
        raise ValueError("the file is empty; its first line names the columns")
    others = [name for sign, name in _DELIMITERS.items() if sign in header]
    if delimiter not in header and others:
        raise ValueError(
            f"its header is the single column {header!r}: {file.suffix[1:]} columns are told apart by a "
            f"{_DELIMITERS[delimiter]}, these seem to be by a {others[0]}"
        )


_DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "vertical bar"}
_RAGGED = re.compile(r"Row #(\d+): Expected (\d+) columns, got (\d+): (.*)", re.DOTALL)
_KINDS = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}
_READERS: dict[str, Callable[[Path, tuple[str, ...]], pa.Table]] = {
    ".parquet": _read_parquet,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".conll": read_conll,
}
SUFFIXES = tuple(_READERS)
"""Of the files that can be read."""
# Columns of CoNLL files have no names, and csv holds no list of words.
_OF_TEXTS = tuple(suffix for suffix in SUFFIXES if suffix != ".conll")
_OF_WORDS = tuple(suffix for suffix in SUFFIXES if suffix not in (".csv", ".tsv"))

__all__ = [
    "NAME_YOURS",
    "file_hashes",
    "has_split",
    "read_columns",
    "read_table",
    "require_columns",
    "split_file",
    "suffixes_of",
]
