from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest

from tests.cases import cases

# Each kind of state that a run has beside its weights: scores, averages, gates, levels that restart the optimizer.
TYPES = {
    "soft_movement": ["pruning=soft_movement", "pruning.every_n_steps=3"],
    "movement": ["pruning=movement", "sparsity=0.6"],
    "magnitude": ["pruning=magnitude", "trainer.accumulate_grad_batches=2"],
    "first_order": ["pruning=first_order", "trainer.val_check_interval=0.5"],
    "platon": ["pruning=platon", "pruning.window=2", "pruning.every_n_steps=1"],
    "admm": ["pruning=admm", "pruning.interval=2"],
    "second_order": [
        "pruning=second_order",
        "pruning.every_n_steps=1",
        "pruning.gradient_rows=4",
        "pruning.recomputations=2",
    ],
    "static_scores": ["pruning=static_scores", "pruning.every_n_steps=2"],
    "random": ["pruning=random", "student_init=teacher", "freeze=[embeddings,pooler,head]"],
    "snapshots' logits": ["distill.snapshot_weight=1", "contrast.snapshots=false", "contrast.snapshot_count=3"],
    "hidden states of tokens": ["distill.hidden_weight=1", "distill.hidden=tokens", "contrast=none"],
    "structured": ["pruning=structured", "schedule.levels=[0.25,0.5]", "schedule.epochs_per_level=1"],
    "layers": ["pruning=layers", "pruning.importance=loss", "schedule=cubic", "schedule.flat_before=0"],
    "rewinds": [
        "pruning=movement",
        "schedule.n_prunings=3",
        "schedule.initial_sparsity=0.2",
        "schedule.rewind=each",
        "schedule.restart_optimizer=true",
        "learning_rate_floor=0.1",
        "learning_rate_start=0.5",
    ],
}


class Killed(BaseException):
    """Stands for ``kill -9``: nothing catches it, nothing is written after it."""


def run(compose_config, overrides: list[str]) -> float:
    from cap.train import train

    return train(compose_config(*overrides))


