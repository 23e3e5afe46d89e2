"""How several processes of a run begin it together."""

from __future__ import annotations

import json
from functools import partial

import pytest

from tests.training.ranks_in_threads import run_ranks


@pytest.fixture
def begin(compose_config, tiny_overrides, tmp_path):
    """Let two processes begin a run whose folder holds a record with a status; return what comes of it on each."""
    from cap.config.check import check
    from cap.training.parallel.shares import together
    from cap.training.preparation import prepare
    from cap.training.ready import make_ready
    from cap.training.record import RunRecord

    checked = make_ready(check(compose_config(*tiny_overrides)))
    prepared = prepare(checked)

    def begin_with(status: str, *, goes_on: bool):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "record.json").write_text(json.dumps({"status": status, "config_hash": checked.hash}))

        def begin_on(ranks):
            record = RunRecord(checked, tmp_path / "run", command="python -m cap.train", is_first=ranks.is_first)
            start = partial(record.begin, prepared, find=lambda found: None, goes_on=goes_on)
            return together(ranks, start, what="taking the run's folder")[0]

        return run_ranks(2, begin_on)

    return begin_with


def test_run_that_another_one_has_completed_meanwhile_is_found_on_every_process(begin, tmp_path):
    from cap.runs.folder import hold

    outcomes = begin("completed", goes_on=True)
    assert [outcome.completed["status"] for outcome in outcomes] == ["completed", "completed"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["record.json"]
    assert json.loads((tmp_path / "run" / "record.json").read_text())["status"] == "completed"
    hold(tmp_path / "run").release()  # nobody is in the folder any longer


def test_run_that_is_not_complete_is_begun_on_every_process(begin, tmp_path):
    from cap.training.record import Begun

    assert begin("failed", goes_on=True) == [Begun(), Begun()]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.yaml", "record.json"]


def test_finished_run_that_nobody_wants_to_find_is_refused_on_every_process(begin):
    from cap.base.errors import InputError, RunError

    first, second = begin("completed", goes_on=False)
    assert isinstance(first, InputError)
    assert "must not hold a finished run" in str(first)
    assert isinstance(second, RunError)
