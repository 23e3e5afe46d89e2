from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def run_custom(compose_config, tiny_overrides, tmp_path):
    """Run task=custom on what a test writes into the folder; return the record and the saved model's configuration."""

    def run(*overrides: str) -> tuple[dict, dict]:
        from cap.train import train

        base = [override for override in tiny_overrides if not override.startswith(("task=", "data_dir="))]
        cfg = compose_config("task=custom", f"data_dir={tmp_path / 'mine'}", *base, *overrides)
        train(cfg)
        run_dir = Path(cfg.output_dir)
        config = json.loads((run_dir / "model" / "config.json").read_text(encoding="utf-8"))
        return json.loads((run_dir / "record.json").read_text(encoding="utf-8")), config

    (tmp_path / "mine").mkdir()
    return run


def texts(n_rows: int) -> list[str]:
    return [f"the {('film', 'book', 'song')[row // 2 % 3]} is {('bad', 'good')[row % 2]}" for row in range(n_rows)]


def write(file: Path, lines: list[str]) -> None:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_csv_of_words_becomes_a_classifier_that_knows_their_names(run_custom, tmp_path):
    for split, n_rows in (("train", 32), ("validation", 16)):
        rows = [f'"{text}, is it",{("spam", "ham")[row % 2]}' for row, text in enumerate(texts(n_rows))]
        write(tmp_path / "mine" / f"{split}.csv", ["text,label", *rows])
    record, config = run_custom()
    assert record["status"] == "completed"
    assert 0.5 <= record["teacher"]["certainty_softened"] < record["teacher"]["certainty"] <= 1.0
    assert [*record["scores"]["pruned"]] == ["accuracy", "f1"]
    assert config["id2label"] == {"0": "ham", "1": "spam"}
    assert config["label2id"] == {"ham": 0, "spam": 1}


def test_a_tsv_of_pairs_becomes_a_classifier_whose_classes_are_called_by_their_numbers(run_custom, tmp_path):
    for split, n_rows in (("train", 32), ("validation", 16)):
        rows = [f"{text}\tthe play is good\t{10 * (row % 3)}" for row, text in enumerate(texts(n_rows))]
        write(tmp_path / "mine" / f"{split}.tsv", ["left\tright\tstars", *rows])
    record, config = run_custom("task.text_columns=[left,right]", "task.label_column=stars")
    assert record["status"] == "completed"
    assert record["metric"] == "accuracy"
    assert config["id2label"] == {"0": "0", "1": "10", "2": "20"}


def test_json_lines_of_numbers_become_a_model_of_one_output(run_custom, tmp_path):
    for split, n_rows in (("train", 32), ("validation", 16)):
        rows = [json.dumps({"text": text, "label": 0.5 + row % 2}) for row, text in enumerate(texts(n_rows))]
        write(tmp_path / "mine" / f"{split}.jsonl", rows)
    record, config = run_custom("task.metrics=[spearman]")
    assert record["status"] == "completed"
    assert [*record["scores"]["pruned"]] == ["spearman"]
    assert len(config["id2label"]) == 1
    assert config["problem_type"] == "regression"


@pytest.mark.parametrize(
    "override",
    ["task.text_columns=[sentence]", "task.label_column=label", "task.label_type=classes", "task.metrics=[accuracy]"],
)
def test_keys_of_custom_are_refused_for_a_task_that_would_ignore_them(compose_config, tiny_overrides, override):
    from cap.base.errors import InputError
    from cap.config.check import check
    from cap.training.preparation import prepare

    key = override.partition("=")[0]
    with pytest.raises(
        InputError, match=rf"belong to task=custom, task=tokens or task=embed, got {key}=.* with task=sst2"
    ):
        prepare(check(compose_config(*tiny_overrides, override)))
