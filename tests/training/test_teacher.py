from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest


@pytest.fixture
def saved_teacher(tiny_model, tmp_path):
    """Save a classifier from the tiny model with labels of choice, as a user's teacher would be saved."""

    def save(labels: list[str], *, vocabulary: dict[str, int] | None = None) -> Path:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizerFast

        folder = tmp_path / "given"
        model = AutoModelForSequenceClassification.from_pretrained(
            tiny_model,
            num_labels=len(labels),
            id2label=dict(enumerate(labels)),
            label2id={label: i for i, label in enumerate(labels)},
        )
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        if vocabulary is not None:
            tokenizer = BertTokenizerFast(vocab=vocabulary)
        tokenizer.save_pretrained(folder)
        return folder

    return save


def refusal(compose_config, overrides: list[str], folder: Path) -> str:
    from cap.base.errors import InputError
    from cap.train import train

    with pytest.raises(InputError) as caught:
        train(compose_config(*overrides, f"teacher={folder}"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["happy", "sad"], "must have the labels ['negative', 'positive'], got"),
        (["positive", "negative"], "['negative', 'positive'] in this order, got"),
        (["a", "b", "c"], "must have 2 outputs for this task, got folder given with 3"),
        (["negative", "positive"], "at chance level"),
    ],
    ids=["other labels", "other order", "other number", "knows nothing"],
)
def test_given_teacher_that_does_not_fit_is_refused_with_what_is_wrong(
    compose_config, tiny_overrides, saved_teacher, labels, expected
):
    assert expected in refusal(compose_config, tiny_overrides, saved_teacher(labels))


def test_given_teacher_with_another_tokenizer_is_refused(compose_config, tiny_overrides, saved_teacher):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "the", "a", "very"]
    folder = saved_teacher(["negative", "positive"], vocabulary={word: i for i, word in enumerate(words)})
    assert "must share a tokenizer" in refusal(compose_config, tiny_overrides, folder)


def test_given_teacher_without_a_trained_head_is_refused_by_what_it_lacks(
    compose_config, tiny_overrides, saved_teacher, monkeypatch
):
    from safetensors.torch import load_file, save_file

    from cap.training import preparation

    # Whatever its random answers score.
    monkeypatch.setattr(preparation, "is_at_chance", lambda *arguments: False)
    weights = saved_teacher(["negative", "positive"]) / "model.safetensors"
    kept = {name: value for name, value in load_file(weights).items() if not name.startswith("classifier")}
    save_file(kept, weights, {"format": "pt"})
    message = refusal(compose_config, tiny_overrides, weights.parent)
    assert "got folder given without classifier.bias, classifier.weight, so that its answers would be random" in message


@pytest.mark.parametrize("given", ["folder that is missing", "folder without a model", "other labels"])
def test_given_teacher_that_cannot_work_is_refused_before_data_and_folder_are_taken(
    compose_config, tiny_overrides, saved_teacher, tmp_path, monkeypatch, given
):
    from cap.training import preparation

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(preparation, "load_rows", lambda *arguments, **options: pytest.fail("the rows were read"))
    (tmp_path / "empty").mkdir()
    folder = {"folder that is missing": tmp_path / "gone", "folder without a model": tmp_path / "empty"}.get(given)
    message = refusal(compose_config, tiny_overrides, folder or saved_teacher(["happy", "sad"]))
    assert message.removeprefix("the ").startswith("teacher must ")
    assert not (tmp_path / "run").exists()


def test_folder_of_a_start_with_a_teacher_that_knows_nothing_is_free_for_a_better_one(
    compose_config, tiny_overrides, saved_teacher, tmp_path
):
    from cap.train import train

    message = refusal(compose_config, tiny_overrides, saved_teacher(["negative", "positive"]))
    assert "at chance level" in message
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "failed"
    train(compose_config(*tiny_overrides, "trainer.max_steps=1", "contrast=none"))
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "completed"


def test_given_teacher_that_fits_is_used(compose_config, tiny_overrides, tmp_path):
    from cap.finetune import finetune
    from cap.train import train

    finetune(compose_config(*tiny_overrides, "finetune.max_epochs=20"))
    (folder,) = (tmp_path / "cache" / "teachers").glob("[!.]*")
    train(compose_config(*tiny_overrides, f"teacher={folder}"))
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["scores"]["teacher"]["accuracy"] > 0.9


def test_own_teacher_at_chance_is_a_warning_in_log_and_record(compose_config, tiny_overrides, tmp_path, caplog):
    from cap.train import train

    train(compose_config(*tiny_overrides, "finetune.max_steps=1", "finetune.learning_rate=1e-9"))
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert any("teacher stayed at chance level" in warning for warning in record["warnings"])
    assert "teacher stayed at chance level" in caplog.text


