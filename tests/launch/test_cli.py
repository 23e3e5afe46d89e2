from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run_door(monkeypatch, tmp_path, capsys):
    """Run ``python -m cap.train ...``, or another door, in this process; give exit code and what stood on stderr."""

    def run(*arguments: str, door: str = "cap.train") -> tuple[int, str]:
        from importlib import import_module

        from hydra.core.global_hydra import GlobalHydra

        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [door, *arguments])
        GlobalHydra.instance().clear()
        with pytest.raises(SystemExit) as caught:
            import_module(door).main()
        code = caught.value.code
        return (code if isinstance(code, int) else 1), capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["spasity=0.5"], "there is no key 'spasity'; the nearest known ones are sparsity"),
        (
            ["contrast.temprature=1"],
            "there is no key 'contrast.temprature'; the nearest known ones are contrast.temperature",
        ),
        (
            ["pruning=soft_movement", "pruning.pattern=2:4"],
            "error: pruning=soft_movement has no key pattern; "
            "it belongs to pruning=admm, first_order, magnitude, movement, platon, random, second_order\n",
        ),
        (
            ["pruning=movement", "pruning.importance_rows=8"],
            "error: pruning=movement has no key importance_rows; it belongs to pruning=layers, structured\n",
        ),
        (
            ["pruning=structured", "pruning.scope=global"],
            "error: pruning=structured has no key scope; "
            "it belongs to pruning=admm, first_order, magnitude, movement, platon, random, second_order, "
            "static_scores\n",
        ),
        (
            ["experiment=cap_movement", "pruning.threshold=target"],
            "error: pruning=movement has no key threshold; it belongs to pruning=soft_movement\n",
        ),
        (["schedule.levels=[0.5]"], "error: schedule=cubic has no key levels; it belongs to schedule=stepwise\n"),
        (["logger.project=x"], "error: logger=csv has no key project; it belongs to logger=wandb\n"),
        (["pruning.patern=2:4"], "there is no key 'pruning.patern'; the nearest known ones are pruning.pattern"),
        (["experiment.sparsity=0.5"], "there is no key 'experiment"),
        (["sparsity=abc"], "error: sparsity must be a number, like 0.5 or 3e-5, got 'abc'\n"),
        (["seed=x"], "error: seed must be a whole number, like 10, got 'x'\n"),
        (["trainer.devices=1.5"], "error: trainer.devices must be a whole number, like 10, got '1.5'\n"),
        (["learning_rate=.inf"], "error: learning_rate must be a number, like 0.5 or 3e-5, got '.inf'\n"),
        (["resume=maybe"], "error: resume must be true or false, got 'maybe'\n"),
        (["keep_levels=[0.1,b]"], "error: keep_levels[1] must be a number, like 0.5 or 3e-5, got 'b'\n"),
        (["task=qpq"], "task must be one of qqp, "),
        (["model=minilmm"], "model must be one of minilm, "),
        (
            ["model=owner/name"],
            "got 'owner/name'. A folder or a model of the Hub is model.name_or_path=owner/name",
        ),
        (["pruning=movment"], "pruning must be one of movement, soft_movement, "),
        (["schedule=cubik"], "schedule must be one of cubic, "),
        (["sparsity=97"], "lies in [0, 1), got 97.0; did you mean 0.97?"),
        (
            ["sparsity"],
            "error: a key is set as KEY=VALUE, without blanks around the equals sign, got 'sparsity'\n",
        ),
        (["--sparsity", "0.5"], "error: a key is set as sparsity=VALUE, without hyphens and blanks, got --sparsity\n"),
        (
            ["keep_levels=0.5,0.9"],
            "error: keep_levels got several values, 0.5,0.9; a list takes brackets, 'keep_levels=[0.5,0.9]', and "
            "-m starts a run for each\n",
        ),
        (["sparsity=0,9"], "'sparsity=[0,9]', and -m starts a run for each; a number takes a point, sparsity=0.9\n"),
        (["output_dir=a(b"], "error: 'output_dir=a(b' cannot be read, Hydra says: no viable"),
        (["output_dir=a(b"], """in quotes of its own, "output_dir='a(b'"\n"""),
        (["task.text_columns=[Größe,text]"], """in quotes of its own, "task.text_columns=['Größe','text']"\n"""),
        (["lr=1e-4"], "error: there is no key 'lr'; here it is learning_rate\n"),
        (["gpus=2"], "error: there is no key 'gpus'; here it is trainer.devices\n"),
        (["num_train_epochs=3"], "error: there is no key 'num_train_epochs'; here it is trainer.max_epochs\n"),
        (["logger=wandb", "logger.entity=me"], "what else the logger takes is given with a plus: +logger.entity=\n"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_message_and_exit_code_2(run_door, arguments, expected):
    code, stderr = run_door(*arguments)
    assert code == 2
    assert expected in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["runs=[A]", "taks=[mrpc]"], "there is no key 'taks'; the nearest known ones are tasks"),
        (["data.max_rows=5"], "there is no key 'data.max_rows'; the nearest known ones are data.max_eval_rows"),
        (["runs=A"], "runs=A: this key holds a list; write it in brackets"),
        (["gpus=2"], "error: there is no key 'gpus'; the nearest known ones are "),
        (["epochs=abc"], "error: epochs must be a whole number, like 10, got 'abc'\n"),
        (["tasks=[mrpc]"], "runs must name one at least, got none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_to_the_probe_is_one_message_and_exit_code_2(run_door, arguments, expected):
    code, stderr = run_door(*arguments, door="cap.probe")
    assert code == 2
    assert expected in stderr
    assert stderr.count("error: ") == 1
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("output_dir=2024_06_01", "output_dir='2024_06_01'"),
        ("output_dir=1.10", "output_dir='1.10'"),
        ("task.label_column=1e3", "task.label_column='1e3'"),
        ("output_dir=20240601", "output_dir=20240601"),
        ("data_dir=null", "data_dir=null"),
        ("seed=1_0,2", "seed=1_0,2"),
        ("learning_rate=1e-4", "learning_rate=1e-4"),
    ],
)
def test_a_name_of_digits_stays_as_it_was_typed(typed, read):
    from cap.launch.arguments import as_overrides
    from cap.launch.cli import known_keys

    assert as_overrides([typed], known_keys()) == [read]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data_dir=nowhere"], "nowhere"),
        (["max_length=129"], "max_length"),
        (["teacher=nowhere/at-all"], "nowhere/at-all"),
        (["model.sha256=abc"], "abc"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_input_that_does_not_fit_is_one_message_and_leaves_nothing_that_looks_complete(
    run_door, tiny_overrides, tmp_path, overrides, expected
):
    code, stderr = run_door(*tiny_overrides, *overrides)
    assert code == 2
    assert expected in stderr
    assert stderr.count("error: ") == 1
    assert "Traceback" not in stderr
    assert not (tmp_path / "run" / "model").exists()


def test_traceback_is_shown_on_request(monkeypatch, tmp_path):
    from hydra.core.global_hydra import GlobalHydra

    from cap.base.errors import InputError
    from cap.train import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cap.train", "sparsity=97", "traceback=true"])
    GlobalHydra.instance().clear()
    with pytest.raises(InputError, match="sparsity"):
        main()


def test_folder_that_cannot_be_written_is_named(run_door, tiny_overrides, tmp_path):
    (tmp_path / "file").write_text("")
    code, stderr = run_door(*tiny_overrides, f"output_dir={tmp_path / 'file' / 'run'}")
    assert code == 2
    assert "output_dir must be a folder that can be written" in stderr


@pytest.mark.ends
def test_multirun_goes_on_after_a_job_that_fails(tiny_overrides, tmp_path):
    overrides = [override for override in tiny_overrides if not override.startswith("output_dir")]
    command = [sys.executable, "-m", "cap.train", "-m", *overrides, "trainer.max_steps=2", "contrast=none"]
    sweep = tmp_path / "sweep"
    done = subprocess.run(
        [*command, "sparsity=97,0.5", f"hydra.sweep.dir={sweep}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2
    assert "sparsity is the fraction" in done.stderr
    (record,) = sweep.glob("sst2/first_order-0.5/*/record.json")
    assert json.loads(record.read_text(encoding="utf-8"))["status"] == "completed"


def test_finetune_makes_the_teacher_that_a_run_then_finds(compose_config, tiny_overrides, caplog):
    import logging

    from cap.finetune import finetune
    from cap.train import train

    score = finetune(compose_config(*tiny_overrides))
    caplog.set_level(logging.INFO, logger="cap")
    train(compose_config(*tiny_overrides))
    assert 0 <= score <= 1
    assert any("teacher: found in the cache" in record.message for record in caplog.records)


def test_known_keys_name_schema_groups_and_what_a_pruning_type_takes():
    from cap.launch.cli import known_keys

    keys = known_keys()
    assert {"sparsity", "pruning", "experiment", "trainer.max_steps"} <= keys
    assert {"pruning.threshold", "pruning.importance_rows", "schedule.levels"} <= keys
    assert not [key for key in keys if key.startswith("pruning.pruning")]


def test_known_keys_of_the_probe_are_its_own():
    from cap.config.probe import ProbeConfig
    from cap.launch.cli import known_keys

    keys = known_keys("probe", ProbeConfig)
    assert {"runs", "tasks", "data_root", "data.max_train_rows"} <= keys
    assert not {"sparsity", "pruning", "experiment"} & keys


@pytest.fixture
def own_conf(tmp_path):
    """Write a user's own conf/: a recipe, and a file to compose from instead of train.yaml."""
    from cap.config.places import conf_dir

    folder = tmp_path / "mine"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "ours.yaml").write_text("# @package _global_\nsparsity: 0.3\n")
    text = (conf_dir() / "train.yaml").read_text(encoding="utf-8")
    (folder / "other.yaml").write_text(text.replace("\nseed: 1", "\nseed: 5"), encoding="utf-8")
    return folder


@pytest.fixture
def composed(monkeypatch, tmp_path):
    """Compose as the command line does; return the configuration, the command of a process of its own, the line."""

    def compose(*arguments: str):
        from hydra.core.global_hydra import GlobalHydra
        from omegaconf import OmegaConf

        from cap.launch.cli import door, typed_command, typed_line

        found = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["cap.train", *arguments])
        GlobalHydra.instance().clear()
        door(lambda cfg: found.append((OmegaConf.to_container(cfg), typed_command(), typed_line("train"))))()
        return found[0]

    return compose


def test_types_are_kept_once_and_no_composition_changes_them(composed):
    import copy

    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from cap.config.schema import register

    register()
    store = ConfigStore.instance()
    before = OmegaConf.to_container(store.load("train_schema.yaml").node)
    found, _, _ = composed("sparsity=0.7", "task=squad", "pruning=structured")
    assert found["sparsity"] == 0.7
    assert copy.deepcopy(store) is store  # for --help Hydra makes a hundred copies
    assert OmegaConf.to_container(store.load("train_schema.yaml").node) == before


CONFIGURATIONS = {
    "overrides": ["sparsity=0.7"],
    "a folder more": ["--config-dir", "mine", "experiment=ours"],
    "another file": ["--config-dir", "mine", "--config-name", "other"],
    "a search path": ["hydra.searchpath=[file://mine]", "experiment=ours"],
}


@pytest.mark.parametrize("arguments", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_process_of_its_own_trains_the_configuration_that_was_typed(composed, own_conf, arguments):
    wanted, command, _ = composed(*arguments)
    found, again, _ = composed(*command)
    assert (found, again) == (wanted, command)


def test_process_of_its_own_composes_from_the_folder_that_was_typed(composed, own_conf):
    import shutil

    from cap.config.places import conf_dir

    whole = own_conf.parent / "whole"
    shutil.copytree(conf_dir(), whole)
    shutil.copy(own_conf / "other.yaml", whole / "train.yaml")
    wanted, command, _ = composed("--config-path", str(whole))
    found, _, _ = composed(*command)
    assert found == wanted
    assert found["seed"] == 5


def test_line_in_a_record_names_the_configuration_that_was_typed(composed, own_conf):
    _, _, line = composed("--config-dir", "mine", "--config-name", "other", "sparsity=0.7")
    assert line == "python -m cap.train --config-dir mine --config-name other sparsity=0.7"


@pytest.mark.parametrize("door", ["train", "evaluate", "export"])
def test_what_was_typed_is_read_in_one_way(door, monkeypatch):
    from importlib import import_module

    from hydra.core.hydra_config import HydraConfig

    # A job that ran in this process before, an agent's say, leaves its configuration behind.
    monkeypatch.setattr(HydraConfig, "initialized", staticmethod(lambda: False))
    monkeypatch.setattr(sys, "argv", ["command", "a=1", "b=2"])
    assert import_module(f"cap.{door}").typed_line is import_module("cap.launch.cli").typed_line
    assert import_module("cap.launch.cli").typed_line(door) == f"python -m cap.{door} a=1 b=2"


def test_multirun_may_stand_behind_keys():
    from cap.launch.arguments import multirun_first

    assert multirun_first(["task=sst2", "-m", "seed=1,2", "--config-dir", "x"]) == [
        "-m",
        "task=sst2",
        "seed=1,2",
        "--config-dir",
        "x",
    ]


def test_a_reader_that_has_read_enough_ends_a_command_without_an_error(monkeypatch):
    from cap.launch import cli

    def print_help(cfg):
        raise BrokenPipeError

    silenced = []
    monkeypatch.setattr(sys, "argv", ["cap.train"])
    monkeypatch.setattr(cli.os, "dup2", lambda source, target: silenced.append(target))
    monkeypatch.setattr(cli.hydra, "main", lambda **options: lambda job: lambda: print_help(None))
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    cli.door(lambda cfg: None)()
    assert silenced == [1]
