"""Runs that learn from rows without a label beside those that have one."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests.whole_runs.test_resume import assert_same_run, curves, killed, run, sha256, uninterrupted  # noqa: F401 - fixtures

N_TRAIN, N_MORE = 32, 20


@pytest.fixture
def more(tmp_path) -> str:
    """Write twenty texts without a label, and one that is a training row."""
    from tests.conftest import NASTY, NICE, THINGS

    texts = [f"a {thing} is very very very {word}" for thing in THINGS[:5] for word in (*NICE[:2], *NASTY[:2])]
    lines = [json.dumps({"sentence": text}) for text in texts]
    (tmp_path / "more.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"data.unlabelled={tmp_path / 'more.jsonl'}"


def record_of(folder: Path) -> dict:
    return json.loads((folder / "record.json").read_text())


def teachers(cache: Path) -> dict[str, str]:
    return {folder.name: sha256(folder / "model.safetensors") for folder in (cache / "teachers").glob("[!.]*")}


def test_an_epoch_banks_and_logits_cover_all_rows(
    compose_config, tiny_overrides, tiny_data, more, tmp_path, monkeypatch
):
    import numpy as np
    import torch

    from cap.objectives.memory import Memory
    from cap.training import module

    shapes, classes = {}, []
    for name in ("add", "set_teacher_logits"):
        original = getattr(Memory, name)

        def note(self, *arguments, _name=name, _original=original, **options):
            path = next(argument for argument in arguments if isinstance(argument, Path))
            shapes.setdefault(_name, []).append(len(np.load(path)))
            return _original(self, *arguments, **options)

        monkeypatch.setattr(Memory, name, note)
    plain = module.ContrastiveTerms
    monkeypatch.setattr(
        module,
        "ContrastiveTerms",
        lambda settings, memory, *, labels, **keys: (
            classes.append((labels, memory)) or plain(settings, memory, labels=labels, **keys)
        ),
    )
    run(compose_config, [*tiny_overrides, more])
    record = record_of(tmp_path / "run")
    assert record["data"]["n_rows"] == {"train": N_TRAIN, "validation": 16, "unlabelled": N_MORE}
    assert record["data"]["unlabelled"]["source"] == "file more.jsonl"
    assert record["steps"] == 2 * -(-(N_TRAIN + N_MORE) // 8)
    assert shapes == {"add": [N_TRAIN + N_MORE] * 4, "set_teacher_logits": [N_TRAIN + N_MORE]}
    labels, memory = classes[-1]  # the first is of the plan
    more_rows = torch.arange(N_TRAIN, N_TRAIN + N_MORE)
    assert torch.equal(labels[more_rows], memory.teacher_logits(more_rows).argmax(dim=1))
    rows = [json.loads(line) for line in (tiny_data / "train.jsonl").read_text().splitlines()]
    assert labels[:N_TRAIN].tolist() == [row["label"] for row in rows]


@pytest.mark.ends
def test_the_teacher_and_its_name_are_those_of_a_run_without(compose_config, tiny_overrides, more, tmp_path):
    run(compose_config, [*tiny_overrides, f"output_dir={tmp_path / 'alone'}", f"cache_dir={tmp_path / 'other'}"])
    run(compose_config, [*tiny_overrides, more])
    assert teachers(tmp_path / "cache") == teachers(tmp_path / "other")
    scores = [record_of(tmp_path / name)["scores"] for name in ("alone", "run")]
    assert scores[0]["teacher"] == scores[1]["teacher"]
    assert scores[0]["majority"] == scores[1]["majority"]


def test_rows_without_a_label_change_the_result(compose_config, tiny_overrides, more, tmp_path):
    equal_steps = [*tiny_overrides, "trainer.max_epochs=-1", "trainer.max_steps=4"]
    run(compose_config, [*equal_steps, f"output_dir={tmp_path / 'alone'}"])
    run(compose_config, [*equal_steps, more])
    assert record_of(tmp_path / "alone")["steps"] == record_of(tmp_path / "run")["steps"] == 4
    assert curves(tmp_path / "alone") != curves(tmp_path / "run")


@pytest.mark.ends
def test_a_killed_run_goes_on_to_the_same_bits(compose_config, tmp_path, more, uninterrupted, killed):  # noqa: F811
    whole = uninterrupted(more)
    run(compose_config, killed(5, more))
    assert_same_run(tmp_path / "run", whole)
    assert curves(tmp_path / "run") == curves(whole)


def test_a_run_does_not_go_on_with_other_rows_without_a_label(compose_config, tmp_path, more, killed):  # noqa: F811
    from cap.base.errors import InputError

    again = killed(2, more)
    file = Path(more.split("=")[1])
    file.write_text(file.read_text(encoding="utf-8").replace("film", "scene"), encoding="utf-8")
    with pytest.raises(InputError, match="goes on with the rows it began with"):
        run(compose_config, again)


@pytest.mark.parametrize(("loss", "n_rows"), [("task", N_TRAIN), ("total", N_TRAIN + N_MORE)])
def test_importance_is_measured_on_rows_that_its_loss_knows(
    compose_config, tiny_overrides, more, monkeypatch, loss, n_rows
):
    from cap.training import importance
    from cap.training.callbacks import importance as callbacks

    seen: list[list[int]] = []

    def measure(module, loader, wanted, **options):
        seen.append([example for batch in loader for example in batch["example_id"].tolist()])
        importance.measure_importance(module, loader, wanted, **options)

    monkeypatch.setattr(callbacks, "measure_importance", measure)
    levels = ["pruning=structured", "schedule.levels=[0.5]", "schedule.epochs_per_level=1"]
    run(compose_config, [*tiny_overrides, more, *levels, f"pruning.importance_loss={loss}"])
    assert [sorted(ids) for ids in seen] == [list(range(n_rows))]


def test_training_rows_without_a_label_are_learned_from_if_asked(compose_config, tiny_overrides, tiny_data, tmp_path):
    from cap.base.errors import InputError

    folder = tmp_path / "hidden"
    folder.mkdir()
    (folder / "validation.jsonl").write_bytes((tiny_data / "validation.jsonl").read_bytes())
    lines = (tiny_data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    hidden = [json.dumps({"sentence": f"a very ugly {word}", "label": -1}) for word in ("film", "book", "play")]
    (folder / "train.jsonl").write_text("\n".join([*hidden, *lines]) + "\n", encoding="utf-8")
    overrides = [*tiny_overrides, f"data_dir={folder}"]
    with pytest.raises(InputError, match=r"got -1 in row 0 .* or set data\.keep_unlabelled=true"):
        run(compose_config, overrides)
    run(compose_config, [*overrides, "data.keep_unlabelled=true"])
    assert record_of(tmp_path / "run")["data"]["n_rows"] == {"train": 32, "validation": 16, "unlabelled": 3}
    run(compose_config, [*tiny_overrides, f"output_dir={tmp_path / 'alone'}"])
    assert len(teachers(tmp_path / "cache")) == 1


def test_an_export_knows_the_rows_of_such_a_run_again(compose_config, tiny_overrides, more, tmp_path):
    from cap.config.export import ExportConfig
    from cap.formats.export_source import read_source
    from cap.runs.finished import read_runs

    run(compose_config, [*tiny_overrides, more])
    (finished,) = read_runs([tmp_path / "run"])
    settings = {"vocabulary": None, "data_dir": None, "cache_dir": str(tmp_path / "cache"), "check_rows": 4}
    config = ExportConfig(run=str(tmp_path / "run"), **settings)
    assert read_source(finished, config).has_rows_of_run


@pytest.mark.ends
def test_pieces_of_rows_without_a_label_stay(compose_config, tiny_overrides, tiny_data, tmp_path):
    from cap.base.errors import InputError
    from tests.formats.made_exports import make_export, read

    few = tmp_path / "few"
    few.mkdir()
    for split in ("train", "validation"):
        rows = [{"sentence": f"the film is {word}", "label": label} for label, word in enumerate(("bad", "good"))]
        (few / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4), encoding="utf-8")
    file = tmp_path / "more.jsonl"
    file.write_text(json.dumps({"sentence": "a lovely scene"}) + "\n", encoding="utf-8")
    run(compose_config, [*tiny_overrides, f"data_dir={few}", f"data.unlabelled={file}"])
    found = read(make_export(tmp_path / "run", "plain", tmp_path / "plain", "vocabulary=auto"))
    assert found["vocabulary"]["used"] == len({"the", "film", "is", "bad", "good", "a", "lovely", "scene"})
    file.unlink()
    with pytest.raises(
        InputError, match=r"data\.unlabelled too, which could not be read .*; put it back, or give vocab"
    ):
        make_export(tmp_path / "run", "plain", tmp_path / "again", "vocabulary=auto")


def test_all_left_out_is_a_plain_run(compose_config, tiny_overrides, tiny_data, tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="cap")
    run(compose_config, [*tiny_overrides, f"data.unlabelled={tiny_data / 'train.jsonl'}"])
    assert record_of(tmp_path / "run")["data"]["n_rows"] == {"train": 32, "validation": 16}
    assert "no row without a label is left" in caplog.text
