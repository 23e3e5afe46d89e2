from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
        (["happy", "sad"], "a model with the labels ['negative', 'positive'], got"),
        (["no", "yes"], "rename them: in the rows, or in id2label of the model's config.json"),
        (["a", "b", "c"], "with 2 outputs for this task, got folder given with 3"),
        (["negative", "positive"], "at chance level"),
    ],
    ids=["other labels", "labels that may mean the same", "other number", "knows nothing"],
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

    from cap.training import teacher

    # Whatever its random answers score.
    monkeypatch.setattr(teacher, "is_at_chance", lambda *arguments, **options: False)
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


def swap_outputs(folder: Path) -> None:
    """Put the outputs of a saved classifier of two classes, and their names, into the other order."""
    from safetensors.torch import load_file, save_file

    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    tensors = load_file(weights)
    swapped = {name: value.flip(0) if name.startswith("classifier") else value for name, value in tensors.items()}
    save_file(swapped, weights, {"format": "pt"})
    names = [config["id2label"]["1"], config["id2label"]["0"]]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))


def test_given_teacher_with_its_labels_in_another_order_is_matched_by_name(compose_config, tiny_overrides, tmp_path):
    import shutil

    from cap.finetune import finetune
    from cap.train import train

    finetune(compose_config(*tiny_overrides, "finetune.max_epochs=20"))
    (made,) = (tmp_path / "cache" / "teachers").glob("[!.]*")
    shutil.copytree(made, tmp_path / "swapped")
    swap_outputs(tmp_path / "swapped")
    scores = []
    for teacher in (made, tmp_path / "swapped"):
        # The model itself is the swapped one, too: its student begins with what its outputs mean.
        start = [f"teacher={teacher}", f"model.name_or_path={teacher}", "learning_rate=1e-12", "sparsity=0.0"]
        folder = tmp_path / f"run of {teacher.name}"
        train(compose_config(*tiny_overrides, *start, "trainer.max_steps=1", f"output_dir='{folder}'"))
        record = json.loads((folder / "record.json").read_text())
        scores.append((record["scores"]["teacher"]["accuracy"], record["scores"]["pruned"]["accuracy"]))
    assert scores[0] == scores[1]
    assert scores[0][1] > 0.9
    said = "has its labels in the order ['positive', 'negative']; its outputs are matched by name."
    assert any(said in warning for warning in record["warnings"])


@pytest.fixture
def other_teacher(tiny_model, tmp_path):
    """Save a classifier whose dimensions are not those of the tiny model."""

    def save(**sizes: Any) -> Path:
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


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_attention_heads", 2),
        ("hidden_act", "relu"),
        ("layer_norm_eps", 1e-5),
        ("type_vocab_size", 3),
        ("max_position_embeddings", 200),
    ],
)
def test_given_teacher_that_reads_its_weights_otherwise_is_no_start(
    compose_config, tiny_overrides, other_teacher, setting, value
):
    overrides = [*tiny_overrides, "student_init=teacher"]
    message = refusal(compose_config, overrides, other_teacher(**{setting: value}))
    assert f"got folder given with {{'{setting}': {value!r}}}" in message
    assert "student_init=pretrained takes such a teacher" in message


def test_given_teacher_of_another_dropout_is_a_start(tiny_model):
    from transformers import AutoConfig

    from cap.training.given_teacher import check_size

    student, teacher = (AutoConfig.from_pretrained(tiny_model, hidden_dropout_prob=rate) for rate in (0.1, 0.2))
    student.finetuning_task = "sst2"  # a key that no family defines
    assert check_size(teacher, student, is_encoded=True, is_start=True, is_compared=True, name="it") is None


def test_given_teacher_that_reads_shorter_texts_is_refused(compose_config, tiny_overrides, other_teacher):
    overrides = [*tiny_overrides, "student_init=pretrained"]
    message = refusal(compose_config, overrides, other_teacher(max_position_embeddings=9))
    assert "got folder given, which reads 9, for max_length=" in message


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
    from cap.training.given_teacher import check_labels

    assert check_labels(reader_config(architecture), head=Head("span"), name="folder given") is None


@pytest.mark.parametrize(
    ("architecture", "n_outputs", "expected"),
    [
        ("BertForSequenceClassification", 2, r"question-answering model .* \['BertForSequenceClassification'\]"),
        ("BertModel", 2, r"question-answering model .* \['BertModel'\]"),
        (None, 2, r"question-answering model .* with \[\]"),
        ("BertForQuestionAnswering", 3, "with 2 outputs for this task, got folder given with 3"),
    ],
    ids=["classifier of two classes", "no head", "no architecture", "other number"],
)
def test_teacher_that_does_not_point_to_answers_is_refused(architecture, n_outputs, expected):
    from cap.base.errors import InputError
    from cap.base.kinds import Head
    from cap.training.given_teacher import check_labels

    with pytest.raises(InputError, match=expected):
        check_labels(reader_config(architecture, n_outputs), head=Head("span"), name="folder given")


def test_teacher_of_words_must_answer_for_tokens():
    from cap.base.errors import InputError
    from cap.base.kinds import Head
    from cap.training.given_teacher import check_labels

    head = Head("tags", ("answer 0", "answer 1"))
    assert check_labels(reader_config("BertForTokenClassification"), head=head, name="folder given") is None
    with pytest.raises(InputError, match="must be a classifier of tokens for this task, got folder given"):
        check_labels(reader_config("BertForSequenceClassification"), head=head, name="folder given")
