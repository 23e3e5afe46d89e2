"""Rows of words as padded batches."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from transformers import BertTokenizerFast, RobertaTokenizerFast

from cap.base.errors import InputError
from cap.base.words import spaced
from cap.data.custom import task_of
from cap.data.datamodule import CapDataModule
from cap.data.sources import load_rows
from cap.data.tasks import Task
from cap.data.words import space_between

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##s", "cat", "the", "."]
ROWS: list[dict[str, Any]] = [
    {"tokens": ["the", "cats", "playing"], "tags": ["O", "B-x", "I-x"]},
    {
        "tokens": ["cat", "\u200b", "plays", "the", "cat", ".", "cat"],
        "tags": ["B-x", "I-x", "O", "O", "B-x", "O", "B-x"],
    },
]


@pytest.fixture
def data(tmp_path):
    """Tokenise the rows in batches of both."""

    def make(max_length: int = 8, **splits: list[dict[str, Any]]) -> CapDataModule:
        folder = tmp_path / "rows"
        folder.mkdir(exist_ok=True)
        for split in ("train", "validation"):
            text = "".join(json.dumps(row) + "\n" for row in splits.get(split, ROWS))
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
        own = {"text_columns": ["tokens"], "label_column": "tags", "label_type": None, "metrics": None}
        task = task_of("tokens", folder, own)
        module = CapDataModule(
            rows=load_rows(task, data_dir=folder, max_train_rows=None, max_eval_rows=None),
            task=task,
            tokenizer=BertTokenizerFast(vocab={piece: number for number, piece in enumerate(PIECES)}),
            tokenizer_key="k",
            max_length=max_length,
            batch_size=2,
            seed=0,
            cache_dir=tmp_path / "cache",
        )
        module.setup()
        return module

    return make


def only_batch(module: CapDataModule) -> dict[str, Any]:
    (batch,) = module.encoding_dataloader()
    order = batch["example_id"].argsort()
    return {name: value[order].tolist() for name, value in batch.items()}


def test_first_piece_of_every_word_carries_its_label_and_nothing_else_does(data):
    batch = only_batch(data(max_length=12))
    pieces = [[PIECES[number] for number in row] for row in batch["input_ids"]]
    assert pieces[0][:7] == ["[CLS]", "the", "cat", "##s", "play", "##ing", "[SEP]"]
    # Labels are B-x, I-x, O.
    assert batch["labels"][0] == [-100, 2, 0, -100, 1, -100, -100, -100, -100]
    assert pieces[1] == ["[CLS]", "cat", "play", "##s", "the", "cat", ".", "cat", "[SEP]"]
    assert batch["labels"][1] == [-100, 0, 2, -100, 2, 0, 2, 0, -100]
    assert batch["is_word"] == [[label != -100 for label in row] for row in batch["labels"]]


def test_words_that_are_cut_off_or_dropped_are_counted_and_have_no_label(data, caplog):
    with caplog.at_level(logging.WARNING):
        batch = only_batch(data(max_length=6))
    # the cat ##s play | cat play ##s the: the whole first row has a piece, the second lacks four words.
    assert batch["labels"] == [[-100, 2, 0, -100, 1, -100], [-100, 0, 2, -100, 2, -100]]
    assert "4 of the 10 words of the split train of folder rows lie beyond max_length" in caplog.text


def test_words_without_a_piece_are_counted_too(data, caplog):
    with caplog.at_level(logging.WARNING):
        data(max_length=12)
    assert "1 of the 10 words of the split train" in caplog.text


def test_there_are_no_labels_of_whole_examples_and_no_classes_to_contrast(data):
    module = data()
    assert module.train_labels is None
    assert module.train_groups is None
    assert (module.n_train, module.n_labelled, module.labelled().n_train) == (2, 2, 2)


def test_majority_gives_every_word_the_commonest_tag_of_the_training_rows(data):
    train = [{"tokens": ["cat", "the", "cat"], "tags": ["B-x", "O", "B-x"]}]
    validation = [{"tokens": ["the", "the", "cat"], "tags": ["O", "O", "B-x"]}]
    # Three entities are given, one is there.
    assert data(train=train, validation=validation).majority() == {"f1": 0.5, "precision": 1 / 3, "recall": 1.0}
    assert data(train=validation, validation=train).majority() == {"f1": 0.0, "precision": 0.0, "recall": 0.0}


def test_lengths_without_room_for_a_word_are_refused(data):
    with pytest.raises(InputError, match=r"must hold a word, and must lie between 3 and .*, got 2"):
        data(max_length=2)


def test_byte_level_tokenizers_get_the_space_that_stands_before_a_word():
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"catdogĠ", "Ġd", "Ġc"]
    roberta = RobertaTokenizerFast(
        vocab={piece: number for number, piece in enumerate(vocabulary)}, merges=[("Ġ", "d"), ("Ġ", "c")]
    )
    assert space_between(roberta) == " "
    assert space_between(BertTokenizerFast(vocab={p: n for n, p in enumerate(PIECES)})) == ""
    assert spaced(["a", "b", "c"], " ") == ["a", " b", " c"]


def test_slow_tokenizers_are_refused():
    from transformers import CanineTokenizer

    from cap.data.words import WordExamples

    task = Task(
        name="tokens",
        kind="tags",
        text_columns=("tokens",),
        label_column="tags",
        labels=("B-x", "O"),
        metrics=("f1",),
        hub_path=None,
        hub_config=None,
    )
    with pytest.raises(InputError, match="a fast tokenizer, which knows the tokens of every word, got CanineTokenizer"):
        WordExamples(task, CanineTokenizer(), max_length=8)
