"""What a run finds in its folder before anything is loaded; tests/test_doors.py asks the same of the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def attempt(compose_config, tmp_path):
    """Say what a process is about to do with the folder ``run``."""

    def make(*overrides: str, goes_on: bool = False, is_alone: bool = True):
        from cap.config.check import check
        from cap.training.found import Attempt

        return Attempt(
            checked=check(compose_config(*overrides)),
            run_dir=tmp_path / "run",
            command="python -m cap.train",
            goes_on=goes_on,
            is_first=True,
            is_alone=is_alone,
            shows_found=False,
        )

    return make


@pytest.fixture
def interrupted(attempt, tmp_path) -> Path:
    """Leave a record and a checkpoint of step 3, as a run does that was interrupted; return the checkpoint."""
    from cap.base.files import file_sha256

    config_hash = attempt().checked.hash
    checkpoint = tmp_path / "run" / "checkpoints" / "step-0000003.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"state")
    seal = {"step": 3, "bytes": 5, "sha256": file_sha256(checkpoint), "config_hash": config_hash, "n_rows": 1}
    checkpoint.with_suffix(".json").write_text(json.dumps(seal))
    (tmp_path / "run" / "record.json").write_text(json.dumps({"status": "interrupted", "config_hash": config_hash}))
    return checkpoint


def test_new_folder_is_left_unmade(attempt, tmp_path):
    from cap.training.found import look

    assert look(attempt()).record is None
    assert list(tmp_path.iterdir()) == []


def test_interrupted_run_that_nobody_asked_for_is_refused(attempt, interrupted):
    from cap.base.errors import InputError
    from cap.training.found import look

    with pytest.raises(InputError, match="with a checkpoint of step 3; continue it with resume=true, or remove"):
        look(attempt())


LEFT = {
    "it is resumed": ([], {"goes_on": True}),
    "it may be overwritten": (["overwrite=true"], {}),
    "the first of several processes will look": ([], {"is_alone": False}),
}


@pytest.mark.parametrize(("overrides", "flags"), LEFT.values(), ids=LEFT)
def test_interrupted_run_is_left_where(attempt, interrupted, overrides, flags):
    from cap.training.found import look

    earlier = look(attempt(*overrides, **flags))
    assert earlier.record is not None
    assert (earlier.is_done, earlier.is_replaced) == (False, False)
    assert interrupted.is_file()


def test_interrupted_run_without_a_whole_checkpoint_is_started_anew(attempt, interrupted):
    from cap.training.found import look

    interrupted.write_bytes(b"stat")
    assert look(attempt()).record is not None


def test_run_that_another_process_is_making_is_refused_as_that(attempt, interrupted):
    from cap.base.errors import InputError
    from cap.runs.folder import hold
    from cap.training.found import look

    lock = hold(interrupted.parents[1])
    try:
        with pytest.raises(InputError, match="another process is running this configuration"):
            look(attempt())
    finally:
        lock.release()
