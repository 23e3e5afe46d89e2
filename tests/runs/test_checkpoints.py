"""Which checkpoint a run goes on from."""

from __future__ import annotations

from pathlib import Path

import pytest


def write(folder: Path, step: int, content: bytes, config_hash: str = "mine") -> Path:
    """Write a checkpoint and the list of what it is when whole."""
    from cap.base.files import file_sha256, write_json

    path = folder / f"step-{step:07d}.ckpt"
    path.write_bytes(content)
    listed = {
        "step": step,
        "bytes": len(content),
        "sha256": file_sha256(path),
        "config_hash": config_hash,
        "n_rows": 3,
        "device": "cpu",
    }
    write_json(path.with_suffix(".json"), listed)
    return path


def newest(folder: Path) -> int | None:
    from cap.runs.checkpoints import newest_checkpoint

    found = newest_checkpoint(folder, config_hash="mine")
    return None if found is None else found.step


def test_the_newest_of_the_configuration_is_taken(tmp_path):
    assert newest(tmp_path) is None
    write(tmp_path, 10, b"first")
    write(tmp_path, 20, b"second")
    write(tmp_path, 30, b"third", config_hash="another")
    assert newest(tmp_path) == 20


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.write_bytes(b"secoND"), lambda path: path.write_bytes(b"sec"), lambda path: path.unlink()],
    ids=["other bytes", "fewer bytes", "gone"],
)
def test_a_damaged_one_is_passed_over_and_said(tmp_path, damage, caplog):
    write(tmp_path, 10, b"first")
    damage(write(tmp_path, 20, b"second"))
    assert newest(tmp_path) == 10
    assert "the checkpoint step-0000020.ckpt is torn; the one before it is used" in caplog.text