def killed_at(monkeypatch, step: int) -> None:
    """Let the process die when an optimizer step begins, after whatever is due there has been written."""
    from cap.training.callbacks import timer as callbacks
    from cap.training.record import RunRecord
    from cap.training.resume import checkpoint

    def die(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == step:
            raise Killed

    monkeypatch.setattr(callbacks.StepTimer, "on_train_batch_start", die)
    monkeypatch.setattr(checkpoint.CheckpointCallback, "on_exception", lambda *arguments: None)

    def vanish(record, error):
        # A process that is gone writes no more; this one still has what the system would free.
        record._close_log()
        record._lock.release()

    monkeypatch.setattr(RunRecord, "fail", vanish)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def curves(run_dir: Path) -> list[str]:
    return (run_dir / "logs" / "metrics.csv").read_text(encoding="utf-8").splitlines()


def assert_same_run(resumed: Path, whole: Path) -> None:
    weights = Path("model") / "model.safetensors"
    assert (resumed / weights).read_bytes() == (whole / weights).read_bytes()
    records = [json.loads((folder / "record.json").read_text()) for folder in (whole, resumed)]
    for key in ("levels", "kept", "steps"):
        assert records[0].get(key) == records[1].get(key), key
    assert records[0]["scores"] == records[1]["scores"]
    assert records[0].get("gradient_shares") == records[1].get("gradient_shares")
    assert records[0]["warnings"] == records[1]["warnings"]


@pytest.fixture
def uninterrupted(compose_config, tiny_overrides, tmp_path):
    """Run a configuration without a break, with a cache of its own, and return where."""

    def run_whole(*overrides: str) -> Path:
        own = [f"output_dir={tmp_path / 'whole'}", f"cache_dir={tmp_path / 'whole_cache'}"]
        run(compose_config, [*tiny_overrides, *overrides, *own])
        return tmp_path / "whole"

    return run_whole


@pytest.fixture
def killed(compose_config, tiny_overrides, tmp_path, monkeypatch):
    """Run a configuration with a checkpoint at every step, and let it die when a step begins."""

    def run_until(step: int, *overrides: str) -> list[str]:
        wanted = [*tiny_overrides, "checkpoint.every_n_steps=1", *overrides]
        with monkeypatch.context() as patch:
            killed_at(patch, step)
            with pytest.raises(Killed):
                run(compose_config, wanted)
        return [*wanted, "resume=true"]

    return run_until


@pytest.mark.parametrize("overrides", cases(TYPES, daily=["movement", "structured", "rewinds"]))
def test_killed_run_goes_on_to_the_same_bits(compose_config, tmp_path, uninterrupted, killed, overrides):
    whole = uninterrupted(*overrides)
    wanted = killed(3, *overrides)
    left = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (left["status"], left["error"]) == ("interrupted", None)
    assert left["scores"]["teacher"] == json.loads((whole / "record.json").read_text())["scores"]["teacher"]
    run(compose_config, wanted)
    assert_same_run(tmp_path / "run", whole)
    assert curves(tmp_path / "run") == curves(whole)
    assert json.loads((tmp_path / "run" / "record.json").read_text())["resumed_at"] == [3]


@pytest.mark.ends
def test_killed_run_that_keeps_zeros_goes_on_to_the_same_bits(
    compose_config, tmp_path, uninterrupted, killed, sparse_model
):
    overrides = [f"model.name_or_path={sparse_model}", "pruning=keep_zeros", "sparsity=0.6", "weight_decay=0.1"]
    whole = uninterrupted(*overrides)
    run(compose_config, killed(3, *overrides))
    assert_same_run(tmp_path / "run", whole)
    assert curves(tmp_path / "run") == curves(whole)


# The first step of an epoch comes after a validation; a run may also die when it is trained and not yet saved.
@pytest.mark.ends
@pytest.mark.parametrize("step", [1, 4], ids=["in the first epoch", "at the start of the second"])
def test_run_goes_on_from_any_step(compose_config, tmp_path, uninterrupted, killed, step):
    whole = uninterrupted("trainer.val_check_interval=0.5")
    run(compose_config, killed(step, "trainer.val_check_interval=0.5"))
    assert_same_run(tmp_path / "run", whole)
    assert curves(tmp_path / "run") == curves(whole)
    assert json.loads((tmp_path / "run" / "record.json").read_text())["resumed_at"] == [step]


@pytest.mark.ends
def test_what_was_logged_behind_the_checkpoint_is_logged_once(compose_config, tmp_path, uninterrupted, killed):
    whole = uninterrupted()
    run(compose_config, killed(5, "checkpoint.every_n_steps=3"))
    assert curves(tmp_path / "run") == curves(whole)
    assert json.loads((tmp_path / "run" / "record.json").read_text())["resumed_at"] == [3]


# What Lightning counts in other ways: validations over epochs, an epoch that is cut, loaders with processes.
COUNTED = {
    "validations by steps": ["trainer.check_val_every_n_epoch=null", "trainer.val_check_interval=3"],
    "an end within an epoch": ["trainer.max_steps=6"],
    "part of an epoch": ["trainer.limit_train_batches=3"],
    "bfloat16": ["trainer.precision=bf16-mixed"],
    "64 bits": ["trainer.precision=64-true"],
}


@pytest.mark.ends
@pytest.mark.parametrize("overrides", COUNTED.values(), ids=COUNTED)
def test_run_that_is_killed_twice_goes_on_however_its_steps_are_counted(
    compose_config, tmp_path, uninterrupted, killed, overrides
):
    whole = uninterrupted(*overrides)
    killed(2, *overrides)
    run(compose_config, killed(5, *overrides, "resume=true"))
    assert_same_run(tmp_path / "run", whole)
    assert curves(tmp_path / "run") == curves(whole)
    assert json.loads((tmp_path / "run" / "record.json").read_text())["resumed_at"] == [2, 5]


@pytest.mark.ends
def test_trained_run_that_died_before_it_was_saved_is_not_trained_again(
    compose_config, tiny_overrides, tmp_path, monkeypatch, uninterrupted
):
    from cap.training import train_phases
    from cap.training.module import CapModule

    def die(*arguments):
        raise Killed

    whole = uninterrupted()
    with monkeypatch.context() as patch:
        patch.setattr(train_phases, "_finish", die)
        with pytest.raises(Killed):
            run(compose_config, tiny_overrides)
    monkeypatch.setattr(CapModule, "training_step", die)
    run(compose_config, [*tiny_overrides, "resume=true"])
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.ends
def test_torn_checkpoint_gives_way_to_the_one_before_it(compose_config, tmp_path, uninterrupted, killed, caplog):
    whole = uninterrupted()
    wanted = killed(5)
    newest = tmp_path / "run" / "checkpoints" / "step-0000005.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    run(compose_config, wanted)
    assert_same_run(tmp_path / "run", whole)
    assert json.loads((tmp_path / "run" / "record.json").read_text())["resumed_at"] == [4]


def test_two_checkpoints_are_kept(tmp_path, killed):
    killed(5)
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert names == ["step-0000004.ckpt", "step-0000004.json", "step-0000005.ckpt", "step-0000005.json"]


def test_checkpoint_holds_no_frozen_model_and_executes_nothing(tmp_path, killed):
    import torch

    killed(2)
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "step-0000002.ckpt", weights_only=True)
    assert {name.partition(".")[0] for name in checkpoint["state_dict"]} == {"student"}


