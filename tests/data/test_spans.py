from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from cap.base.errors import InputError
from cap.data.spans import SpanMetrics, best_spans
from cap.data.tasks import get_task
from cap.data.windows import Windows

LIMITS = {"n_best": 20, "max_answer_length": 30}
Spans = tuple[torch.Tensor, torch.Tensor]


def slow_best_spans(logits: torch.Tensor, is_context: torch.Tensor, *, n_best: int, max_answer_length: int) -> Spans:
    """Try every start with every end, one window after the other."""
    positions, scores = [], []
    for window, allowed in zip(logits.tolist(), is_context.tolist(), strict=True):
        tokens = [token for token, is_allowed in enumerate(allowed) if is_allowed]
        starts = sorted(tokens, key=lambda token: -window[token][0])[:n_best]
        ends = sorted(tokens, key=lambda token: -window[token][1])[:n_best]
        spans = [
            (window[start][0] + window[end][1], start, end)
            for start in starts
            for end in ends
            if start <= end < start + max_answer_length
        ]
        score, start, end = max(spans)
        positions.append([start, end])
        scores.append(score)
    return torch.tensor(positions), torch.tensor(scores)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "limits",
    [LIMITS, {"n_best": 60, "max_answer_length": 3}, {"n_best": 7, "max_answer_length": 30}],
    ids=["usual", "short answers", "few tried"],
)
def test_best_spans_are_those_of_a_loop_over_all(seed: int, limits: dict) -> None:
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(4, 50, 2, generator=draw)
    is_context = torch.rand(4, 50, generator=draw) < 0.7
    positions, scores = best_spans(logits, is_context, **limits)
    expected_positions, expected_scores = slow_best_spans(logits, is_context, **limits)
    assert positions.tolist() == expected_positions.tolist()
    assert torch.allclose(scores, expected_scores)


def peaks(n_tokens: int, start: dict[int, float], end: dict[int, float]) -> torch.Tensor:
    """Make logits of one window that are 0 but at some tokens."""
    logits = torch.zeros(1, n_tokens, 2)
    for column, values in enumerate((start, end)):
        for token, value in values.items():
            logits[0, token, column] = value
    return logits


def test_an_answer_never_touches_question_or_padding() -> None:
    is_context = torch.tensor([[False] * 4 + [True] * 4 + [False] * 3])
    logits = peaks(11, {1: 90.0, 9: 80.0, 5: 1.0}, {2: 90.0, 10: 80.0, 6: 1.0})
    positions, scores = best_spans(logits, is_context, **LIMITS)
    assert positions.tolist() == [[5, 6]]
    assert scores.tolist() == [2.0]


def test_an_answer_never_ends_before_it_begins() -> None:
    logits = peaks(8, {6: 5.0, 1: 2.0}, {3: 5.0})
    positions, _ = best_spans(logits, torch.ones(1, 8, dtype=torch.bool), **LIMITS)
    assert positions.tolist() == [[1, 3]]


@pytest.mark.parametrize(("longest", "expected"), [(5, [2, 6]), (4, [2, 3])], ids=["just fits", "too long"])
def test_an_answer_has_at_most_so_many_tokens(longest: int, expected: list[int]) -> None:
    logits = peaks(8, {2: 5.0}, {6: 5.0, 3: 4.0})
    positions, _ = best_spans(logits, torch.ones(1, 8, dtype=torch.bool), n_best=20, max_answer_length=longest)
    assert positions.tolist() == [expected]


def test_equal_logits_give_the_earliest_span() -> None:
    is_context = torch.tensor([[False, False, True, True, True]])
    positions, _ = best_spans(torch.zeros(1, 5, 2), is_context, **LIMITS)
    assert positions.tolist() == [[2, 2]]


@pytest.mark.parametrize(
    ("logits", "is_context"),
    [
        (torch.zeros(1, 4, 2), torch.zeros(1, 4, dtype=torch.bool)),
        (torch.full((1, 4, 2), float("nan")), torch.ones(1, 4, dtype=torch.bool)),
        (torch.full((1, 4, 2), float("inf")), torch.ones(1, 4, dtype=torch.bool)),
    ],
    ids=["no context", "nan", "infinite"],
)
def test_a_window_without_a_possible_span_scores_minus_infinity(logits, is_context) -> None:
    assert best_spans(logits, is_context, **LIMITS)[1].tolist() == [-torch.inf]