def test_damaged_cached_teacher_is_trained_again_and_said(compose_config, tiny_overrides, tmp_path, caplog):
    from cap.finetune import finetune

    caplog.set_level(logging.INFO, logger="cap")
    first = finetune(compose_config(*tiny_overrides))
    (folder,) = (tmp_path / "cache" / "teachers").glob("[!.]*")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert finetune(compose_config(*tiny_overrides)) == first
    assert "is damaged; it is trained again" in caplog.text


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ("sparsity=0.9", True),
        ("pruning=magnitude", True),
        ("trainer.max_epochs=3", True),
        ("data.max_eval_rows=8", True),
        ("seed=2", False),
        ("finetune.learning_rate=2e-3", False),
        ("batch_size=4", False),
        ("data.max_train_rows=16", False),
        ("max_length=8", False),
    ],
)
def test_teacher_is_shared_by_runs_that_would_train_the_same(compose_config, tiny_overrides, tmp_path, change, is_same):
    from cap.finetune import finetune

    finetune(compose_config(*tiny_overrides))
    finetune(compose_config(*tiny_overrides, change))
    assert len(list((tmp_path / "cache" / "teachers").glob("[!.]*"))) == (1 if is_same else 2)


def with_other_dropout(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.4}))


def with_a_head(folder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.nn.init.constant_(model.classifier.weight, 0.1)
    model.save_pretrained(folder)


@pytest.mark.parametrize("change", [with_other_dropout, with_a_head], ids=["other dropout", "a head of its own"])
def test_checkpoint_that_would_train_another_teacher_gets_one_of_its_own(
    compose_config, tiny_overrides, tiny_model, tmp_path, change
):
    import shutil

    from cap.finetune import finetune

    shutil.copytree(tiny_model, tmp_path / "other")
    change(tmp_path / "other")
    finetune(compose_config(*tiny_overrides, "finetune.max_steps=1"))
    finetune(compose_config(*tiny_overrides, "finetune.max_steps=1", f"model.name_or_path={tmp_path / 'other'}"))
    assert len(list((tmp_path / "cache" / "teachers").glob("[!.]*"))) == 2


@pytest.mark.parametrize(
    ("score", "majority", "n_rows", "expected"),
    [
        (0.5, 0.5, 1000, True),
        (0.52, 0.5, 1000, True),
        (0.6, 0.5, 1000, False),
        (0.01, 0.0, 1000, True),
        (0.5, 0.0, 1000, False),
    ],
    ids=["majority", "within two errors", "above", "no correlation", "correlation"],
)
def test_chance_level_is_two_standard_errors_above_the_majority(score, majority, n_rows, expected):
    from cap.training.teacher import is_at_chance

    assert is_at_chance(score, majority, n_rows) is expected


@pytest.fixture
def other_teacher(tiny_model, tmp_path):
    """Save a classifier whose dimensions are not those of the tiny model."""

    def save(**sizes: int) -> Path:
        from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

        config = BertConfig.from_pretrained(tiny_model, **sizes)
        config.id2label, config.label2id = {0: "negative", 1: "positive"}, {"negative": 0, "positive": 1}
        BertForSequenceClassification(config).save_pretrained(tmp_path / "given")
        AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "given")
        return tmp_path / "given"

    return save


def test_given_teacher_of_another_width_is_refused_where_it_is_contrasted(
    compose_config, tiny_overrides, other_teacher
):
    message = refusal(compose_config, tiny_overrides, other_teacher(hidden_size=16, num_attention_heads=2))
    assert "'hidden_size': 32" in message
    assert "'hidden_size': 16" in message


@pytest.mark.parametrize("form", ["pooled", "tokens"])
@pytest.mark.parametrize(
    ("sizes", "expected"),
    [({"hidden_size": 16, "num_attention_heads": 2}, "'hidden_size': 16"), ({"num_hidden_layers": 3}, "_layers': 3")],
    ids=["width", "depth"],
)
def test_given_teacher_of_another_size_is_refused_where_hidden_states_are_compared(
    compose_config, tiny_overrides, other_teacher, form, sizes, expected
):
    overrides = [*tiny_overrides, "contrast=none", "distill.hidden_weight=1", f"distill.hidden={form}"]
    message = refusal(compose_config, overrides, other_teacher(**sizes))
    assert expected in message
    assert len(message.splitlines()) == 1


def reader_config(architecture: str | None, n_outputs: int = 2):
    from transformers import BertConfig

    return BertConfig(
        architectures=None if architecture is None else [architecture],
        id2label={i: f"answer {i}" for i in range(n_outputs)},
        label2id={f"answer {i}": i for i in range(n_outputs)},
    )


@pytest.mark.parametrize("architecture", ["BertForQuestionAnswering", "DistilBertForQuestionAnswering"])
def test_question_answering_teacher_fits_whatever_its_outputs_are_called(architecture):
    from cap.base.kinds import Head
    from cap.training.teacher import check_labels

    assert check_labels(reader_config(architecture), head=Head("span"), name="folder given") is None


@pytest.mark.parametrize(
    ("architecture", "n_outputs", "expected"),
    [
        ("BertForSequenceClassification", 2, r"question-answering model .* \['BertForSequenceClassification'\]"),
        ("BertModel", 2, r"question-answering model .* \['BertModel'\]"),
        (None, 2, r"question-answering model .* with \[\]"),
        ("BertForQuestionAnswering", 3, "must have 2 outputs for this task, got folder given with 3"),
    ],
    ids=["classifier of two classes", "no head", "no architecture", "other number"],
)
def test_teacher_that_does_not_point_to_answers_is_refused(architecture, n_outputs, expected):
    from cap.base.errors import InputError
    from cap.base.kinds import Head
    from cap.training.teacher import check_labels

    with pytest.raises(InputError, match=expected):
        check_labels(reader_config(architecture, n_outputs), head=Head("span"), name="folder given")