@pytest.mark.parametrize(("pruning", "learns"), [("first_order", False), ("movement", True)])
def test_checkpoint_holds_scores_that_learn_and_none_that_only_collect_gradients(tmp_path, killed, pruning, learns):
    import torch

    killed(2, f"pruning={pruning}")
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "step-0000002.ckpt", weights_only=True)
    assert any(name.endswith(".mask") for name in checkpoint["state_dict"])
    assert any(name.endswith(".scores") for name in checkpoint["state_dict"]) is learns


def test_checkpoint_holds_nothing_of_what_is_frozen(tmp_path, killed):
    import torch

    killed(2, "freeze=[embeddings]")
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "step-0000002.ckpt", weights_only=True)
    trained = {name for name in checkpoint["state_dict"] if not name.startswith("student.model.bert.encoder.layer.")}
    assert trained == {
        f"student.model.{layer}.{kind}" for layer in ("bert.pooler.dense", "classifier") for kind in ("weight", "bias")
    }


def test_run_whose_frozen_weights_have_changed_is_refused(compose_config, tmp_path, tiny_model, killed):
    import shutil

    from safetensors.torch import load_file, save_file

    from cap.base.errors import RunError

    model = shutil.copytree(tiny_model, tmp_path / "model")
    wanted = killed(2, f"model.name_or_path={model}", "contrast=none", "distill=none")
    weights = load_file(model / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][0] += 1.0
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"frozen weights \(freeze\) it began with.*remove checkpoints/"):
        run(compose_config, wanted)


def test_signal_after_the_end_leaves_a_complete_run(compose_config, tiny_overrides, tmp_path, monkeypatch):
    from cap.base.errors import StoppedError
    from cap.training import record as train_record

    close, calls = train_record.close_loggers, []

    def with_signal(loggers, **options):
        calls.append(options)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        close(loggers, **options)

    monkeypatch.setattr(train_record, "close_loggers", with_signal)
    with pytest.raises(StoppedError):
        run(compose_config, tiny_overrides)
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "completed"
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_logger_that_fails_at_the_end_keeps_neither_the_folder_nor_its_log(
    compose_config, tiny_overrides, tmp_path, monkeypatch
):
    import logging

    from lightning.pytorch.loggers import TensorBoardLogger

    from cap.runs.folder import hold

    record, finalize = tmp_path / "run" / "record.json", TensorBoardLogger.finalize

    def fail_after_the_end(self, status):
        finalize(self, status)
        if json.loads(record.read_text())["status"] == "completed":
            raise OSError("made up: the tracker is gone")

    monkeypatch.setattr(TensorBoardLogger, "finalize", fail_after_the_end)
    with pytest.raises(OSError, match="the tracker is gone"):
        run(compose_config, [*tiny_overrides, "contrast=none", "logger=tensorboard"])
    assert json.loads(record.read_text())["status"] == "completed"
    assert not [h for h in logging.getLogger("cap").handlers if isinstance(h, logging.FileHandler)]
    hold(tmp_path / "run").release()


