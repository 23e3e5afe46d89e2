"""``python -m cap.evaluate`` from the door to predictions.csv."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cases import cases
from tests.data.questions import QUESTIONS, question_columns

NAMES = ["negative", "positive"]


def compose(*overrides: str):
    import cap.evaluate  # noqa: F401 - registers its schema
    from tests.composing import composer

    return composer("evaluate")(*overrides)


def predictions(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def evaluated(tiny_data, tmp_path) -> Callable[..., tuple[dict[str, Any], list[dict[str, str]]]]:
    """Score a model on the tiny sentences; return the record and the rows of predictions.csv."""

    def run(model: Path | str, *overrides: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
        from cap.evaluate import evaluate

        common = [f"data_dir={tiny_data}", f"cache_dir={tmp_path / 'cache'}", "accelerator=cpu", "max_length=32"]
        cfg = compose(f"model_dir={model}", "task=sst2", *common, f"output_dir={tmp_path / 'out'}", *overrides)
        evaluate(cfg)
        folder = Path(cfg.output_dir)
        return json.loads((folder / "record.json").read_text(encoding="utf-8")), predictions(folder)

    return run


@pytest.fixture
def saved(tiny_model, tmp_path) -> Callable[..., Path]:
    """Save a model with a random head from the tiny one, as somebody would who has fine-tuned it."""

    def save(labels: list[str] | None = None, *, auto: str = "SequenceClassification", n_outputs: int = 2) -> Path:
        import torch
        import transformers

        torch.manual_seed(7)
        names = [f"LABEL_{i}" for i in range(n_outputs)] if labels is None else labels
        model = getattr(transformers, f"AutoModelFor{auto}").from_pretrained(
            tiny_model,
            num_labels=len(names),
            id2label=dict(enumerate(names)),
            label2id={n: i for i, n in enumerate(names)},
        )
        folder = tmp_path / "given"
        model.save_pretrained(folder)
        transformers.AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
        return folder

    return save


def swapped(folder: Path) -> Path:
    """Save the same two-class model with its outputs, and their names, the other way round."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.classifier.weight.data = model.classifier.weight.data.flip(0)
    model.classifier.bias.data = model.classifier.bias.data.flip(0)
    first, second = model.config.id2label[0], model.config.id2label[1]
    model.config.id2label, model.config.label2id = {0: second, 1: first}, {second: 0, first: 1}
    other = folder.parent / "swapped"
    shutil.copytree(folder, other)
    model.save_pretrained(other)
    return other


def refusal(run: Callable[[], Any]) -> str:
    from cap.base.errors import InputError

    with pytest.raises(InputError) as caught:
        run()
    return str(caught.value)


def test_record_says_what_was_scored_on_what(evaluated, saved):
    record, _ = evaluated(saved(NAMES))
    assert (record["status"], record["kind"], record["model"]) == ("completed", "evaluation", "folder given")
    assert record["data"]["n_rows"] == {"validation": 16}
    assert record["data"]["source"] == "folder sst2"
    assert record["scores"]["majority"] == {"accuracy": 0.5}
    assert record["metric"] == "accuracy"
    assert record["environment"]["torch"]
    assert set(record["seconds"]) == {"load", "data", "predict", "total"}
    assert record["warnings"] == []


def test_score_is_that_of_the_predictions_which_have_every_row_once_and_in_order(evaluated, saved, tiny_data):
    record, rows = evaluated(saved(NAMES), "data.eval_batch_size=5")
    given = [json.loads(line) for line in (tiny_data / "validation.jsonl").read_text().splitlines()]
    assert list(rows[0]) == ["example_id", "label", "prediction", "p_negative", "p_positive"]
    assert [int(row["example_id"]) for row in rows] == list(range(16))
    assert [row["label"] for row in rows] == [NAMES[row["label"]] for row in given]
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert record["scores"]["model"]["accuracy"] == pytest.approx(right / 16)