CAT = "The red cat, a big one, sat on the mat!"
DOG = "A dog ran fast; the slow dog, an old one, sat down in the blue house."
ROWS = {
    "question": ["Who sat?", "Where did it sit?", "Who ran?"],
    "context": [CAT, CAT, DOG],
    "answers": [["red cat"], ["the mat", "on the mat"], ["dog"]],
}


class Texts:
    """Windows over contexts in which every word, with the punctuation at it, is one token.

    Each window is (row, first word, one behind the last); a question of two tokens and a separator come before it.
    """

    n_before = 3

    def __init__(self, folder: Path, windows: list[tuple[int, int, int]]) -> None:
        words = [[match.span() for match in re.finditer(r"\S+", context)] for context in ROWS["context"]]
        self.windows = windows
        self.rows = datasets.Dataset.from_dict(ROWS)
        offsets = [[(-1, -1)] * self.n_before + words[row][begin:end] + [(-1, -1)] for row, begin, end in windows]
        folder.mkdir()
        np.save(folder / "lengths.npy", np.array([len(window) for window in offsets]))
        np.save(folder / "questions.npy", np.array([row for row, _, _ in windows]))
        np.save(folder / "offsets.npy", np.concatenate([np.array(window, dtype=np.int32) for window in offsets]))
        self.folder = folder

    def metrics(self, **more) -> SpanMetrics:
        return SpanMetrics(more.pop("task", get_task("squad")), self.rows, Windows(self.folder), **more)

    def logits(self, *spans: tuple[int, int, float]) -> torch.Tensor:
        """Point to words (counted in the context) with a strength, one span per window."""
        width = max(end - begin for _, begin, end in self.windows) + self.n_before + 1
        logits = torch.zeros(len(spans), width, 2)
        for window, (first, last, strength) in enumerate(spans):
            shift = self.n_before - self.windows[window][1]
            logits[window, first + shift, 0] = logits[window, last + shift, 1] = strength / 2
        return logits

    def batch(self) -> dict[str, torch.Tensor]:
        return {"example_id": torch.arange(len(self.windows))}


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    """Give two windows to each context; they share words 4 and 5, or 6 and 7."""
    return Texts(tmp_path / "w", [(0, 0, 6), (0, 4, 10), (1, 0, 6), (1, 4, 10), (2, 0, 8), (2, 6, 15)])


def answered(texts: Texts, *spans: tuple[int, int, float]) -> SpanMetrics:
    metrics = texts.metrics()
    metrics.update(texts.logits(*spans), texts.batch())
    return metrics


def test_the_best_window_of_a_question_answers_it_with_its_own_words(texts: Texts) -> None:
    metrics = answered(texts, (1, 2, 4), (4, 5, 2), (0, 0, 1), (8, 9, 6), (6, 7, 3), (11, 14, 5))
    assert metrics.answers() == {0: "red cat,", 1: "the mat!", 2: "down in the blue"}


def test_case_punctuation_and_articles_do_not_count(texts: Texts) -> None:
    # "The red cat," = "red cat"; "on the mat!" = "on the mat"; "A dog" = "dog".
    metrics = answered(texts, (0, 2, 4), (4, 5, 2), (0, 0, 1), (7, 9, 6), (0, 1, 3), (11, 14, 2))
    assert metrics.compute() == {"f1": pytest.approx(1.0), "exact_match": pytest.approx(1.0)}


def test_f1_is_the_overlap_with_the_nearest_accepted_answer(texts: Texts) -> None:
    # "cat, a big" against "red cat": 1 of the 2 words given, 1 of the 2 wanted: 1/2.
    # "sat on the mat!" against "mat": 1 of 3 and 1 of 1 is 1/2; against "on mat": 2 of 3 and 2 of 2 is 4/5.
    # "the blue house." against "dog": nothing in common.
    metrics = answered(texts, (2, 4, 4), (5, 5, 2), (0, 0, 1), (6, 9, 6), (0, 0, 1), (12, 14, 3))
    assert metrics.compute() == {"f1": pytest.approx((1 / 2 + 4 / 5 + 0) / 3), "exact_match": 0.0}


def test_an_answer_found_in_both_windows_counts_once(texts: Texts) -> None:
    # "one," lies in both windows of row 0, and both point to it; only row 1 is right.
    metrics = answered(texts, (5, 5, 4), (5, 5, 4), (0, 0, 1), (8, 9, 6), (0, 0, 1), (12, 14, 3))
    assert metrics.answers()[0] == "one,"
    assert metrics.compute()["exact_match"] == pytest.approx(1 / 3)


