from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cap.data.docstrings import docstring_rows, docstring_source, first_sentence
from cap.data.sources import load_rows
from cap.data.tasks import get_task


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, list]]:
    """Make the rows, which a process does once and other tests of this module ask for themselves."""
    return docstring_rows()


def test_there_are_thousands_of_pairs(rows) -> None:
    assert len(rows["train"]["name"]) > 7000
    assert len(rows["validation"]["name"]) > 800


@pytest.mark.parametrize("split", ["train", "validation"])
def test_half_of_the_pairs_belong_together(split: str) -> None:
    labels = docstring_rows()[split]["label"]
    assert sum(labels) * 2 == len(labels)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("column", ["name", "description"])
def test_neither_half_of_a_pair_tells_the_answer_alone(split: str, column: str) -> None:
    rows = docstring_rows()[split]
    right = [value for value, label in zip(rows[column], rows["label"], strict=True) if label]
    wrong = [value for value, label in zip(rows[column], rows["label"], strict=True) if not label]
    assert sorted(right) == sorted(wrong)
    assert len(set(right)) == len(right)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_wrong_descriptions_are_wrong_and_half_of_one_module(split: str) -> None:
    rows = docstring_rows()[split]
    table = list(zip(rows["name"], rows["description"], rows["label"], strict=True))
    owner = {description: name for name, description, label in table if label}
    pairs = [(name, owner[description]) for name, description, label in table if not label]
    assert all(name != other for name, other in pairs)
    # Packages stand for modules: a few wrong descriptions come from another module of the same package.
    same = sum(name.split(".")[0] == other.split(".")[0] for name, other in pairs)
    assert same / len(pairs) == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("column", ["name", "description"])
def test_nothing_of_the_training_rows_is_among_the_validation_rows(column: str) -> None:
    rows = docstring_rows()
    assert not set(rows["train"][column]) & set(rows["validation"][column])


@pytest.mark.ends
def test_another_process_gets_the_same_rows() -> None:
    code = "import json; from cap.data.docstrings import docstring_rows; print(json.dumps(docstring_rows()))"
    answer = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert answer.stderr == ""
    assert json.loads(answer.stdout) == docstring_rows()


def test_docstrings_need_no_folder() -> None:
    rows = load_rows(get_task("docstrings"), data_dir=None, max_train_rows=100, max_eval_rows=50)
    assert rows.source.startswith("docstrings of Python 3.")
    assert rows.splits["train"].column_names == ["name", "description", "label", "example_id"]
    assert [rows.splits[split].num_rows for split in ("train", "validation")] == [100, 50]


def test_the_source_names_the_interpreter() -> None:
    assert docstring_source() == f"docstrings of Python {sys.version.split()[0]}"


@pytest.mark.parametrize(
    ("docstring", "name", "expected"),
    [
        ("Copy a file. It is slow.", "move", "Copy a file."),
        ("move(src, dst) -> path\n\nRename a file.", "move", "Rename a file."),
        ("move(src, dst[, copy]): rename a file", "move", "Rename a file"),
        ("move -- rename a file", "move", "Rename a file"),
        ("Move a file elsewhere.", "move", "A file elsewhere."),
        ("Movement of a file.", "move", "Movement of a file."),
        ("shutil.move(src) renames\na file.", "move", "Renames a file."),
        ("``move`` renames a file.", "move", "Renames a file."),
        ("Use e.g. a file, i.e. this one.", "move", "Use e.g. a file, i.e. this one."),
        ("Deprecated.", "move", ""),
        ("", "move", ""),
        ("move(a)", "move", ""),
    ],
    ids=[
        "plain",
        "signature",
        "colon",
        "dashes",
        "verb",
        "other word",
        "dotted",
        "code",
        "e.g.",
        "short",
        "none",
        "bare",
    ],
)
def test_first_sentence_does_not_begin_with_the_name(docstring: str, name: str, expected: str) -> None:
    assert first_sentence(docstring, [name]) == expected


def test_no_right_description_begins_with_its_name() -> None:
    rows = docstring_rows()["train"]
    table = zip(rows["name"], rows["description"], rows["label"], strict=True)
    assert not [name for name, text, label in table if label and text.split()[0].lower() == name.split(".")[-1].lower()]