def test_predictions_are_those_of_stock_transformers_one_by_one(evaluated, saved, tiny_data):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = saved(NAMES)
    _, rows = evaluated(folder)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    given = [json.loads(line)["sentence"] for line in (tiny_data / "validation.jsonl").read_text().splitlines()]
    with torch.no_grad():
        expected = [model(**tokenizer(text, return_tensors="pt")).logits.softmax(dim=1)[0, 1].item() for text in given]
    assert [float(row["p_positive"]) for row in rows] == pytest.approx(expected, abs=1e-5)


def test_only_the_first_rows_are_scored_if_asked_so(evaluated, saved):
    record, rows = evaluated(saved(NAMES), "data.max_eval_rows=6")
    assert len(rows) == 6
    assert record["data"]["n_rows"] == {"validation": 6}


def test_training_rows_are_not_tokenised(evaluated, saved, tmp_path):
    evaluated(saved(NAMES))
    assert len(list((tmp_path / "cache" / "tokenised").glob("*/files.json"))) == 1


@pytest.mark.parametrize("labels", [NAMES, ["NEGATIVE", "Positive"]], ids=["same", "other case"])
def test_labels_in_the_same_order_need_no_word(evaluated, saved, labels):
    assert evaluated(saved(labels))[0]["warnings"] == []


def test_labels_in_another_order_are_matched_by_name(evaluated, saved, tmp_path):
    folder = saved(NAMES)
    record, rows = evaluated(folder)
    other, other_rows = evaluated(swapped(folder), f"output_dir={tmp_path / 'other'}")
    assert other_rows == rows
    assert other["scores"] == record["scores"]
    assert "matched by name" in other["warnings"][0]


def test_labels_without_names_are_taken_in_order_with_a_warning(evaluated, saved):
    record, _ = evaluated(saved())
    assert record["warnings"] == [
        "folder given does not name its labels; they are taken to be ['negative', 'positive'] in this order."
    ]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["happy", "sad"], "the labels ['negative', 'positive'], got folder given with ['happy', 'sad']"),
        (["negative", "negative2"], "got folder given with ['negative', 'negative2']"),
        (["a", "b", "c"], "with 2 outputs for this task, got folder given with 3"),
    ],
    ids=["other labels", "one other label", "other number"],
)
def test_labels_of_another_task_are_refused(evaluated, saved, labels, expected):
    assert expected in refusal(lambda: evaluated(saved(labels)))


def test_model_without_a_head_is_refused_and_nothing_is_written(evaluated, tiny_model, tmp_path):
    message = refusal(lambda: evaluated(tiny_model))
    assert "with a head for it (...ForSequenceClassification), got folder model with BertModel" in message
    assert not (tmp_path / "out").exists()


def test_model_that_claims_a_head_whose_weights_are_missing_is_refused(evaluated, saved):
    from safetensors.torch import load_file, save_file

    folder = saved(NAMES)
    weights = load_file(folder / "model.safetensors")
    left = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier")}
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    assert (
        "got folder given without classifier.bias, classifier.weight, so that its answers would be random"
        in refusal(lambda: evaluated(folder))
    )


def test_model_of_no_named_architecture_is_judged_by_its_weights(evaluated, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "bare")
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    (tmp_path / "bare" / "config.json").write_text(json.dumps({**config, "architectures": None}))
    assert "without classifier.bias, classifier.weight" in refusal(lambda: evaluated(tmp_path / "bare"))


