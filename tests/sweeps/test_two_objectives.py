from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("optuna")

ROOT = Path(__file__).parents[2]
OF_FILE = ["contrast.unsupervised_weight", "contrast.supervised_weight", "contrast.temperature"]


@pytest.fixture(autouse=True)
def quiet_optuna():
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    yield
    optuna.logging.set_verbosity(before)


@pytest.fixture
def study_of(tmp_path):
    """Run a study whose trials are a function of their arguments instead of a process."""

    def run(runner, *arguments: str, n_trials: int = 4):
        from sweeps.two_objectives import read_settings, run_study, space_of

        own = ["study=s", "task=sst2", f"folder={tmp_path}", f"n_trials={n_trials}"]
        settings, given = read_settings([*own, *arguments])
        return run_study(settings, space_of(settings, given), runner)

    return run


def of(arguments: list[str]) -> dict[str, str]:
    return dict(argument.split("=", 1) for argument in arguments)


class Runner:
    """Remember what was run; the score falls as sparsity rises, and with the distance from a temperature of 0.1."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, str], Path]] = []

    def __call__(self, arguments, folder, log):
        from sweeps.trials import Reached

        self.calls.append((of(arguments), folder))
        sparsity = float(of(arguments)["sparsity"])
        return Reached("accuracy", 1 - sparsity**4 - abs(float(of(arguments)["contrast.temperature"]) - 0.1), sparsity)


def lines_of(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "s" / "trials.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_every_trial_chooses_within_the_ends(study_of):
    runner = Runner()
    study_of(runner, "lowest_sparsity=0.6", "highest_sparsity=0.7", n_trials=6)
    assert len({arguments["sparsity"] for arguments, _ in runner.calls}) == 6
    assert all(0.6 <= float(arguments["sparsity"]) <= 0.7 for arguments, _ in runner.calls)
    assert all(0.03 <= float(arguments["contrast.temperature"]) <= 1.0 for arguments, _ in runner.calls)


def test_trials_have_the_settings_of_the_sweep_file_and_folders_of_their_own(study_of, tmp_path):
    runner = Runner()
    study_of(runner, "seed=3", n_trials=2)
    assert [folder for _, folder in runner.calls] == [tmp_path / "s" / "trials" / name for name in ("0000", "0001")]
    arguments, _ = runner.calls[0]
    fixed = {"task": "sst2", "experiment": "cap_soft_movement", "pruning.threshold": "target", "seed": "3"}
    fixed["data.held_out_rows"] = "4000"
    assert set(arguments) == {*fixed, "sparsity", *OF_FILE, "pruning.score_learning_rate"}
    assert fixed.items() <= arguments.items()


def test_what_is_given_is_not_searched(study_of):
    runner = Runner()
    study_of(runner, "contrast.temperature=0.1", n_trials=2)
    assert [arguments["contrast.temperature"] for arguments, _ in runner.calls] == ["0.1", "0.1"]


def test_front_is_what_no_other_trial_beats(study_of):
    from sweeps.front import front_of

    study = study_of(Runner(), n_trials=8)
    values = [trial.values for trial in study.trials]
    unbeaten = [v for v in values if not any(o != v and o[0] >= v[0] and o[1] >= v[1] for o in values)]
    assert [trial.values for trial in front_of(study)] == sorted(unbeaten, key=lambda v: v[1])


def test_csv_has_a_line_for_each_trial_and_the_picture_is_drawn(study_of, tmp_path):
    study = study_of(Runner())
    written = lines_of(tmp_path)
    assert [float(line["score"]) for line in written] == [trial.values[0] for trial in study.trials]
    assert {line["state"] for line in written} == {"complete"}
    assert (tmp_path / "s" / "front.png").read_bytes().startswith(b"\x89PNG")


def test_failed_trial_is_told_with_its_reason_and_stops_nothing(study_of, tmp_path):
    from sweeps.trials import TrialError

    good = Runner()

    def second_fails(arguments, folder, log):
        if folder.name == "0001":
            raise TrialError("out of memory")
        return good(arguments, folder, log)

    study_of(second_fails, n_trials=3)
    assert [line["state"] for line in lines_of(tmp_path)] == ["complete", "fail", "complete"]
    assert [line["reason"] for line in lines_of(tmp_path)] == ["", "out of memory", ""]


def test_study_with_nothing_but_failures_has_no_front(study_of, tmp_path):
    from sweeps.front import front_table
    from sweeps.trials import TrialError

    def fails(arguments, folder, log):
        raise TrialError("no")

    study = study_of(fails, n_trials=2)
    assert front_table(study).row_count == 0
    assert not (tmp_path / "s" / "front.png").exists()


def test_interrupted_trial_goes_on_with_its_own_choice_and_folder(study_of):
    def is_interrupted(arguments, folder, log):
        choices.append((of(arguments), folder))
        raise KeyboardInterrupt

    choices: list[tuple[dict[str, str], Path]] = []
    with pytest.raises(KeyboardInterrupt):
        study_of(is_interrupted, n_trials=2)
    runner = Runner()
    study = study_of(runner, n_trials=2)
    assert runner.calls[0] == choices[0]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]


def test_trial_that_another_process_runs_is_left_to_it(study_of, tmp_path):
    from filelock import FileLock

    def is_interrupted(arguments, folder, log):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study_of(is_interrupted, n_trials=2)
    runner = Runner()
    with FileLock(tmp_path / "s" / ".trial-0000.lock"):
        study = study_of(runner, n_trials=2)
    assert [folder.name for _, folder in runner.calls] == ["0001"]
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "COMPLETE"]


def test_repeated_command_runs_only_what_is_missing(study_of):
    study_of(Runner(), n_trials=3)
    runner = Runner()
    study_of(runner, n_trials=5)
    assert [folder.name for _, folder in runner.calls] == ["0003", "0004"]


def test_study_that_goes_on_does_not_repeat_its_draws(study_of):
    first, second = Runner(), Runner()
    study_of(first, n_trials=2)
    study_of(second, n_trials=4)
    drawn = [arguments["sparsity"] for arguments, _ in first.calls + second.calls]
    assert len(set(drawn)) == 4


def test_two_processes_of_a_study_never_draw_the_same(study_of, monkeypatch):
    """Both open it before either chooses: then there is nothing to learn from, and only the seed tells them apart."""
    from sweeps import two_objectives

    first, second = Runner(), Runner()
    open_study = two_objectives.open_study

    def opened_beside_another(*arguments):
        study = open_study(*arguments)
        monkeypatch.setattr(two_objectives, "open_study", open_study)
        study_of(second, n_trials=3)
        return study

    monkeypatch.setattr(two_objectives, "open_study", opened_beside_another)
    study_of(first, n_trials=6)
    drawn = [arguments["sparsity"] for arguments, _ in first.calls + second.calls]
    assert len(first.calls) == len(second.calls) == 3
    assert len(set(drawn)) == 6


def test_study_refuses_to_go_on_with_other_arguments(study_of):
    study_of(Runner(), n_trials=1)
    with pytest.raises(ValueError, match="was made with other arguments"):
        study_of(Runner(), "batch_size=64", n_trials=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["task=sst2"], "study names the study and its folder", id="no name"),
        pytest.param(["study=a/b", "task=sst2"], "study names the study and its folder", id="path for a name"),
        pytest.param(["study=s", "-m"], "arguments must be key=value, got '-m'", id="option"),
        pytest.param(["study=s", "n_trials=many"], "n_trials must be of type int", id="word for a number"),
        pytest.param(["study=s", "task=sst2", "output_dir=x"], "a study sets output_dir", id="folder of the runs"),
        pytest.param(["study=s", "task=sst2", "sparsity=0.9"], "sparsity is one of the two objectives", id="sparsity"),
        pytest.param(["study=s", "task=sst2", "lowest_sparsity=0.99"], "lowest_sparsity < highest", id="ends"),
        pytest.param(["study=s", "task=cola"], "cola_bayes.yaml", id="task without a sweep file"),
        pytest.param(["study=s", "task=sst2", "batch_size=0"], "batch_size must be > 0", id="rule of the runs"),
        pytest.param(["study=s", "task=sst2", "batchsize=1"], "there is no key 'batchsize'", id="unknown key"),
    ],
)
def test_bad_arguments_are_refused_before_the_first_trial(arguments, message):
    from sweeps.two_objectives import read_settings, require_composable, space_of

    with pytest.raises(ValueError, match=message):
        require_composable(space_of(*read_settings(arguments)))


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        pytest.param("{values: [cap, none]}", "CategoricalDistribution(choices=('cap', 'none'))", id="values"),
        pytest.param("{min: 1, max: 9}", "IntDistribution(high=9, log=False, low=1, step=1)", id="whole numbers"),
        pytest.param("{min: 0.5, max: 2}", "FloatDistribution(high=2.0, log=False, low=0.5, step=None)", id="numbers"),
        pytest.param(
            "{distribution: log_uniform_values, min: 0.1, max: 1}",
            "FloatDistribution(high=1.0, log=True, low=0.1, step=None)",
            id="logarithms",
        ),
    ],
)
def test_distribution_of_a_sweep_file_means_the_same_to_optuna(tmp_path, parameter, expected):
    from sweeps.space import read_space

    (tmp_path / "sweep.yaml").write_text(f"parameters:\n  x: {parameter}\n", encoding="utf-8")
    space = read_space(tmp_path / "sweep.yaml", {}, lowest_sparsity=0.1, highest_sparsity=0.2)
    assert str(space.searched["x"]) == expected


def test_distribution_without_a_counterpart_is_refused(tmp_path):
    from sweeps.space import read_space

    (tmp_path / "sweep.yaml").write_text("parameters:\n  x: {distribution: normal, mu: 0}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="a study knows value, values, and min and max"):
        read_space(tmp_path / "sweep.yaml", {}, lowest_sparsity=0.1, highest_sparsity=0.2)


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """Put a shell script in the place of the training command."""

    def write(script: str) -> None:
        (tmp_path / "stub").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / "stub").chmod(0o755)
        monkeypatch.setattr("sweeps.trials.sys.executable", str(tmp_path / "stub"))

    return write


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param(
            "echo error: no such key >&2; echo bye; exit 2", r"^no such key \(exit code 2; ", id="what it said"
        ),
        pytest.param("kill -9 $$", r"^no reason was given \(killed by signal 9; ", id="killed"),
        pytest.param(
            'mkdir run; echo \'{"error": "disk full"}\' > run/record.json; exit 1',
            r"^disk full \(exit code 1; ",
            id="what its record says",
        ),
    ],
)
def test_failed_run_is_a_failed_trial_with_a_reason(stub, tmp_path, monkeypatch, script, reason):
    from sweeps.trials import TrialError, run_trial

    monkeypatch.chdir(tmp_path)
    stub(script)
    with pytest.raises(TrialError, match=reason):
        run_trial(["sparsity=0.5"], Path("run"), tmp_path / "log")


@pytest.mark.parametrize(
    "script",
    ["exit 130", "exit 143", "exit 138", "exit 140", "kill -TERM $$"],
    ids=["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGTERM at the start"],
)
def test_run_that_was_asked_to_stop_stops_the_study(stub, tmp_path, script):
    from sweeps.trials import run_trial

    stub(script)
    with pytest.raises(RuntimeError, match="repeat the command to go on with it"):
        run_trial([], tmp_path / "run", tmp_path / "log")


def test_run_is_told_its_folder_that_it_may_go_on_and_whom_to_watch(stub, tmp_path):
    from sweeps.trials import TrialError, run_trial

    stub("echo error: $* parent $CAP_PARENT; exit 1")
    with pytest.raises(TrialError, match=f"-m cap.train seed=3 output_dir='run' resume=true parent {os.getpid()} "):
        run_trial(["seed=3"], Path("run"), tmp_path / "log")


@pytest.mark.ends
def test_study_of_a_real_trial(tiny_overrides, tmp_path):
    """Start the command as a user does: a process for the study and one for its trial."""
    tiny = [argument for argument in tiny_overrides if not argument.startswith("output_dir=")]
    tiny.append("data.held_out_rows=8")  # the file holds out more rows than there are here
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.two_objectives", "study=s", "n_trials=1", f"folder={tmp_path}", *tiny],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "s" / "trials" / "0000" / "record.json").read_text(encoding="utf-8"))
    (line,) = lines_of(tmp_path)
    assert float(line["score"]) == record["scores"]["pruned"]["accuracy"]
    assert float(line["sparsity_reached"]) == record["sparsity"]["prunable"]
    assert "the front" in done.stdout
