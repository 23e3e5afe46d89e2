from __future__ import annotations

import signal
import sys

import pytest

CONFIG = """
defaults:
  - _self_
  - override hydra/job_logging: none
  - override hydra/hydra_logging: none
ends: completed
number: 1
traceback: false
hydra:
  output_subdir: null
  sweep: {dir: outputs, subdir: .}
  callbacks: {grid: {_target_: cap.launch.grid.GridCallback}}
"""


def refuse_bad(cfg) -> None:
    """Be the check of a composed configuration."""
    from cap.base.errors import InputError

    assert "hydra" not in cfg
    if cfg.ends.startswith("bad"):
        raise InputError(f"got {cfg.ends}")


CHECKED = "hydra.callbacks.grid.check={_target_:hydra.utils.get_method,path:tests.launch.test_grid.refuse_bad}"


@pytest.fixture(autouse=True)
def terminal_as_it_is(monkeypatch):
    """Let nothing in the environment tell rich of another terminal."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def seen() -> list[str]:
    """Collect the jobs that began."""
    return []


@pytest.fixture
def run_grid(tmp_path, monkeypatch, seen):
    """Run a multirun whose jobs end in the way that ``ends=`` says, as the doors do; give its exit code."""

    def job(cfg) -> float | None:
        from cap.base.errors import InputError, RunError, StoppedError
        from cap.launch.grid import note

        seen.append(cfg.ends)
        if cfg.ends in ("skipped", "resumed"):
            note(outcome=cfg.ends, folder="outputs/a-run")
        errors = {
            "bad": InputError("sparsity lies in [0, 1), got 97"),
            "wrong": RunError("the loss is nan"),
            "unknown": ZeroDivisionError("division by zero"),
            "resumed_but_wrong": RunError("the loss is nan again"),
            "interrupted": KeyboardInterrupt(),
            "terminated": StoppedError(signal.SIGTERM, is_clean=True),
        }
        if cfg.ends in errors:
            raise errors[cfg.ends]
        return 0.75

    def run(*arguments: str) -> int:
        import hydra
        from hydra.core.global_hydra import GlobalHydra
        from hydra.core.hydra_config import HydraConfig

        from cap.launch.grid import listed, watched

        (tmp_path / "conf").mkdir(exist_ok=True)
        (tmp_path / "conf" / "grid.yaml").write_text(CONFIG)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["grid", "-m", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        GlobalHydra.instance().clear()

        @hydra.main(version_base="1.3", config_path=str(tmp_path / "conf"), config_name="grid")
        def composed(cfg) -> float | None:
            with watched(HydraConfig.get().job.num, show_traceback=cfg.traceback):
                return job(cfg)

        try:
            with listed():
                composed()
        except SystemExit as left:
            return int(left.code)
        return 0

    return run


def row_of(number: int, text: str) -> str:
    """Find a job's row in the table."""
    (row,) = [line for line in text.splitlines() if line.strip().startswith(f"{number} ")]
    return row


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ("completed,skipped,resumed", 0),
        ("completed,bad", 2),
        ("completed,wrong", 1),
        ("unknown,completed", 1),
        ("bad,wrong,completed", 1),
    ],
)
def test_exit_code_says_whether_all_are_complete_or_only_bad_input_went_wrong(run_grid, ends, expected):
    assert run_grid(f"ends={ends}") == expected


@pytest.mark.parametrize("ends", ["bad", "wrong", "unknown"])
def test_a_job_that_fails_stops_no_other(run_grid, seen, ends):
    run_grid(f"ends={ends},completed,skipped")
    assert seen == [ends, "completed", "skipped"]


def test_jobs_that_cannot_work_are_named_before_any_begins_and_stop_no_other(run_grid, seen, caplog, capsys):
    with caplog.at_level("WARNING", "cap"):
        assert run_grid(f"+{CHECKED}", "ends=completed,bad,skipped") == 2
    assert seen == ["completed", "bad", "skipped"]
    first, second, *_ = [record.getMessage() for record in caplog.records]
    assert first == "job 1 (ends=bad) cannot work: got bad"
    assert second.startswith("1 of 3 jobs are going to be refused; press Ctrl-C")


def test_only_the_first_jobs_that_cannot_work_are_named(run_grid, caplog):
    with caplog.at_level("WARNING", "cap"):
        run_grid(f"+{CHECKED}", "ends=completed,bad1,bad2,bad3,bad4")
    warnings = [record.getMessage() for record in caplog.records if "work" in record.getMessage()]
    assert len(warnings) == 3
    assert any(
        "4 of 5 jobs are going to be refused, the first 3 for" in record.getMessage() for record in caplog.records
    )


def test_nothing_is_said_beforehand_of_jobs_that_can_work(run_grid, caplog):
    with caplog.at_level("WARNING", "cap"):
        assert run_grid(f"+{CHECKED}", "ends=completed,skipped") == 0
    assert not caplog.records


def test_a_job_whose_values_cannot_be_read_beforehand_is_left_to_itself(run_grid, seen, caplog):
    with caplog.at_level("WARNING", "cap"):
        assert run_grid(f"+{CHECKED}", "ends=${no_such_key},completed") == 2
    assert seen == ["completed"]
    assert not any("going to be refused" in record.getMessage() for record in caplog.records)


def test_a_job_that_fails_stops_no_later_batch_of_jobs(run_grid, seen):
    run_grid("ends=wrong,completed,skipped", "hydra.sweeper.max_batch_size=1")
    assert seen == ["wrong", "completed", "skipped"]


