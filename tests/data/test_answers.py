from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cap.base.errors import InputError
from cap.data.sources import Rows, load_rows
from cap.data.tasks import get_task
from tests.data.questions import answer, question_columns

CONTEXT = "The cat sat on the mat."
GOOD = {
    "question": ["Who sat?", "Where?"],
    "context": [CONTEXT, CONTEXT],
    "answers": [answer(CONTEXT, "The cat", "cat"), answer(CONTEXT, "the mat")],
}


def load(folder: Path, **limits: int) -> Rows:
    limits = {"max_train_rows": None, "max_eval_rows": None} | limits
    return load_rows(get_task("squad"), data_dir=folder, **limits)


@pytest.fixture
def load_columns(tmp_path: Path, write_split):
    """Load columns that are written as both splits."""

    def load_both(columns: dict[str, list], suffix: str = "parquet") -> Rows:
        for split in ("train", "validation"):
            write_split(tmp_path / "squad", split, columns, suffix)
        return load(tmp_path / "squad")

    return load_both


@pytest.fixture
def load_hub(monkeypatch: pytest.MonkeyPatch):
    """Load columns as if they came from the Hub."""

    def load_fixed(columns: dict[str, list]) -> Rows:
        table = pa.table(columns)
        monkeypatch.setattr("cap.data.sources.read_hub", lambda task: ({"train": table, "validation": table}, "hub x"))
        return load_rows(get_task("squad"), data_dir=None, max_train_rows=None, max_eval_rows=None)

    return load_fixed


def test_rows_hold_all_accepted_answers_and_where_they_begin(load_columns) -> None:
    train = load_columns(GOOD | {"id": ["a", "b"], "title": ["t", "t"]}).splits["train"]
    assert train[:] == {
        "question": GOOD["question"],
        "context": GOOD["context"],
        "answers": [["The cat", "cat"], ["the mat"]],
        "answer_starts": [[0, 4], [15]],
        "example_id": [0, 1],
    }


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_every_format_that_holds_lists_gives_the_same_rows(tmp_path: Path, load_columns, write_split, suffix) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path / suffix, split, question_columns(), suffix)
    assert load(tmp_path / suffix).fingerprints == load_columns(question_columns()).fingerprints


def test_the_first_rows_are_taken_with_their_own_answers(tmp_path: Path, load_columns) -> None:
    whole = load_columns(question_columns()).splits["train"]
    assert load(tmp_path / "squad", max_train_rows=5).splits["train"][:] == whole[:5]


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_a_format_without_lists_is_refused(load_columns, suffix: str) -> None:
    with pytest.raises(InputError, match=rf"train\.{suffix}; csv and tsv cannot hold lists; write it as parquet"):
        load_columns(GOOD, suffix)


@pytest.mark.parametrize(
    "change",
    [
        {"question": ["Who sat?", "When?"]},
        {"context": [CONTEXT, f"{CONTEXT} "]},
        {"answers": [answer(CONTEXT, "The cat", "cat"), answer(CONTEXT, "mat")]},
        {"answers": [answer(CONTEXT, "The cat"), answer(CONTEXT, "cat", "the mat")]},
        {"answers": [answer(CONTEXT, "cat", "The cat"), answer(CONTEXT, "the mat")]},
    ],
    ids=["question", "context", "answer", "border between rows", "order of answers"],
)
def test_the_fingerprint_follows_the_content(load_columns, change: dict) -> None:
    assert load_columns(GOOD | change).fingerprint != load_columns(GOOD).fingerprint


def test_the_fingerprint_follows_where_an_answer_begins(load_columns) -> None:
    twice = {"question": ["Who?"], "context": ["a cat, a cat"]}
    first, second = ({"answers": [{"text": ["cat"], "answer_start": [start]}]} for start in (2, 9))
    assert load_columns(twice | first).fingerprint != load_columns(twice | second).fingerprint