def test_tracker_that_fails_while_a_run_fails_does_not_hide_why(
    compose_config, tiny_overrides, tmp_path, monkeypatch, caplog
):
    from cap.runs.folder import hold
    from cap.training import record as train_record
    from cap.training import train_phases

    def fail(*arguments, **options):
        raise OSError("made up: the tracker is gone")

    def stop(*arguments):
        raise ValueError("the reason")

    monkeypatch.setattr(train_phases, "_finish", stop)
    monkeypatch.setattr(train_record, "close_loggers", fail)
    with pytest.raises(ValueError, match="the reason"):
        run(compose_config, [*tiny_overrides, "contrast=none"])
    assert "did not end as it should: made up: the tracker is gone" in caplog.text
    assert json.loads((tmp_path / "run" / "record.json").read_text())["error"] == "ValueError: the reason"
    hold(tmp_path / "run").release()


def test_what_a_killed_first_write_has_left_is_nobody_elses(compose_config, tiny_overrides, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".record.json.ab12.json").write_text("{")
    run(compose_config, [*tiny_overrides, "contrast=none"])
    assert not (tmp_path / "run" / ".record.json.ab12.json").exists()


def test_run_does_not_go_on_with_other_rows(compose_config, tiny_data, tmp_path, killed):
    import shutil

    from cap.base.errors import InputError

    data = tmp_path / "rows" / "sst2"
    shutil.copytree(tiny_data, data)
    wanted = killed(2, f"data_dir={data}")
    with (data / "train.jsonl").open("a") as file:
        file.write(json.dumps({"sentence": "the film is good", "label": 1}) + "\n")
    with pytest.raises(InputError, match="goes on with the rows it began with, but those of folder sst2 have changed"):
        run(compose_config, wanted)


def test_run_does_not_go_on_on_another_type_of_device(compose_config, tmp_path, killed):
    from cap.base.errors import InputError

    wanted = killed(2)
    (listed,) = (tmp_path / "run" / "checkpoints").glob("step-0000002.json")
    assert json.loads(listed.read_text())["device"] == "cpu"
    listed.write_text(json.dumps(json.loads(listed.read_text()) | {"device": "cuda"}))
    with pytest.raises(
        InputError, match=r"checkpoint of step 2 was written on cuda, got cpu; set trainer.accelerator=cuda"
    ):
        run(compose_config, wanted)
    listed.write_text(json.dumps(json.loads(listed.read_text()) | {"device": "cpu"}))
    run(compose_config, wanted)


def test_run_does_not_go_on_with_another_teacher(compose_config, tmp_path, killed):
    import shutil

    from safetensors.torch import load_file, save_file

    from cap.base.errors import RunError

    wanted = killed(2, "student_init=pretrained")  # else the weights that it starts from are looked at first
    (meta,) = (tmp_path / "cache" / "teachers").glob("*/teacher.json")
    weights = load_file(meta.parent / "model.safetensors")
    save_file(
        {name: value * 1.01 for name, value in weights.items()}, meta.parent / "model.safetensors", {"format": "pt"}
    )
    content = json.loads(meta.read_text())
    assert content["reads"] == {"max_length": 32, "stride": None}  # cap.evaluate reads the teacher like its student
    meta.write_text(json.dumps({**content, "weights_sha256": sha256(meta.parent / "model.safetensors")}))
    shutil.rmtree(tmp_path / "cache" / "encodings")
    with pytest.raises(RunError, match="but the encodings of finetuned are others now"):
        run(compose_config, wanted)