def test_the_end_lists_failures_last_and_says_why(run_grid, capsys):
    run_grid("ends=wrong,completed,bad")
    lines = capsys.readouterr().err.splitlines()
    first_cells = [line.split()[0] for line in lines if "ends=" in line and not line.startswith("job")]
    assert first_cells == ["1", "0", "2"]
    assert "3 jobs: 2 failed, 1 completed" in lines
    assert "job 0 (ends=wrong) failed: the loss is nan" in lines
    assert "job 2 (ends=bad) failed: sparsity lies in [0, 1), got 97" in lines
    assert lines[-1].startswith("Mend what failed, then repeat the command: jobs that are complete are skipped")


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("overwrite=true", "repeat the command with overwrite=false: jobs"),
        ("debug=fast", "repeat the command with overwrite=false: jobs"),
        ("skip_completed=False", "repeat the command with skip_completed=true: jobs"),
        ("seed=1", "repeat the command: jobs"),
    ],
)
def test_what_would_make_complete_jobs_again_is_not_repeated(capsys, typed, said):
    from cap.launch.grid_jobs import Job
    from cap.launch.grid_table import show

    show([Job(0, [typed], outcome="completed"), Job(1, [typed], outcome="failed")])
    assert f"Mend what failed, then {said} that are complete" in capsys.readouterr().err


def test_the_list_shows_what_a_job_noted_about_itself(run_grid, capsys):
    run_grid("ends=skipped,resumed")
    text = capsys.readouterr().err
    assert row_of(0, text).split()[1:4] == ["ends=skipped", "skipped", "0.7500"]
    assert "resumed" in row_of(1, text)
    assert "outputs/a-run" in row_of(1, text)


def test_a_resumed_job_that_fails_has_failed(run_grid, capsys):
    assert run_grid("ends=resumed_but_wrong,completed") == 1
    assert "job 0 (ends=resumed_but_wrong) failed: the loss is nan again" in capsys.readouterr().err


def test_the_list_names_only_the_settings_that_differ(run_grid, capsys):
    run_grid("ends=completed", "number=1,2")
    assert row_of(1, capsys.readouterr().err).split()[1:3] == ["number=2", "completed"]


def test_no_word_about_repeating_where_all_is_complete(run_grid, capsys):
    run_grid("ends=completed,skipped")
    assert "repeat" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("ends", "options", "has_traceback"),
    [("wrong", [], False), ("wrong", ["traceback=true"], True), ("unknown", [], True)],
    ids=["known", "known on request", "unknown"],
)
def test_a_traceback_is_shown_for_unknown_errors_and_on_request(run_grid, caplog, ends, options, has_traceback):
    run_grid(f"ends={ends},completed", *options)
    (record,) = [record for record in caplog.records if record.getMessage().startswith("job 0 failed: ")]
    assert bool(record.exc_info) == has_traceback


def test_a_failure_is_said_once_when_it_happens_and_once_in_the_list(run_grid, capsys, caplog):
    run_grid("ends=wrong,completed")
    assert capsys.readouterr().err.count("the loss is nan") == 1
    assert caplog.text.count("the loss is nan") == 1


@pytest.mark.parametrize(("ends", "code"), [("interrupted", KeyboardInterrupt), ("terminated", 143)])
def test_a_stop_ends_the_grid_and_the_list_is_shown_all_the_same(run_grid, seen, capsys, ends, code):
    try:
        left = run_grid(f"ends=completed,{ends},skipped")
    except KeyboardInterrupt:
        left = KeyboardInterrupt
    text = capsys.readouterr().err
    assert left == code
    assert seen == ["completed", ends]
    assert [row_of(number, text).split()[2] for number in range(2)] == ["completed", "stopped"]
    assert "not started" in row_of(2, text)
    assert text.splitlines()[-1].startswith("Repeat the command")


def test_nothing_of_the_grid_stays_in_the_folder_of_all_runs(run_grid, tmp_path):
    run_grid("ends=completed,wrong")
    assert list((tmp_path / "outputs").iterdir()) == []


def test_hydras_note_stays_in_a_folder_that_the_user_chose(run_grid, tmp_path):
    run_grid("ends=completed", "hydra.sweep.dir=mine", "hydra.sweep.subdir=${hydra.job.num}")
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"multirun.yaml", "0"}


def test_a_launcher_that_gives_up_is_one_line_before_the_list(run_grid, capsys, caplog, monkeypatch):
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    launch = BasicLauncher.launch

    def gives_up(self, job_overrides, initial_job_idx):
        launch(self, job_overrides[:1], initial_job_idx)
        raise RuntimeError("the pool\nis broken")

    monkeypatch.setattr(BasicLauncher, "launch", gives_up)
    assert run_grid("ends=completed,skipped") == 1
    assert "the launcher gave up: RuntimeError: the pool is broken" in caplog.text
    assert "2 jobs: 1 completed, 1 not started" in capsys.readouterr().err


def test_what_cannot_be_composed_ends_the_grid_before_it_begins(run_grid, seen, capsys):
    from hydra.errors import HydraException

    with pytest.raises(HydraException, match="numbr"):
        run_grid("ends=completed", "numbr=1,2")
    assert seen == []
    assert capsys.readouterr().err == ""


def test_a_folder_that_cannot_be_written_is_bad_input_before_anything_runs(run_grid, seen, tmp_path):
    from cap.base.errors import InputError

    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"hydra\.sweep\.dir must be a folder that can be written"):
        run_grid("ends=completed", "hydra.sweep.dir=file")
    assert seen == []


def test_a_note_outside_of_a_grid_is_no_error():
    from cap.launch.grid import note

    note(folder="anywhere", outcome="skipped")


def test_handlers_of_signals_are_as_they_were_after_a_grid(run_grid):
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        run_grid("ends=completed,wrong")
        after = signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert after == signal.SIG_IGN