def test_loading_neither_reads_nor_changes_the_global_seed(saved):
    import torch

    from cap.base.kinds import Head
    from cap.formats.scored import load_scored, saved_model

    source = saved_model(str(saved(NAMES)))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    load_scored(source, Head("classes", tuple(NAMES)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture
def export(tmp_path) -> Callable[[Path, str], Path]:
    """Save a plain model again as an export of a format."""

    def save(folder: Path, kind: str) -> Path:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        from cap.formats.compact import compact, save_compact
        from cap.formats.sparse import save_sparse

        model = AutoModelForSequenceClassification.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        (tmp_path / kind).mkdir()
        write = {
            "compact": lambda: save_compact(compact(model).model, tokenizer, tmp_path / kind),
            "sparse": lambda: save_sparse(model, tokenizer, tmp_path / kind),
        }
        write[kind]()
        return tmp_path / kind

    return save


@pytest.mark.parametrize("kind", ["compact", "sparse"])
def test_export_gets_the_predictions_of_the_model_it_was_made_from(evaluated, saved, export, tmp_path, kind):
    from safetensors.torch import load_file, save_file

    folder = saved(NAMES)
    weights = load_file(folder / "model.safetensors")
    weights["bert.encoder.layer.0.intermediate.dense.weight"][10:50] = 0.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    plain = [float(row["p_positive"]) for row in evaluated(folder)[1]]
    record, rows = evaluated(export(folder, kind), f"output_dir={tmp_path / 'of export'}")
    assert record["model"] == f"folder {kind}"
    assert [float(row["p_positive"]) for row in rows] == pytest.approx(plain, abs=1e-5)


@pytest.mark.parametrize("kind", ["compact", "sparse"])
def test_export_of_a_model_for_another_task_is_refused(evaluated, saved, export, kind):
    folder = export(saved(["happy", "sad"]), kind)
    assert f"got folder {kind} with ['happy', 'sad']" in refusal(lambda: evaluated(folder))


def test_numbers_are_predicted_without_probabilities(evaluated, saved, tmp_path):
    folder = tmp_path / "stsb"
    folder.mkdir()
    lines = [json.dumps({"sentence1": "the film", "sentence2": "a book is good", "label": i / 2}) for i in range(9)]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    record, rows = evaluated(saved(n_outputs=1), "task=stsb", f"data_dir={folder}")
    assert set(record["scores"]["model"]) == {"pearson", "spearman"}
    assert list(rows[0]) == ["example_id", "label", "prediction"]
    assert [row["label"] for row in rows[:3]] == ["0.0", "0.5", "1.0"]


def test_several_splits_have_a_column_and_scores_of_their_own(evaluated, saved, tmp_path):
    folder = tmp_path / "mnli"
    folder.mkdir()
    for split, n_rows in (("train", 5), ("validation_matched", 4), ("validation_mismatched", 3)):
        lines = [json.dumps({"premise": "the film", "hypothesis": "a book", "label": i % 3}) for i in range(n_rows)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    record, rows = evaluated(saved(["entailment", "neutral", "contradiction"]), "task=mnli", f"data_dir={folder}")
    assert set(record["scores"]["model"]) == {"accuracy", "accuracy_mismatched"}
    assert [row["split"] for row in rows] == ["validation_matched"] * 4 + ["validation_mismatched"] * 3
    assert list(rows[0])[:2] == ["example_id", "split"]


def test_task_of_ones_own_is_read_with_its_keys(evaluated, saved, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for split in ("train", "validation"):
        lines = [json.dumps({"words": f"the film is {word}", "mood": word}) for word in ("bad", "good", "good")]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    keys = ["task.text_columns=[words]", "task.label_column=mood"]
    record, rows = evaluated(saved(["bad", "good"]), "task=custom", f"data_dir={folder}", *keys)
    assert [row["label"] for row in rows] == ["bad", "good", "good"]
    assert record["scores"]["majority"]["accuracy"] == pytest.approx(2 / 3)


def written(folder: Path, split: str, rows: list[dict[str, Any]]) -> Path:
    """Write rows as json lines."""
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def moods(*labels: Any, **others: Any) -> list[dict[str, Any]]:
    return [
        {"text": f"the film is {word}", "label": label, **others} for label, word in zip(labels, MOODS, strict=False)
    ]


MOODS = ["good", "bad", "good", "very bad", "very good", "a book", "the music", "a film", "the actors"]


# The labels of the model, and those of five rows.
ALIKE = {
    "names": (["bad", "good"], ["good", "bad", "good", "bad", "good"], ["good", "bad", "good", "bad", "good"]),
    "other order": (["good", "bad"], ["good", "bad", "good", "bad", "good"], ["good", "bad", "good", "bad", "good"]),
    "other case": (["BAD", "Good"], ["good", "bad", "good", "bad", "good"], ["good", "bad", "good", "bad", "good"]),
    "numbers": (["0", "1"], [1, 0, 1, 0, 1], ["1", "0", "1", "0", "1"]),
    "case alone": (
        ["good", "Good"],
        ["good", "Good", "good", "Good", "good"],
        ["good", "Good", "good", "Good", "good"],
    ),
    "own names": (
        ["LABEL_0", "LABEL_1"],
        ["LABEL_1", "LABEL_0", "LABEL_1", "LABEL_0", "LABEL_1"],
        ["LABEL_1", "LABEL_0", "LABEL_1", "LABEL_0", "LABEL_1"],
    ),
    "no names": (["LABEL_0", "LABEL_1"], [1, 0, 1, 0, 1], ["LABEL_1", "LABEL_0", "LABEL_1", "LABEL_0", "LABEL_1"]),
}


@pytest.mark.parametrize(("names", "labels", "expected"), cases(ALIKE, daily=["other case", "no names"]))
def test_rows_are_scored_without_training_rows_by_the_labels_of_the_model(
    evaluated, saved, tmp_path, names, labels, expected
):
    alone = written(tmp_path / "alone", "test", moods(*labels))
    keys = ["task=custom", f"data_dir={alone}", "data.split=test"]
    record, rows = evaluated(saved(names), *keys)
    assert [row["label"] for row in rows] == expected
    right = [row["label"] == row["prediction"] for row in rows]
    assert record["scores"]["model"]["accuracy"] == pytest.approx(sum(right) / 5)
    assert record["scores"]["majority"]["accuracy"] == pytest.approx(3 / 5)
    assert record["data"]["n_rows"] == {"test": 5}
    (note,) = record["warnings"]
    assert note.startswith("There are no training rows: labels are the model's, and scores.majority is counted from")
    assert note.endswith(f"f1 is that of {list(rows[0])[-1].removeprefix('p_')}.")


def test_another_split_is_scored_beside_training_rows_whose_majority_counts(evaluated, saved, tmp_path):
    folder = written(tmp_path / "mine", "train", moods("bad", "bad", "bad", "good"))
    written(folder, "test", moods("good", "bad", "good"))
    keys = ["task=custom", f"data_dir={folder}", "data.split=test"]
    record, rows = evaluated(saved(["bad", "good"]), *keys)
    assert len(rows) == 3
    assert record["scores"]["majority"]["accuracy"] == pytest.approx(1 / 3)
    assert record["warnings"] == []
    message = refusal(lambda: evaluated(saved(["bad", "good"]), *keys[:-1]))
    assert "data_dir needs a file for the split validation" in message
    assert message.endswith("correct the path, or let cap.evaluate score another one: data.split=test")


def test_rows_of_a_known_task_are_scored_without_training_rows(evaluated, saved, tiny_data, tmp_path):
    model, alone = saved(NAMES), tmp_path / "alone"
    alone.mkdir()
    (file,) = tiny_data.glob("validation.*")
    shutil.copy(file, alone / file.name.replace("validation", "test"))
    record, rows = evaluated(model, f"data_dir={alone}", "data.split=test")
    other, same = evaluated(model, f"output_dir={tmp_path / 'other'}")
    assert rows == same
    assert record["scores"]["model"] == other["scores"]["model"]


def test_number_of_a_model_needs_no_training_rows(evaluated, saved, tmp_path):
    folder = written(tmp_path / "alone", "validation", moods(0.5, 1.5, 2.0, 2.5))
    record, rows = evaluated(saved(["LABEL_0"]), "task=custom", f"data_dir={folder}")
    assert set(record["scores"]["model"]) == {"pearson", "spearman"}
    assert list(rows[0]) == ["example_id", "label", "prediction"]
    assert record["warnings"] == []


def test_sets_of_labels_need_no_training_rows(evaluated, saved, tmp_path):
    from transformers import AutoConfig

    model = saved(["arts", "news", "sport"])
    config = AutoConfig.from_pretrained(model)
    config.problem_type = "multi_label_classification"
    config.save_pretrained(model)
    folder = written(tmp_path / "alone", "validation", moods(["news"], [], ["arts", "sport"]))
    record, rows = evaluated(model, "task=custom", f"data_dir={folder}")
    assert set(record["scores"]["model"]) == {"micro_f1", "macro_f1"}
    assert [row["label"] for row in rows] == ["news", "", "arts | sport"]


def test_tags_need_no_training_rows(evaluated, saved, tmp_path):
    rows = [{"tokens": ["the", "film", "is", "good"], "tags": ["O", "B-thing", "O", "O"]}]
    folder = written(tmp_path / "alone", "test", rows)
    model = saved(["B-thing", "I-thing", "O"], auto="TokenClassification")
    record, predicted = evaluated(model, "task=tokens", f"data_dir={folder}", "data.split=test")
    assert set(record["scores"]["model"]) == {"f1", "precision", "recall"}
    assert len(predicted) == 4
    written(folder, "test", [{**rows[0], "tags": ["O", "B-mood", "O", "O"]}])
    message = refusal(lambda: evaluated(model, "task=tokens", f"data_dir={folder}", "data.split=test"))
    assert "every tag must be among those that the model gives (B-thing, I-thing, O), got 'B-mood'" in message


def test_pairs_need_no_training_rows(evaluated, tiny_model, tmp_path):
    pairs = [{"sentence1": f"the film is {word}", "sentence2": "the film", "score": i} for i, word in enumerate(MOODS)]
    folder = written(tmp_path / "alone", "test", pairs)
    keys = ["task=embed", f"data_dir={folder}", "data.split=test", "task.label_column=score"]
    record, rows = evaluated(tiny_model, *keys)
    assert set(record["scores"]["model"]) == {"spearman"}
    assert len(rows) == len(pairs)


UNLIKE = {
    "unknown": (
        ["bad", "good"],
        ["bad", "odd"],
        "every label must be among those of folder given (bad, good), got 'odd' in row 1",
    ),
    "numbers for names": (
        ["entailment", "neutral", "contradiction"],
        [0, 1, 2],
        "which number is which class only training rows tell: folder given has the labels entailment, neutral, ",
    ),
    "words for no names": (
        ["LABEL_0", "LABEL_1"],
        ["bad", "good"],
        "folder given does not name its labels, so that rows without training rows must give their numbers, 0 to 1, "
        "got 'bad' in row 0",
    ),
    "number for no names": (["LABEL_0", "LABEL_1"], [0, 2], "must be 0 (LABEL_0), 1 (LABEL_1), got 2 in row 1"),
    "one output": (["LABEL_0"], [0.5, 0.5], "numbers are scored by correlations, which need two different ones"),
}


@pytest.mark.parametrize(("names", "labels", "expected"), cases(UNLIKE, daily=["unknown", "numbers for names"]))
def test_labels_that_the_model_does_not_have_are_refused(evaluated, saved, tmp_path, names, labels, expected):
    folder = written(tmp_path / "alone", "validation", moods(*labels))
    assert expected in refusal(lambda: evaluated(saved(names), "task=custom", f"data_dir={folder}"))


def test_classes_of_a_model_with_one_output_are_refused(evaluated, saved, tmp_path):
    folder = written(tmp_path / "alone", "validation", moods(0, 1))
    keys = ["task=custom", f"data_dir={folder}", "task.label_type=classes"]
    message = refusal(lambda: evaluated(saved(["LABEL_0"]), *keys))
    assert "whose id2label does: two or more different ones, got folder given with ['LABEL_0']" in message


def test_a_model_without_the_head_is_refused_before_its_labels_are_compared(evaluated, tiny_model, tmp_path):
    rows = [{"tokens": ["the", "film"], "tags": ["O", "B-thing"]}]
    folder = written(tmp_path / "alone", "test", rows)
    message = refusal(lambda: evaluated(tiny_model, "task=tokens", f"data_dir={folder}", "data.split=test"))
    assert "with a head for it (...ForTokenClassification)" in message


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", "data.split names rows that were held out, got train"),
        ("../test", "data.split is a file's name in data_dir without its suffix, or a split, got '../test'"),
        ("tset", "data_dir needs a file for the split tset"),
    ],
)
def test_split_that_cannot_be_scored_is_refused(evaluated, saved, split, expected):
    assert expected in refusal(lambda: evaluated(saved(NAMES), f"data.split={split}"))


def test_split_that_the_docstrings_lack_is_refused(evaluated, saved):
    keys = ["task=docstrings", "data_dir=null", "data.split=test"]
    message = refusal(lambda: evaluated(saved(["does_not_belong", "belongs"]), *keys))
    assert "task=docstrings has the splits train, validation, got test; leave data.split out" in message


def test_questions_get_the_text_that_answers_them(evaluated, saved, tmp_path):
    folder, columns = tmp_path / "questions", question_columns()
    folder.mkdir()
    lines = [json.dumps(dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    keys = ["task=squad", f"data_dir={folder}", "max_length=64", "task.stride=8"]
    record, rows = evaluated(saved(auto="QuestionAnswering"), *keys)
    assert set(record["scores"]["model"]) == {"f1", "exact_match"}
    assert [row["label"] for row in rows] == [" | ".join(texts) for _, _, texts in QUESTIONS]
    assert all(row["prediction"] in context for row, (_, context, _) in zip(rows, QUESTIONS, strict=True))
    assert any(row["prediction"] for row in rows)


def test_classifier_is_refused_where_answers_are_spans(evaluated, saved):
    message = refusal(lambda: evaluated(saved(), "task=squad", "task.stride=8"))
    assert "ForQuestionAnswering), got folder given with BertForSequenceClassification" in message


def test_default_folder_is_named_by_what_changes_the_answers(saved, tiny_data, tmp_path, monkeypatch):
    from cap.evaluate import evaluate

    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved(NAMES), tmp_path / "renamed")
    common = ["task=sst2", f"data_dir={tiny_data}", "accelerator=cpu", "cache_dir=cache"]

    def folders_after(*overrides: str) -> set[str]:
        evaluate(compose(*common, *overrides))
        return {path.name for path in Path("outputs/evaluate/sst2").glob("[!.]*")}

    first = folders_after("model_dir=given", "max_length=32")
    assert folders_after("model_dir=renamed", "max_length=32", "data.eval_batch_size=3") == first
    assert len(folders_after("model_dir=given", "max_length=9")) == 2


def test_folder_that_holds_something_else_is_refused_and_left_alone(evaluated, saved, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert "choose another output_dir" in refusal(lambda: evaluated(saved(NAMES)))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_evaluation_that_breaks_off_leaves_a_record_that_does_not_look_complete_and_can_be_repeated(
    evaluated, saved, tmp_path, monkeypatch
):
    from cap.formats import evaluate_phases

    folder = saved(NAMES)
    with monkeypatch.context() as patch:
        patch.setattr(evaluate_phases, "predict", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluated(folder)
    assert json.loads((tmp_path / "out" / "record.json").read_text())["status"] == "interrupted"
    assert evaluated(folder)[0]["status"] == "completed"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model_dir=null"], "model_dir must be a folder with a saved model, or a Hub name, got none"),
        (["max_length=0"], "max_length must be at least 1, got 0"),
        (["max_length=1000"], "max_length counts tokens and can be at most 128 for this model, got 1000"),
        (["data.max_eval_rows=0"], "data.max_eval_rows must be at least 1, got 0"),
        (["data.eval_batch_size=0"], "data.eval_batch_size must be at least 1, got 0"),
        (["task.label_column=mood"], "or task=embed, got task.label_column=mood with task=sst2"),
        (["task.stride=3"], "task.stride belongs to tasks whose answers are spans"),
        (["task.name=mprc"], "task must be one of mrpc"),
        (["accelerator=abacus"], "accelerator must be what Lightning's Trainer takes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_input_that_cannot_work_is_refused(evaluated, saved, overrides, expected):
    assert expected in refusal(lambda: evaluated(saved(NAMES), *overrides))


def test_all_broken_rules_are_named_at_once(evaluated):
    message = refusal(lambda: evaluated("nowhere", "max_length=0", "data.max_eval_rows=0"))
    assert len(message.splitlines()) == 2


LENGTHS = {
    "of the run": ("model", {"config": {"max_length": 9}}, ["max_length=null"], 9),
    "of the run that kept a level": ("levels/0.5", {"config": {"max_length": 9}}, ["max_length=null"], 9),
    "asked for": ("model", {"config": {"max_length": 9}}, ["max_length=12"], 12),
    "of the task, beside another record": ("model", {"kind": "evaluation"}, ["max_length=null"], 128),
    "of the task": ("model", None, ["max_length=null"], 128),
    "of the run that was pushed": ("model", {"config": {"max_length": 9}}, ["max_length=null"], 9),
}


@pytest.mark.parametrize(("place", "record", "overrides", "expected"), LENGTHS.values(), ids=LENGTHS)
def test_rows_are_read_as_long_as_the_run_read_them(
    request, evaluated, saved, tmp_path, place, record, overrides, expected
):
    folder = tmp_path / "run" / place
    folder.parent.mkdir(parents=True)
    saved(NAMES).rename(folder)
    if record is not None:
        beside = folder if "pushed" in request.node.callspec.id else tmp_path / "run"
        (beside / "record.json").write_text(json.dumps(record))
    found, _ = evaluated(folder, *overrides)
    assert found["config"]["max_length"] == expected


def test_an_export_is_read_as_its_run_was_whatever_lies_above_it(evaluated, saved, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.json").write_text(json.dumps({"config": {"max_length": 64}}))
    folder = saved(NAMES).rename(tmp_path / "run" / "compact")
    (folder / "export.json").write_text(json.dumps({"reads": {"max_length": 9, "stride": None}}))
    found, _ = evaluated(folder, "max_length=null")
    assert found["config"]["max_length"] == 9


STRIDES = {
    "of the run": ({"config": {"max_length": 64, "task": {"stride": 8}}}, [], 8),
    "asked for": ({"config": {"max_length": 64, "task": {"stride": 8}}}, ["task.stride=4"], 4),
    "of the task": (None, ["max_length=256"], 128),
}


@pytest.mark.parametrize(("record", "overrides", "expected"), STRIDES.values(), ids=STRIDES)
def test_windows_share_as_much_as_those_of_the_run(tmp_path, record, overrides, expected):
    from cap.config.evaluate import check_evaluate
    from cap.data.tasks import get_task
    from cap.formats import evaluate_phases as phases

    (tmp_path / "model").mkdir()
    if record is not None:
        (tmp_path / "record.json").write_text(json.dumps(record))
    config, _ = check_evaluate(compose("task=squad", f"model_dir={tmp_path / 'model'}", *overrides))
    reading = phases.reading_of_run(tmp_path / "model")
    assert phases._stride(config, get_task("squad"), reading, typed=overrides) == expected


def test_a_teacher_in_the_cache_says_how_it_reads(tmp_path):
    from cap.formats.evaluate_phases import reading_of_run
    from cap.runs.folder import Reading

    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "teacher.json").write_text(json.dumps({"reads": {"max_length": 256, "stride": 16}}))
    assert reading_of_run(tmp_path / "key") == Reading(256, 16)


def test_folder_of_a_run_is_refused_with_the_model_in_it(evaluated, saved, tmp_path):
    (tmp_path / "run").mkdir()
    saved(NAMES).rename(tmp_path / "run" / "model")
    assert f"which is the folder of a run; give model_dir={tmp_path / 'run' / 'model'}" in refusal(
        lambda: evaluated(tmp_path / "run")
    )


def test_file_is_refused(evaluated, saved):
    assert "give the folder it lies in" in refusal(lambda: evaluated(saved(NAMES) / "model.safetensors"))


def test_damaged_weights_are_one_message(evaluated, saved):
    folder = saved(NAMES)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert "the model must be a whole folder saved by transformers" in refusal(lambda: evaluated(folder))


def test_command_ends_with_one_message_and_exit_code_2(tmp_path, monkeypatch, capsys):
    from cap.evaluate import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cap.evaluate", "task=sst2"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: model_dir must be a folder")
