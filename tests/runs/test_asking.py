"""The lines that ask a saved model, run as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from cap.data.words import space_between
from cap.runs.asking import asked, described
from tests.formats.made_tokenizers import byte_bpe
from tests.models.tiny_models import tiny_classifier, tiny_tokenizer

LONG = "a " * 100  # more words than the model has positions
CLASSES = {
    "classes": AutoModelForSequenceClassification,
    "label_sets": AutoModelForSequenceClassification,
    "number": AutoModelForSequenceClassification,
    "span": AutoModelForQuestionAnswering,
    "tags": AutoModelForTokenClassification,
}


class Session:
    """Answer as an onnxruntime session does."""

    def __init__(self, model) -> None:
        self.model = model

    def run(self, names: None, inputs: dict[str, Any]) -> list[Any]:
        with torch.no_grad():
            output = self.model(**{name: torch.from_numpy(value) for name, value in inputs.items()})
        return [value.numpy() for value in output.to_tuple()]


@pytest.fixture
def answers(tmp_path: Path):
    """Run the lines of a kind of answers; return what they leave, and the model."""

    def run(kind: Any, columns: list[str], of: Any) -> tuple[dict[str, Any], Any]:
        torch.manual_seed(0)
        config = tiny_classifier(num_labels=1 if kind == "number" else 2).config
        model = CLASSES[kind].from_config(config).eval()
        model.save_pretrained(tmp_path)
        names = {"model": model, "session": Session(model), "tokenizer": tiny_tokenizer(), "AutoConfig": AutoConfig}
        lines = asked(described(kind, columns), max_length=16, of=of).format(folder=tmp_path)
        exec(lines, names)
        return names, model

    return run


@pytest.mark.parametrize("of", ["model", "session"])
@pytest.mark.parametrize("kind", CLASSES)
def test_lines_answer_a_text_that_is_too_long(answers, kind: str, of: str) -> None:
    names, _ = answers(kind, ["question", LONG] if kind == "span" else [LONG], of)
    if kind == "span":
        assert names["start"].shape == names["end"].shape == (1, 16)
        return
    found = names["answers"]
    assert {
        "classes": lambda: found in (["LABEL_0"], ["LABEL_1"]),
        "label_sets": lambda: set(found[0]) <= {"LABEL_0", "LABEL_1"},
        "number": lambda: isinstance(found[0], float),
        "tags": lambda: len(found) == 5 and set(found) <= {"LABEL_0", "LABEL_1"},
    }[kind]()


def test_lists_of_words_are_given_to_a_tokenizer_as_the_model_was_trained_on_them() -> None:
    tokenizer = byte_bpe()
    lines = asked(described("tags", ["words"], between=space_between(tokenizer)), max_length=32, of="model")
    names: dict[str, Any] = {"tokenizer": tokenizer}
    exec(lines.splitlines()[1], names)
    assert names["inputs"]["input_ids"].tolist() == [tokenizer("the words of a text")["input_ids"]]
    assert asked(described("tags", ["words"]), max_length=32, of="model") != lines


def test_two_columns_are_a_pair_and_their_names_do_no_harm(answers) -> None:
    names, model = answers("classes", ['sentence"1', "{two}"], "model")
    assert names["inputs"]["token_type_ids"].sum() > 0
    assert names["answers"] == [model.config.id2label[int(names["logits"].argmax())]]


@pytest.mark.parametrize("asks", [None, described("encoding", ["text"])], ids=["an old record", "encodings"])
def test_what_has_no_lines_of_its_own_gets_none(asks: Any) -> None:
    assert asked(asks, max_length=16, of="model") == ""