def test_run_does_not_go_on_without_the_logits_of_its_snapshot(compose_config, tmp_path, killed):
    from cap.base.errors import RunError

    wanted = killed(5, "distill.snapshot_weight=1", "contrast=none", "contrast.snapshot_count=1")
    (logits,) = (tmp_path / "run" / "checkpoints" / "snapshots").glob("*.logits.npy")
    logits.write_bytes(logits.read_bytes()[:-2])
    with pytest.raises(RunError, match=rf"{logits.name} is missing or damaged; remove"):
        run(compose_config, wanted)


def test_finished_run_is_left_as_it_is(compose_config, tiny_overrides, tmp_path):
    score = run(compose_config, [*tiny_overrides, "resume=true"])
    before = files(tmp_path / "run")
    assert run(compose_config, [*tiny_overrides, "resume=true"]) == score
    assert files(tmp_path / "run") == before


@pytest.fixture
def finished(compose_config, tiny_overrides, tiny_data, tiny_model, tmp_path, monkeypatch):
    """Finish a run on rows and weights of its own, of which nothing is read again; return what to repeat it with."""
    import shutil

    from cap.training import train_phases

    shutil.copytree(tiny_data, tmp_path / "rows")
    shutil.copytree(tiny_model, tmp_path / "pretrained")
    own = [f"data_dir={tmp_path / 'rows'}", f"model.name_or_path={tmp_path / 'pretrained'}", "contrast=none"]
    wanted = [*tiny_overrides, *own, "trainer.max_steps=1", "finetune.max_steps=1"]
    run(compose_config, wanted)
    monkeypatch.setattr(train_phases, "prepare", lambda checked: pytest.fail("the run began"))
    return wanted


def more_rows(tmp_path: Path) -> None:
    with (tmp_path / "rows" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"sentence": "the film is good", "label": 1}) + "\n")


def other_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"})


def record_without_files(tmp_path: Path) -> None:
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    del record["data"]["files"], record["weights_sha256"]
    (tmp_path / "run" / "record.json").write_text(json.dumps(record))


def more_rows_than_an_old_record_knows(tmp_path: Path) -> None:
    record_without_files(tmp_path)
    more_rows(tmp_path)


CHANGES = {
    "rows": (more_rows, "the rows of folder rows"),
    "rows, and a record without files": (more_rows_than_an_old_record_knows, "the rows of folder rows"),
    "weights": (lambda path: other_weights(path / "pretrained"), r"the weights of the model \(model.safetensors\)"),
}


@pytest.mark.parametrize("found_by", ["resume=true", "skip_completed=true"])
@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_finished_run_is_not_found_for_what_it_did_not_read(
    compose_config, tmp_path, finished, change, message, found_by
):
    from cap.base.errors import InputError

    change(tmp_path)
    before = files(tmp_path / "run")
    with pytest.raises(InputError, match=rf"have changed: {message}.*replace the run with overwrite=true"):
        run(compose_config, [*finished, found_by])
    assert files(tmp_path / "run") == before


def rows_written_in_other_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row, indent=None, separators=(",", ":")) + "\n" for row in rows))


def rows_and_weights_removed(tmp_path: Path) -> None:
    import shutil

    shutil.rmtree(tmp_path / "rows")
    shutil.rmtree(tmp_path / "pretrained")


