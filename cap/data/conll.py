"""CoNLL column files: a word a line with its tag in the last column, an empty line between sentences."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

WORDS, TAGS = "tokens", "tags"
_DOCUMENT = "-DOCSTART-"  # stands on a line of its own where a document begins, and is no word


def read_conll(file: Path, wanted: tuple[str, ...]) -> pa.Table:
    """Read the first column as words and the last one as their tags.

    Columns are told apart by tabs where the first line with words has one, else by any white space. Comments before a
    sentence, as in CoNLL-U, are passed over: lines that begin with ``#`` and end in nothing that is a tag elsewhere. A
    word may be ``#``, a sentence's first one, too.

    Args:
        file: In UTF-8.
        wanted: Not read: such columns have no names.

    Returns:
        The columns ``tokens`` and ``tags``, a list of strings a sentence.

    Raises:
        ValueError: If a line has fewer than two columns, or another number than the first one, or if the first column
            numbers the words.
    """
    lines = [line.rstrip("\r") for line in file.read_text(encoding="utf-8-sig").split("\n")]
    certain = [line for line, before in zip(lines, ["", *lines], strict=False) if _is_word(line, before)]
    separator = "\t" if certain and "\t" in certain[0] else None
    n_columns = len(certain[0].split(separator)) if certain else 0
    known = {"O", *(line.split(separator)[-1] for line in certain)}
    sentences: list[list[list[str]]] = [[]]
    for number, line in enumerate(lines, start=1):
        if _is_empty(line):
            if sentences[-1]:
                sentences.append([])
            continue
        columns = line.split(separator)
        # Between tabs there is no doubt: a comment has none. Blanks part the words of comments, too.
        is_like_a_word = len(columns) == n_columns and (separator is not None or columns[-1] in known)
        is_comment = line.startswith("#") and not is_like_a_word
        if is_comment and not sentences[-1]:
            continue
        if len(columns) != n_columns or n_columns < 2:
            raise ValueError(
                f"line {number} has {len(columns)} column{'s' if len(columns) > 1 else ''} in place of "
                f"{max(n_columns, 2)}: {line.strip()!r}; every line holds a word first and its tag last"
            )
        sentences[-1].append(columns)
    found = [sentence for sentence in sentences if sentence]
    if n_columns > 2 and any(len(sentence) > 1 for sentence in found) and all(map(_is_numbered, found)):
        raise ValueError(
            f"the first column counts the words of every sentence, as in CoNLL-U: {' '.join(found[0][0])!r}; write two "
            f"columns alone, a word first and its tag last"
        )
    lists = pa.list_(pa.string())
    return pa.table(
        {
            WORDS: pa.array([[columns[0] for columns in sentence] for sentence in found], lists),
            TAGS: pa.array([[columns[-1] for columns in sentence] for sentence in found], lists),
        }
    )


def _is_empty(line: str) -> bool:
    return not line.strip() or line.startswith(_DOCUMENT)


def _is_word(line: str, before: str) -> bool:
    """Say whether a line surely is a word and no comment, which stands before a sentence."""
    is_within = not (_is_empty(before) or before.startswith("#"))
    return not _is_empty(line) and (is_within or not line.startswith("#"))


def _is_numbered(sentence: list[list[str]]) -> bool:
    """Say whether words have numbers in front; those of several in one, 1-2, and of left out ones, 1.1, are extra."""
    numbers = [columns[0] for columns in sentence if columns[0].isdigit()]
    return numbers == [str(number) for number in range(1, len(numbers) + 1)] and bool(numbers)


__all__ = ["TAGS", "WORDS", "read_conll"]
