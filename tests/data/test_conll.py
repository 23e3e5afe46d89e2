from __future__ import annotations

from pathlib import Path

import pytest

from cap.base.errors import InputError
from cap.data.files import read_columns


def read(tmp_path: Path, text: str) -> list[dict[str, list[str]]]:
    file = tmp_path / "train.conll"
    file.write_text(text, encoding="utf-8")
    return read_columns(file, ("tokens", "tags")).to_pylist()


def test_empty_lines_part_sentences_and_documents_begin_without_a_word(tmp_path):
    text = "-DOCSTART- -X- O\n\nEU NNP B-ORG\n# # O\n\n \n\nPeter NNP B-PER\n"
    expected = [
        {"tokens": ["EU", "#"], "tags": ["B-ORG", "O"]},
        {"tokens": ["Peter"], "tags": ["B-PER"]},
    ]
    assert read(tmp_path, text) == expected


def test_comments_before_a_sentence_are_no_words(tmp_path):
    text = "# sent_id = 1\n# text = EU #\nEU B-ORG\n# O\n\n# sent_id = 2\nPeter B-PER\n\n# O\n"
    assert read(tmp_path, text) == [
        {"tokens": ["EU", "#"], "tags": ["B-ORG", "O"]},
        {"tokens": ["Peter"], "tags": ["B-PER"]},
        {"tokens": ["#"], "tags": ["O"]},
    ]
    assert read(tmp_path, "#\tO\nNew York\tB-LOC\n")[0]["tokens"] == ["#", "New York"]


def test_a_comment_of_as_many_words_as_columns_is_no_word_either(tmp_path):
    text = "# doc1\nThe DET\n# NOUN\n\n# doc2\n# NOUN\nsign NOUN\n"
    assert read(tmp_path, text) == [
        {"tokens": ["The", "#"], "tags": ["DET", "NOUN"]},
        {"tokens": ["#", "sign"], "tags": ["NOUN", "NOUN"]},
    ]
    # Neither separator nor number of columns follows from it.
    assert read(tmp_path, "# my data set of names\n\nNew York\tB-LOC\n") == [
        {"tokens": ["New York"], "tags": ["B-LOC"]}
    ]


def test_words_that_are_counted_are_refused(tmp_path):
    text = "# text = It is\n1\tIt\tPRON\t_\n2\tis\tAUX\tSpaceAfter=No\n\n1\tNo\tINTJ\t_\n"
    with pytest.raises(
        InputError, match=r"the first column counts the words of every sentence, as in CoNLL-U: '1 It PR"
    ):
        read(tmp_path, text)
    assert read(tmp_path, "1\tX\tO\n\n1\tX\tO\n") == [{"tokens": ["1"], "tags": ["O"]}] * 2  # nothing is counted


def test_words_hold_spaces_where_tabs_part_the_columns(tmp_path):
    assert read(tmp_path, "\ufeffNew York\tB-LOC\r\nis\tO\r\n") == [
        {"tokens": ["New York", "is"], "tags": ["B-LOC", "O"]}
    ]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("EU B-ORG\nrejects\n", r"line 2 has 1 column in place of 2: 'rejects'"),
        ("EU B-ORG\n# no comment\n", r"line 2 has 3 columns in place of 2: '# no comment'"),
        ("EU\n", r"line 1 has 1 column in place of 2: 'EU'"),
    ],
    ids=["no tag", "within a sentence", "words alone"],
)
def test_line_with_another_number_of_columns_is_named(tmp_path, text, complaint):
    with pytest.raises(InputError, match=rf"data_dir file train\.conll .*{complaint}; every line holds a word first"):
        read(tmp_path, text)


def test_file_without_a_word_has_no_row(tmp_path):
    assert read(tmp_path, "\n\n") == []