@pytest.mark.parametrize(
    "change", [rows_written_in_other_bytes, record_without_files, rows_and_weights_removed], ids=lambda f: f.__name__
)
def test_finished_run_is_found_where_nothing_says_that_it_read_something_else(
    compose_config, tmp_path, finished, monkeypatch, change
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    change(tmp_path)
    assert 0 <= run(compose_config, [*finished, "resume=true"]) <= 1


def test_finished_run_is_not_found_for_other_rows_without_a_label(compose_config, tmp_path, tiny_overrides):
    from cap.base.errors import InputError

    texts = tmp_path / "texts.csv"
    texts.write_text("sentence\na plot without a point\n")
    wanted = [
        *tiny_overrides,
        f"data.unlabelled={texts}",
        "contrast=none",
        "trainer.max_steps=1",
        "finetune.max_steps=1",
    ]
    run(compose_config, wanted)
    texts.write_text("sentence\na plot with a point\n")
    with pytest.raises(InputError, match=r"have changed: the rows of file texts.csv"):
        run(compose_config, [*wanted, "resume=true"])


def test_unchanged_files_are_not_read_as_rows(compose_config, finished, monkeypatch):
    from cap.training import preparation

    monkeypatch.setattr(preparation, "rows_of", lambda *arguments, **options: pytest.fail("the rows were read"))
    assert 0 <= run(compose_config, [*finished, "resume=true"]) <= 1


def test_record_names_the_weights_of_a_given_teacher(compose_config, tmp_path, tiny_overrides):
    from cap.config.check import check
    from cap.training.inputs import changes_since, hashes_of_weights

    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "model.safetensors").write_bytes(b"weights")
    config = check(compose_config(*tiny_overrides, f"teacher={tmp_path / 'given'}")).config
    before = hashes_of_weights(config)
    assert before["teacher"] == {"model.safetensors": sha256(tmp_path / "given" / "model.safetensors")}
    (tmp_path / "given" / "model.safetensors").write_bytes(b"others")
    config.data_dir = str(tmp_path / "gone")
    assert changes_since(config, {"data": {}, "weights_sha256": before}) == [
        "the weights of the teacher (model.safetensors)"
    ]


def test_run_that_another_process_completes_meanwhile_is_left_as_it_is(
    compose_config, tiny_overrides, tmp_path, monkeypatch
):
    from cap.runs.folder import RunFolder

    score = run(compose_config, [*tiny_overrides, "contrast=none"])
    before = files(tmp_path / "run")
    real, calls = RunFolder.read, []

    def not_yet(path, *wanted):
        calls.append(path)
        return real(path, *wanted) if len(calls) > 1 else RunFolder(path, "empty")

    monkeypatch.setattr(RunFolder, "read", not_yet)
    assert run(compose_config, [*tiny_overrides, "contrast=none", "resume=true"]) == score
    assert files(tmp_path / "run") == before


def test_finished_run_is_not_overwritten_by_repeating_its_command(
    compose_config, tiny_overrides, tmp_path, monkeypatch
):
    from cap.base.errors import InputError
    from cap.training import train_phases

    run(compose_config, [*tiny_overrides, "contrast=none"])
    before = files(tmp_path / "run")
    monkeypatch.setattr(train_phases, "prepare", lambda checked: pytest.fail("the rows were read"))
    with pytest.raises(InputError, match=r"must not hold a finished run, .* resume=true, .* overwrite=true, or choose"):
        run(compose_config, [*tiny_overrides, "contrast=none"])
    assert files(tmp_path / "run") == before


def test_finished_run_is_replaced_when_the_new_one_is_complete(compose_config, tiny_overrides, tmp_path):
    wanted = [*tiny_overrides, "contrast=none", "overwrite=true"]
    run(compose_config, wanted)
    (tmp_path / "run" / "train.log").write_text("the old one")
    assert run(compose_config, wanted) >= 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (record["status"], record["config"]["overwrite"]) == ("completed", True)
    assert "the old one" not in (tmp_path / "run" / "train.log").read_text()
    assert [path.name for path in tmp_path.glob(".run.*") if path.is_dir()] == []


def test_replacement_stands_whatever_happens_after_its_end(compose_config, tiny_overrides, tmp_path, monkeypatch):
    from cap.training import record as train_record

    wanted = [*tiny_overrides, "contrast=none", "overwrite=true"]
    run(compose_config, wanted)
    before = files(tmp_path / "run")["train.log"]

    def closed(table):
        raise SystemExit(1)  # as rich does when stdout is closed

    monkeypatch.setattr(train_record, "print_table", closed)
    with pytest.raises(SystemExit):
        run(compose_config, wanted)
    after = files(tmp_path / "run")
    assert json.loads(after["record.json"])["status"] == "completed"
    assert after["train.log"] != before
    assert [path.name for path in tmp_path.glob(".run.*") if path.is_dir()] == []