def test_an_answer_across_a_border_is_found_where_a_window_shows_it_whole(texts: Texts) -> None:
    # "slow dog," is words 5 and 6: only the first window of row 2 shows both.
    metrics = answered(texts, (0, 2, 4), (4, 5, 2), (0, 0, 1), (8, 9, 6), (5, 6, 7), (6, 6, 6))
    assert metrics.answers()[2] == "slow dog,"
    # "slow dog" against "dog": 1 of 2 and 1 of 1 is 2/3.
    assert metrics.compute()["f1"] == pytest.approx((1 + 1 + 2 / 3) / 3)


def test_of_equally_good_windows_the_first_counts_in_any_order(texts: Texts) -> None:
    logits = texts.logits((1, 2, 4), (4, 5, 4), (0, 0, 1), (8, 9, 6), (6, 7, 3), (11, 14, 5))
    forward, backward = texts.metrics(), texts.metrics()
    forward.update(logits, texts.batch())
    for window in reversed(range(6)):
        backward.update(logits[window : window + 1], {"example_id": torch.tensor([window])})
    assert forward.answers()[0] == "red cat,"
    assert forward.answers() == backward.answers()
    assert forward.compute() == backward.compute()


def test_only_the_questions_seen_are_scored(texts: Texts) -> None:
    metrics = texts.metrics()
    metrics.update(texts.logits((0, 2, 4), (4, 5, 2)), {"example_id": torch.tensor([0, 1])})
    assert metrics.answers() == {0: "The red cat,"}
    assert metrics.compute() == {"f1": 1.0, "exact_match": 1.0}


def test_a_question_without_a_possible_span_gets_an_empty_answer(texts: Texts) -> None:
    metrics = texts.metrics()
    metrics.update(torch.full((2, 10, 2), float("nan")), {"example_id": torch.tensor([0, 1])})
    assert metrics.answers() == {0: ""}
    assert metrics.compute() == {"f1": 0.0, "exact_match": 0.0}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_any_float_type_is_taken(texts: Texts, dtype: torch.dtype) -> None:
    metrics = texts.metrics()
    metrics.update(texts.logits((0, 2, 4), (4, 5, 2)).to(dtype), {"example_id": torch.tensor([0, 1])})
    assert metrics.answers() == {0: "The red cat,"}


def test_limits_are_those_given(texts: Texts) -> None:
    metrics = texts.metrics(max_answer_length=1)
    metrics.update(texts.logits((1, 2, 4), (4, 5, 2)), {"example_id": torch.tensor([0, 1])})
    assert metrics.answers() == {0: "red"}


def test_one_text_for_every_question_is_constant(texts: Texts) -> None:
    logits = texts.logits((2, 2, 4), (4, 4, 2), (2, 2, 4), (4, 4, 1))
    metrics = texts.metrics()
    metrics.update(logits, {"example_id": torch.arange(4)})
    assert metrics.is_constant


def test_two_texts_are_not_constant(texts: Texts) -> None:
    assert not answered(texts, (2, 2, 4), (4, 4, 2), (2, 2, 4), (4, 4, 1), (0, 0, 1), (6, 6, 0)).is_constant


def test_reset_forgets_the_windows(texts: Texts) -> None:
    metrics = answered(texts, *[(begin, begin, 9.0) for _, begin, _ in texts.windows])
    metrics.reset()
    metrics.update(texts.logits((0, 2, 4), (4, 5, 2)), {"example_id": torch.tensor([0, 1])})
    assert metrics.answers() == {0: "The red cat,"}


def test_no_window_has_no_score(texts: Texts) -> None:
    with pytest.raises(ValueError, match="at least one window"):
        texts.metrics().compute()


def test_a_suffix_follows_every_name(texts: Texts) -> None:
    metrics = texts.metrics(suffix="_new")
    metrics.update(texts.logits((0, 2, 4)), {"example_id": torch.tensor([0])})
    assert sorted(metrics.compute()) == ["exact_match_new", "f1_new"]


def test_a_score_that_does_not_exist_is_refused(texts: Texts) -> None:
    with pytest.raises(InputError, match=r"question answering task must be among .*got 'accuracy'"):
        texts.metrics(task=replace(get_task("squad"), metrics=("accuracy",)))
