from __future__ import annotations

import json
from pathlib import Path

import pytest

from cap.base.errors import InputError
from cap.runs.folder import (
    RunFolder,
    claim,
    drop_other_replacement,
    put_in_place,
    replacement_of,
    settle_replacement,
)
from cap.runs.record import write_record


def folder_of(tmp_path: Path, status: str, *files: str) -> Path:
    """Make the folder of a run of the configuration ``other``."""
    run_dir = tmp_path / "run"
    for name in ("config.yaml", "train.log", "logs/metrics.csv", *files):
        (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (run_dir / name).write_text("")
    (run_dir / "record.json").write_text(json.dumps({"status": status, "config_hash": "other", "wandb_id": "a"}))
    return run_dir


@pytest.mark.parametrize("status", ["failed", "interrupted"])
@pytest.mark.parametrize("files", [[], ["checkpoints/snapshots/0.npy"]], ids=["nothing more", "a snapshot"])
def test_failed_start_of_another_configuration_blocks_nobody(tmp_path, status, files):
    run_dir = folder_of(tmp_path, status, *files)
    found = RunFolder.read(run_dir, "mine")
    assert found == RunFolder(run_dir, "failed start")
    claim(found, {"config_hash": "mine"}, "seed: 1\n")
    assert sorted(path.name for path in run_dir.iterdir()) == ["config.yaml", "record.json"]


WORTH = {
    "completed": ("completed", []),
    "with a checkpoint": ("interrupted", ["checkpoints/step-0000002.ckpt"]),
    "with a model": ("failed", ["model/config.json"]),
    "with a kept level": ("failed", ["levels/0.5/config.json"]),
    "with a file of somebody else": ("failed", ["notes.txt"]),
}


@pytest.mark.parametrize(("status", "files"), WORTH.values(), ids=WORTH)
def test_folder_of_another_configuration_with_something_in_it_is_refused(tmp_path, status, files):
    found = RunFolder.read(folder_of(tmp_path, status, *files), "mine")
    before = sorted(found.path.iterdir())
    assert (found.state, found.record) == ("taken", None)
    with pytest.raises(InputError, match=r"hold a run of this configuration \(mine\), got .* of another one \(other\)"):
        claim(found, {"config_hash": "mine"}, "seed: 1\n")
    assert sorted(found.path.iterdir()) == before


@pytest.mark.parametrize(
    ("status", "state"), [("failed", "interrupted"), ("interrupted", "interrupted"), ("completed", "complete")]
)
def test_run_of_this_configuration_is_read_with_its_record(tmp_path, status, state):
    found = RunFolder.read(folder_of(tmp_path, status), "other")
    assert (found.state, found.record["wandb_id"]) == (state, "a")
    found.require_free()


def test_finished_run_is_to_be_found_and_not_to_be_overwritten(tmp_path):
    found = RunFolder.read(folder_of(tmp_path, "completed"), "other")
    found.require_going_on(goes_on=True)
    with pytest.raises(InputError, match="must not hold a finished run"):
        found.require_going_on(goes_on=False)


def test_what_another_process_is_about_to_rename_leaves_a_folder_empty(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".record.json.0123.json").write_text("")
    assert [RunFolder.read(tmp_path / name, "mine").state for name in ("run", "new")] == ["empty", "empty"]


STRANGE = {
    "file": (lambda path: path.write_text(""), "must be a folder, got the file"),
    "no run": (lambda path: (path.mkdir(), (path / "notes.txt").write_text("")), "with notes.txt; choose another"),
    "half a record": (
        lambda path: (path.mkdir(), (path / "record.json").write_text("{")),
        r"of another one \(unreadable",
    ),
    "list": (lambda path: (path.mkdir(), (path / "record.json").write_text("[]")), r"of another one \(unreadable"),
}


@pytest.mark.parametrize(("make", "message"), STRANGE.values(), ids=STRANGE)
def test_what_is_no_run_is_refused(tmp_path, make, message):
    make(tmp_path / "run")
    with pytest.raises(InputError, match=message):
        RunFolder.read(tmp_path / "run", "mine").require_free()


def replacement_with(run_dir: Path, **record: str) -> Path:
    new = replacement_of(run_dir)
    new.mkdir(parents=True)
    (new / "record.json").write_text(json.dumps(record))
    return new


def test_complete_replacement_is_settled_and_the_old_run_is_gone(tmp_path):
    run_dir = folder_of(tmp_path, "completed")
    replacement_with(run_dir, status="completed", config_hash="other")
    assert settle_replacement(run_dir, "other")
    assert [path.name for path in run_dir.iterdir()] == ["record.json"]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]


@pytest.mark.parametrize(
    "record",
    [
        {"status": "interrupted", "config_hash": "other"},
        {"status": "completed", "config_hash": "mine"},
        {"status": "completed"},
    ],
    ids=["interrupted", "of another configuration", "without a hash"],
)
def test_replacement_that_is_not_complete_is_not_settled(tmp_path, record):
    run_dir = folder_of(tmp_path, "completed")
    new = replacement_with(run_dir, **record)
    assert not settle_replacement(run_dir, "other")
    assert new.exists()
    assert (run_dir / "train.log").exists()


def test_replacement_is_put_in_place_once_however_often_it_is_asked_for(tmp_path):
    run_dir = folder_of(tmp_path, "completed")
    replacement_with(run_dir, status="completed", config_hash="new")
    put_in_place(run_dir)
    put_in_place(run_dir)
    assert json.loads((run_dir / "record.json").read_text())["config_hash"] == "new"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]


@pytest.mark.parametrize("n_renames", [0, 1, 2])
def test_replacement_that_a_signal_cut_off_is_ended_by_the_next_call(tmp_path, monkeypatch, n_renames):
    run_dir = folder_of(tmp_path, "completed")
    replacement_with(run_dir, status="completed", config_hash="new")
    rename, done = Path.rename, []

    def stopped(self, target):
        if len(done) == n_renames:
            raise KeyboardInterrupt
        done.append(target)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stopped)
        if n_renames == 2:  # then what is removed at the end
            patch.setattr(
                "cap.runs.folder.shutil.rmtree", lambda path, **options: path.exists() and stopped(path, path)
            )
        with pytest.raises(KeyboardInterrupt):
            put_in_place(run_dir)
    put_in_place(run_dir)
    assert json.loads((run_dir / "record.json").read_text())["config_hash"] == "new"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]


@pytest.mark.parametrize(("config_hash", "stays"), [("mine", False), ("other", True)])
def test_only_the_replacement_of_another_configuration_is_dropped(tmp_path, config_hash, stays):
    new = replacement_with(tmp_path / "run", status="interrupted", config_hash="other")
    drop_other_replacement(tmp_path / "run", config_hash)
    assert new.exists() is stays


def test_a_run_of_another_configuration_is_told_by_the_keys_that_differ(tmp_path: Path) -> None:
    there = {"sparsity": 0.5, "schedule": {"rewind": "last"}, "seed": 1, "output_dir": "a", "task": {"name": "sst2"}}
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model").mkdir()
    write_record(folder, {"config_hash": "there", "status": "completed", "config": there})
    here = {**there, "sparsity": 0.9, "output_dir": "b", "schedule": {"rewind": "none"}, "freeze": ["head"]}
    problem = RunFolder.read(folder, "here", here).problem
    assert problem is not None
    assert problem.endswith(
        "with a run of another one (there): sparsity=0.5 there, 0.9 here; schedule.rewind=last there, none here; "
        "freeze=None there, ['head'] here; choose another output_dir"
    )
