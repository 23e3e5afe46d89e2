from __future__ import annotations

import json
from pathlib import Path

import pytest

from cap.errors import InputError
from cap.results.folder import claim, read_record, require_free


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
    assert read_record(run_dir, "mine") is None
    claim(run_dir, {"config_hash": "mine"}, "seed: 1\n")
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
    with pytest.raises(InputError, match=r"hold a run of this configuration \(mine\), got .* of another one \(other\)"):
        require_free(folder_of(tmp_path, status, *files), "mine")


def test_failed_start_of_this_configuration_is_read(tmp_path):
    assert read_record(folder_of(tmp_path, "failed"), "other")["wandb_id"] == "a"
