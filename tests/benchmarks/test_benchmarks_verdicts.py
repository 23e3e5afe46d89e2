"""What the benchmarks of reliability call a success: a run that begins anew ends at the same bits, and is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SAME = {"weights": True, "scores": True}
OTHER = {"weights": False, "scores": True}
KILLED = {"phase": "training", "was_running": True, "resumed_at": [5], "equal": SAME}
KILLED_RANK = {
    "phase": "training",
    "resumed_at": [5],
    "equal": SAME,
    "left_running": 0,
    "exit_code": 1,
    "said": "error: rank 1 ended",
}


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        pytest.param({}, None, id="good"),
        pytest.param({"phase": "teacher", "resumed_at": []}, None, id="begun anew before training"),
        pytest.param({"phase": "encoding", "resumed_at": []}, None, id="begun anew while encoding"),
        pytest.param({"equal": OTHER}, "other weights, scores or curves", id="other bits"),
        pytest.param({"equal": {}}, "other weights, scores or curves", id="nothing compared"),
        pytest.param({"was_running": False}, "had ended before it was killed", id="killed too late"),
        pytest.param({"resumed_at": []}, "began anew", id="training"),
        pytest.param({"phase": "level change", "resumed_at": []}, "began anew", id="level change"),
        pytest.param({"phase": "checkpointing", "resumed_at": []}, "began anew", id="checkpointing"),
        pytest.param({"phase": "saving", "resumed_at": []}, "began anew", id="saving"),
    ],
)
def test_a_killed_run_must_go_on_and_end_at_the_same_bits(found, problem):
    from benchmarks.killed import verdict

    trial = {**KILLED, **found}
    expected = [] if problem is None else [f"trial 2, {trial['phase']}: {problem}"]
    assert verdict([KILLED, trial], n_processes=1) == expected


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        pytest.param({}, None, id="good"),
        pytest.param({"left_running": 1}, "processes were left running", id="left"),
        pytest.param({"exit_code": 0}, "the rest did not end as failed", id="ended well"),
        pytest.param({"exit_code": None}, "the rest did not end as failed", id="did not end"),
        pytest.param({"said": None}, "the rest did not say why it ended", id="silent"),
        pytest.param({"resumed_at": []}, "began anew", id="begun anew"),
        pytest.param({"equal": OTHER}, "other weights, scores or curves", id="other bits"),
    ],
)
def test_the_rest_of_a_run_of_several_must_end_and_say_why(found, problem):
    from benchmarks.killed import verdict

    expected = [] if problem is None else [f"trial 1, training: {problem}"]
    assert verdict([{**KILLED_RANK, **found}], n_processes=2) == expected


def test_no_trial_is_no_success():
    from benchmarks.killed import verdict

    assert verdict([], n_processes=1) == ["no trial was made"]


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param([], id="none"),
        pytest.param(["checkpoint.every_n_steps=null"], id="null"),
        pytest.param(["checkpoint.every_n_steps=5", "checkpoint.every_n_steps=null"], id="the last one counts"),
        pytest.param(["checkpoint.every_n_minutes=1"], id="minutes"),
    ],
)
def test_a_job_without_checkpoints_is_refused(overrides):
    from benchmarks.killed import require_checkpoints

    with pytest.raises(SystemExit, match=r"begin anew .* add checkpoint\.every_n_steps=5"):
        require_checkpoints(["task=sst2", *overrides])


def test_a_job_with_checkpoints_is_taken():
    from benchmarks.killed import require_checkpoints

    assert require_checkpoints(["task=sst2", "checkpoint.every_n_steps=5"]) is None


@pytest.mark.parametrize(
    ("phase", "being_written"),
    [
        pytest.param(
            "level change", "snapshots/.step-0000010.npy.shares.abc/0/encodings.npy", id="share of a snapshot"
        ),
        pytest.param("level change", "snapshots/.step-0000010.npy.abc.npy", id="snapshot"),
        pytest.param("checkpointing", ".step-0000010.ckpt.abc.ckpt", id="checkpoint"),
    ],
)
def test_a_phase_begins_with_the_file_being_written_behind_the_first_checkpoint(tmp_path, phase, being_written):
    from benchmarks.killed import PHASES, Trial

    def write(name: str) -> bool:
        path = tmp_path / "run" / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return PHASES[phase](Trial(tmp_path))

    assert [write("snapshots/step-0000005.npy"), write(being_written), write("step-0000005.json")] == [0, 0, 1]


FILLED = {
    "equal": SAME,
    "exit_code": 1,
    "said": "error: a checkpoint must be written to DIR",
    "last_good_step": 10,
    "resumed_at": [10],
}
ANEW = "the repeated command did not go on from the last good checkpoint"


@pytest.mark.parametrize(
    ("found", "problems"),
    [
        pytest.param({}, [], id="good"),
        pytest.param({"equal": OTHER}, ["other weights, scores or curves"], id="other bits"),
        pytest.param({"exit_code": -9}, ["the run did not end with exit code 1"], id="killed"),
        pytest.param({"said": None}, ["the error does not name the checkpoint"], id="silent"),
        pytest.param({"said": "error: no space"}, ["the error does not name the checkpoint"], id="vague"),
        pytest.param({"last_good_step": None, "resumed_at": []}, ["no whole checkpoint was left", ANEW], id="torn"),
        pytest.param({"resumed_at": []}, [ANEW], id="begun anew"),
        pytest.param({"resumed_at": [5]}, [ANEW], id="an older checkpoint"),
    ],
)
def test_a_run_on_a_full_disk_must_leave_a_checkpoint_and_go_on_from_it(found, problems):
    from benchmarks.full_disk import verdict

    assert verdict({**FILLED, **found}) == problems


@pytest.mark.parametrize(("record", "steps"), [({}, []), ({"resumed_at": [5]}, [5])], ids=["never", "once"])
def test_a_record_without_a_word_about_it_never_went_on(record, steps):
    from benchmarks.full_disk import resumed_at

    assert resumed_at(record) == steps


GRID = {
    "exit_code": 0,
    "records": 12,
    "trained_again": 0,
    "teachers": 1,
    "teacher_trainings": 1,
    "in_progress_when_killed": 2,
    "resumed": 2,
}


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        pytest.param({}, None, id="good"),
        pytest.param({"in_progress_when_killed": 0, "resumed": 0}, None, id="nothing was in progress"),
        pytest.param({"resumed": 0}, "2 had a checkpoint when killed, 0 went on", id="begun anew"),
        pytest.param({"resumed": 1}, "2 had a checkpoint when killed, 1 went on", id="one begun anew"),
        pytest.param({"records": 11}, "records must be 12, got 11", id="a job is missing"),
        pytest.param({"trained_again": 1}, "trained_again must be 0, got 1", id="trained again"),
        pytest.param({"exit_code": 1}, "exit_code must be 0, got 1", id="failed"),
    ],
)
def test_a_grid_that_was_killed_must_go_on_with_its_jobs(found, problem):
    from benchmarks.grid_killed import verdict

    assert verdict({**GRID, **found}) == ([] if problem is None else [problem])


def test_jobs_in_progress_are_those_with_a_checkpoint_and_no_complete_record(tmp_path):
    from benchmarks.grid_killed import in_progress

    def job(name: str, status: str, *files: str) -> None:
        folder = tmp_path / "grid" / "sst2" / "magnitude-0.5" / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps({"status": status}), encoding="utf-8")
        for file in files:
            (folder / "checkpoints" / file).touch()

    job("complete", "completed", "step-0000005.json")
    job("young", "interrupted", "step-0000005.ckpt")
    job("begun", "interrupted", "step-0000005.ckpt", "step-0000005.json")
    assert in_progress(tmp_path) == {"begun"}


EXACT = {
    "steps": 30,
    "largest_difference": 1e-6,
    "steps_with_masks_of_one_process": 30,
    "first_steps_within_bound": 30,
    "validation_passes": 5,
    "rows_once": True,
    "masks_equal_over_ranks": True,
}
ROUNDED = {**EXACT, "largest_difference": 1e-4, "steps_with_masks_of_one_process": 20, "first_steps_within_bound": 20}


@pytest.mark.parametrize(
    ("precision", "found", "problem"),
    [
        pytest.param("32-true", {}, None, id="good"),
        pytest.param("64-true", {"largest_difference": 2e-5}, "64-true: losses differ by more than 1e-05", id="losses"),
        pytest.param(
            "64-true", {"steps": 0, "steps_with_masks_of_one_process": 0}, "64-true: fewer than 30", id="steps"
        ),
        pytest.param("32-true", {"first_steps_within_bound": 9}, "32-true: fewer than 10 first steps", id="float32"),
        pytest.param("32-true", {"validation_passes": 2}, "32-true: fewer than 3 validations", id="validations"),
        pytest.param("64-true", {"rows_once": False}, "64-true: a validation row was not scored once", id="rows"),
        pytest.param("32-true", {"masks_equal_over_ranks": False}, "32-true: masks differ between ranks", id="masks"),
    ],
)
def test_two_processes_must_be_as_one(precision, found, problem):
    from benchmarks.processes import verdict

    results = {"64-true": EXACT, "32-true": ROUNDED}
    results[precision] = {**results[precision], **found}
    problems = verdict(results)
    assert [text.startswith(problem or "") for text in problems] == ([] if problem is None else [True])


@pytest.mark.parametrize(
    ("budget_gb", "expected"),
    [pytest.param(1.0, 2**30 + 7, id="the budget"), pytest.param(0.0, 2400 + 7, id="what must be held")],
)
def test_memory_that_is_allowed_is_counted_from_sizes(budget_gb, expected):
    from benchmarks.memory import allowed_bytes

    assert allowed_bytes(100, budget_gb, 7) == expected


@pytest.mark.parametrize(
    ("grown", "files", "mapped", "message"),
    [
        pytest.param(3 * 2**30, 2**33, 2**32, "the budget does not hold", id="too much"),
        pytest.param(2**30, 2**33, 0, "nothing was mapped", id="nothing mapped"),
    ],
)
def test_a_budget_that_does_not_hold_is_an_error(grown, files, mapped, message):
    from benchmarks.memory import require_held

    with pytest.raises(RuntimeError, match=message):
        require_held(grown, 2**30, files, 1.0, bytes_mapped=mapped)


def test_nothing_has_to_be_mapped_where_all_fits():
    from benchmarks.memory import require_held

    assert require_held(2**29, 2**30, 2**29, 1.0, bytes_mapped=0) is None


def test_a_budget_that_reads_everything_is_found_out(tmp_path, monkeypatch):
    """Whatever it says of itself: the process's own memory is what is measured."""
    import numpy as np

    from benchmarks.memory import Settings, measure_memory, write_files
    from cap.base.memory_budget import MemoryBudget

    def reads(budget: MemoryBudget, path: Path) -> np.ndarray:
        array = np.load(path)
        budget._bytes_in_memory += array.nbytes
        budget._bytes_mapped += 1
        return array

    settings = Settings(rows=30_000, dim=512, encodings=4, tokens=4, budget_gb=0.0, steps=1)
    banks = write_files(tmp_path, settings)
    monkeypatch.setattr(MemoryBudget, "open_array", reads)
    with pytest.raises(RuntimeError, match="the budget does not hold"):
        measure_memory(tmp_path, banks, settings)