@pytest.mark.ends
@pytest.mark.parametrize("resume", ["true", "false"])
def test_killed_replacement_leaves_the_finished_run_and_goes_on_or_starts_anew(
    compose_config, tiny_overrides, tmp_path, killed, resume
):
    run(compose_config, [*tiny_overrides, "checkpoint.every_n_steps=1"])
    before = files(tmp_path / "run")
    wanted = killed(2, "overwrite=true")
    assert files(tmp_path / "run") == before
    run(compose_config, [*wanted, f"resume={resume}"])
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (record["status"], record.get("resumed_at")) == ("completed", [2] if resume == "true" else None)
    assert files(tmp_path / "run")["model/model.safetensors"] == before["model/model.safetensors"]


@pytest.mark.ends
def test_failed_replacement_leaves_the_finished_run(compose_config, tiny_overrides, tmp_path, monkeypatch):
    from cap.training import train_phases

    def fail(*arguments):
        raise ValueError("made up")

    run(compose_config, [*tiny_overrides, "contrast=none"])
    before = files(tmp_path / "run")
    monkeypatch.setattr(train_phases, "_finish", fail)
    with pytest.raises(ValueError, match="made up"):
        run(compose_config, [*tiny_overrides, "contrast=none", "overwrite=true"])
    assert files(tmp_path / "run") == before


@pytest.mark.ends
def test_replacement_that_was_killed_before_it_was_put_in_place_is_found(
    compose_config, tiny_overrides, tmp_path, monkeypatch
):
    from cap.training import record as train_record

    wanted = [*tiny_overrides, "contrast=none", "overwrite=true"]
    run(compose_config, wanted)

    def die(run_dir):
        if run_dir.exists():
            run_dir.rename(tmp_path / ".run.old")  # between the two renames
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train_record, "put_in_place", die)
        with pytest.raises(Killed):
            run(compose_config, wanted)
    assert not (tmp_path / "run").exists()
    score = run(compose_config, [*wanted, "resume=true"])
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (record["status"], record["scores"]["pruned"]["accuracy"]) == ("completed", score)
    assert not list(tmp_path.glob(".run.replacement"))


def test_interrupted_run_is_started_anew_where_it_may_be_overwritten(compose_config, tmp_path, killed):
    wanted = killed(2)
    run(compose_config, [*wanted, "resume=false", "overwrite=true"])
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (record["status"], record.get("resumed_at")) == ("completed", None)


def test_interrupted_run_is_not_thrown_away(compose_config, killed):
    from cap.base.errors import InputError

    wanted = killed(2)
    with pytest.raises(InputError, match="with a checkpoint of step 2; continue it with resume=true, or remove"):
        run(compose_config, [*wanted, "resume=false"])


@pytest.mark.ends
def test_killed_teacher_goes_on_to_the_same_bits(
    compose_config, tiny_overrides, tmp_path, monkeypatch, uninterrupted, caplog
):
    import logging

    from cap.training.module import CapModule

    overrides = [*tiny_overrides, "checkpoint.every_n_steps=1", "resume=true"]
    whole = uninterrupted()
    step = CapModule.training_step

    def die(self, batch, batch_idx):
        if self.global_step == 2:
            raise Killed
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(CapModule, "training_step", die)
        with pytest.raises(Killed):
            run(compose_config, overrides)
    assert not (tmp_path / "run" / "checkpoints").exists()
    caplog.set_level(logging.INFO, logger="cap")
    run(compose_config, overrides)
    assert "teacher: fine-tuning goes on after step 2" in caplog.text
    assert_same_run(tmp_path / "run", whole)
    assert not list((tmp_path / "cache" / "teachers").glob("*.unfinished"))


def sent_by(monkeypatch, owner: type, name: str, *, call: int) -> None:
    """Let this process get a SIGTERM from within a call of a method."""
    original, calls = getattr(owner, name), []

    def with_signal(self, *arguments, **options):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *arguments, **options)

    monkeypatch.setattr(owner, name, with_signal)


