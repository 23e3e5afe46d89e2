"""CoNLL column files: a word a line with its tag in the last column, an empty line between sentences."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

WORDS, TAGS = "tokens", "tags"
_DOCUMENT = "-DOCSTART-"  # stands on a line of its own where a document begins, and is no word


def read_conll(file: Path, wanted: tuple[str, ...]) -> pa.Table:
    """Read the first column as words and the last one as their tags.

    Columns are told apart by tabs where the first line with words has one, else by any white space. Comments before a
    sentence, as in CoNLL-U, are passed over; a word may be ``#``.

    Args:
        file: In UTF-8.
        wanted: Not read: such columns have no names.

    Returns:
        The columns ``tokens`` and ``tags``, a list of strings a sentence.

    Raises:
        ValueError: If a line has fewer than two columns, or another number than the first one.
    """
    words: list[list[str]] = [[]]
    tags: list[list[str]] = [[]]
    separator: str | None = None
    n_columns = 0
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip() or line.startswith(_DOCUMENT):
            if words[-1]:
                words.append([])
                tags.append([])
            continue
        if n_columns == 0:
            separator = "\t" if "\t" in line else None
        columns = line.rstrip("\r").split(separator)
        if _is_comment(line, n_columns, len(columns), begins=not words[-1]):
            continue
        n_columns = n_columns or len(columns)
        if len(columns) != n_columns or n_columns < 2:
            raise ValueError(
                f"line {number} has {len(columns)} column{'s' if len(columns) > 1 else ''} in place of "
                f"{max(n_columns, 2)}: {line.strip()!r}; every line holds a word first and its tag last"
            )
        words[-1].append(columns[0])
        tags[-1].append(columns[-1])
    n_rows = len(words) if words[-1] else len(words) - 1
    lists = pa.list_(pa.string())
    return pa.table({WORDS: pa.array(words[:n_rows], lists), TAGS: pa.array(tags[:n_rows], lists)})


def _is_comment(line: str, n_wanted: int, n_found: int, *, begins: bool) -> bool:
    if not line.startswith("#") or not begins:
        return False
    return n_found != n_wanted if n_wanted else "=" in line


__all__ = ["TAGS", "WORDS", "read_conll"]
