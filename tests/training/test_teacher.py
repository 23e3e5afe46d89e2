from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest


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
    assert "is damaged and is made again" in caplog.text


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


def test_scores_of_other_validation_rows_are_kept_apart(compose_config, tiny_overrides, tmp_path):
    from cap.finetune import finetune

    for rows in ([], ["data.max_eval_rows=8"], []):
        finetune(compose_config(*tiny_overrides, "finetune.max_steps=1", *rows))
    (folder,) = (tmp_path / "cache" / "teachers").glob("[!.]*")
    assert len(list(folder.glob("scores-*.json"))) == 2


def test_a_teacher_is_trained_as_its_key_says(compose_config, tiny_overrides, monkeypatch):
    from cap.finetune import finetune
    from cap.training import teacher

    seen = {}
    real_module, real_trainer = teacher.CapModule, teacher.build_trainer
    monkeypatch.setattr(
        teacher, "CapModule", lambda *given, **keys: seen.update(module=keys) or real_module(*given, **keys)
    )
    monkeypatch.setattr(
        teacher, "build_trainer", lambda options, **keys: seen.update(options=options) or real_trainer(options, **keys)
    )
    own = ["finetune.max_steps=2", "finetune.learning_rate=3e-4", "finetune.weight_decay=0.25", "finetune.warmup=0.5"]
    finetune(compose_config(*tiny_overrides, *own))
    optimisation = seen["module"]["optimisation"]
    assert (optimisation.learning_rate, optimisation.weight_decay, optimisation.warmup) == (3e-4, 0.25, 0.5)
    distill = seen["module"]["distill"]
    assert (distill.weight, distill.ce_weight) == (0.0, 1.0)  # the labels alone
    assert (seen["options"]["max_steps"], seen["options"]["gradient_clip_val"]) == (2, 1.0)


def with_other_dropout(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_dropout_prob": 0.4}))


def with_a_head(folder: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.classifier.weight.data.fill_(0.1)
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
    ("score", "majority", "n_rows", "is_correlation", "expected"),
    [
        (0.5, 0.5, 1000, False, True),
        (0.52, 0.5, 1000, False, True),
        (0.6, 0.5, 1000, False, False),
        (0.06, 0.0, 1000, True, True),
        (0.07, 0.0, 1000, True, False),
        (0.43, 0.0, 20, True, True),
        (0.43, 0.0, 20, False, False),
        (0.09, 0.0, 20, False, True),
        (0.996, 0.97, 200, False, False),
        (0.985, 0.97, 200, False, True),
        (1.0, 0.99, 100, False, False),
        (1.0, 1.0, 100, False, True),
    ],
    ids=[
        "majority",
        "within two errors",
        "above",
        "no correlation",
        "correlation",
        "correlation of few",
        "tags of few rows",
        "some tags by luck",
        "nearly all one class",
        "hardly more than it",
        "all right",
        "one class alone",
    ],
)
def test_chance_level_is_two_standard_errors_above_the_majority(score, majority, n_rows, is_correlation, expected):
    from cap.training.teacher import is_at_chance

    assert is_at_chance(score, majority, n_rows, is_correlation=is_correlation) is expected


@pytest.fixture
def wanted():
    from cap.config.schema import FinetuneConfig
    from cap.training.teacher import WantedTeacher

    return WantedTeacher(
        start="weights",
        rows="tokens",
        labels=["no", "yes"],
        finetune=FinetuneConfig(max_epochs=2, max_steps=-1, learning_rate=2e-5, weight_decay=0.01, warmup=0.1),
        batch_size=8,
        precision="32-true",
        device="cpu",
        seed=1,
    )


def test_key_of_a_teacher_is_made_of_what_it_always_was(wanted):
    from cap.base.files import content_key

    finetune = {"max_epochs": 2, "max_steps": -1, "learning_rate": 2e-5, "weight_decay": 0.01, "warmup": 0.1}
    before = {"format": 1, "start": "weights", "rows": "tokens", "labels": ["no", "yes"], "finetune": finetune}
    assert wanted.key == content_key({**before, "batch_size": 8, "precision": "32-true", "device": "cpu", "seed": 1})


def test_a_teacher_of_steps_of_several_batches_is_another_one_and_is_trained_so(wanted, compose_config, tiny_overrides):
    import dataclasses

    import torch

    from cap.config.check import check
    from cap.training.teacher import _trainer_options

    several = dataclasses.replace(wanted, accumulate_grad_batches=4)
    assert several.key != wanted.key
    config = check(compose_config(*tiny_overrides)).config
    assert _trainer_options(several, config, torch.device("cpu"))["accumulate_grad_batches"] == 4