# The calls of the run itself come after the four steps and the validation of its teacher, and two encodings. Several
# batches of a step, and a validation after each: the fifth is in the middle of the second step. A model is kept in the
# step that has a snapshot, too, after it was taken.
WITHIN_STEPS = ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=1"]
KEPT = ["pruning=magnitude", "schedule.n_prunings=3", "schedule.initial_sparsity=0.2", "keep_levels=[0.2]"]
MOMENTS = {
    "in a step": ("cap.training.module", "CapModule", "training_step", 6, 2, []),
    "in a validation": ("cap.training.module", "CapModule", "validation_step", 2, 4, []),
    "in a validation within a step": ("cap.training.module", "CapModule", "validation_step", 4, 2, WITHIN_STEPS),
    "in a snapshot": ("cap.data.datamodule", "CapDataModule", "encoding_dataloader", 3, 3, []),
    "in a kept model": ("cap.training.callbacks.keep", "KeepCallback", "_keep", 1, 3, KEPT),
}


@pytest.mark.parametrize(("module", "owner", "name", "call", "step", "overrides"), cases(MOMENTS, daily=["in a step"]))
def test_signal_leaves_a_checkpoint_from_which_the_run_goes_on_to_the_same_bits(
    compose_config, tiny_overrides, tmp_path, monkeypatch, uninterrupted, module, owner, name, call, step, overrides
):
    import importlib

    from cap.base.errors import StoppedError

    whole = uninterrupted(*overrides)
    tiny_overrides += overrides
    with monkeypatch.context() as patch:
        sent_by(patch, getattr(importlib.import_module(module), owner), name, call=call)
        with pytest.raises(StoppedError) as stopped:
            run(compose_config, tiny_overrides)
    assert stopped.value.exit_code == 143
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert (record["status"], record["error"]) == ("interrupted", "stopped by SIGTERM")
    run(compose_config, [*tiny_overrides, "resume=true"])
    assert_same_run(tmp_path / "run", whole)
    assert curves(tmp_path / "run") == curves(whole)
    assert json.loads((tmp_path / "run" / "record.json").read_text())["resumed_at"] == [step]


@pytest.mark.ends
def test_warnings_of_an_earlier_attempt_are_kept(compose_config, tmp_path, killed):
    wanted = killed(2)
    path = tmp_path / "run" / "record.json"
    left = json.loads(path.read_text())
    assert left["warnings"]
    path.write_text(json.dumps(left | {"warnings": [*left["warnings"], "said before"]}))
    run(compose_config, wanted)
    warnings = json.loads(path.read_text())["warnings"]
    assert warnings.count("said before") == 1
    assert len({*warnings}) == len(warnings)


def test_a_device_without_room_is_said(compose_config, tiny_overrides, tmp_path, monkeypatch):
    import torch

    from cap.base.errors import RunError
    from cap.training.module import CapModule
    from cap.training.parallel import ranks

    def no_room(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(CapModule, "training_step", no_room)
    monkeypatch.setattr(ranks, "_failure", ranks._Failure())
    with pytest.raises(
        RunError, match=r"must have room .*: CUDA out of memory\. .*; lower batch_size and raise trainer"
    ):
        run(compose_config, [*tiny_overrides, "teacher=none"])
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "failed"
    assert ranks._failure.code == 1  # the other processes do not fail with it


def test_full_disk_is_said_and_leaves_the_last_checkpoint(compose_config, tmp_path, monkeypatch, uninterrupted, killed):
    import errno

    import torch

    from cap.base.errors import RunError

    whole = uninterrupted()
    wanted = killed(2)

    def no_room(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", no_room)
        with pytest.raises(RunError, match=r"a checkpoint must be written to .*, but: No space left on device"):
            run(compose_config, wanted)
    assert {path.name for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt")} == {
        "step-0000001.ckpt",
        "step-0000002.ckpt",
    }
    run(compose_config, wanted)
    assert_same_run(tmp_path / "run", whole)