def spoiled(spoil: dict) -> dict:
    """Spoil the second answer of the second row."""
    good = answer(CONTEXT, "the mat")
    return {"answers": [GOOD["answers"][0], {name: [*good[name], *spoil[name]] for name in good}]}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"question": ["Who?", " "]}, "column question must hold text in every row, got the empty text"),
        ({"context": [CONTEXT, ""]}, "column context must hold text in every row, got the empty text"),
        ({"answers": [GOOD["answers"][0], {"text": [], "answer_start": []}]}, "needs at least one answer .*got none"),
        ({"answers": [GOOD["answers"][0], None]}, "needs at least one answer .*got none"),
        ({"answers": [GOOD["answers"][0], {"text": ["cat"], "answer_start": [4, 15]}]}, "as many texts as starts"),
        (spoiled({"text": [" "], "answer_start": [3]}), "needs at least one answer .*got an empty one"),
        (spoiled({"text": [None], "answer_start": [3]}), "needs at least one answer .*got an empty one"),
        (spoiled({"text": ["cat"], "answer_start": [None]}), "needs at least one answer .*got an empty one"),
        (spoiled({"text": ["dog"], "answer_start": [4]}), "got 'dog', which its context does not contain"),
        (spoiled({"text": ["cat"], "answer_start": [-1]}), "inside their context of 23 .* from -1 .* stands at 4"),
        (spoiled({"text": ["mat."], "answer_start": [20]}), "inside .* got 'mat.' from 20 to 24, .* stands at 19"),
        (spoiled({"text": ["cat"], "answer_start": [5]}), "got 'cat' at 5, where 'at ' stands, .* stands at 4"),
    ],
    ids=[
        "empty question",
        "empty context",
        "no answer",
        "null answer",
        "a start too many",
        "blank text",
        "null text",
        "null start",
        "text not in context",
        "begins before its context",
        "ends behind its context",
        "stands elsewhere",
    ],
)
@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_a_bad_row_is_named_with_its_file(load_columns, suffix: str, change: dict, complaint: str) -> None:
    with pytest.raises(InputError, match=rf"(?s){complaint}.* in row 1 \(counted from 0\) of .* train\.{suffix}"):
        load_columns(GOOD | change, suffix)


def test_a_file_in_which_no_row_has_an_answer_is_refused(load_columns) -> None:
    with pytest.raises(InputError, match=r"at least one answer .*in row 0"):
        load_columns(GOOD | {"answers": [{"text": [], "answer_start": []}] * 2})


@pytest.mark.parametrize(
    "answers",
    [[["cat"], ["mat"]], [{"text": ["cat"]}] * 2, ["cat", "mat"]],
    ids=["only texts", "no starts", "one text"],
)
def test_another_layout_is_refused_with_the_right_one(load_columns, answers: list) -> None:
    with pytest.raises(InputError, match=r'must hold \{"text": \[...\], "answer_start": \[...\]\} in every row'):
        load_columns(GOOD | {"answers": answers})


def test_a_start_that_is_no_whole_number_is_refused(load_columns) -> None:
    with pytest.raises(InputError, match="lists of whole numbers, got another answer_start"):
        load_columns(GOOD | {"answers": [{"text": ["cat"], "answer_start": [4.5]}] * 2})


@pytest.mark.parametrize(
    "spoil",
    [{"text": ["cat"], "answer_start": [5]}, {"text": ["dog"], "answer_start": [4]}],
    ids=["elsewhere", "not there"],
)
def test_a_misplaced_answer_of_the_hub_is_kept_without_a_place_and_said(
    load_hub, caplog: pytest.LogCaptureFixture, spoil: dict
) -> None:
    train = load_hub(GOOD | spoiled(spoil)).splits["train"]
    assert train["answers"][1] == ["the mat", *spoil["text"]]
    assert train["answer_starts"][:] == [[0, 4], [15, -1]]
    assert "hub x, split train, has 1 rows with an answer that does not stand where it says" in caplog.text


def test_a_question_of_the_hub_without_an_answer_is_refused(load_hub) -> None:
    with pytest.raises(InputError, match="at least one answer"):
        load_hub(GOOD | {"answers": [GOOD["answers"][0], {"text": [], "answer_start": []}]})
