"""What W&B's agent does with a sweep file, offline: its own code expands the command and starts the process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from queue import Queue
from subprocess import CalledProcessError

import pytest
import yaml

pytestmark = pytest.mark.ends

ROOT = Path(__file__).parents[2]
SWEEP_ID, RUN_ID = "sweep0", "run0"
# A search and two grids, of which only the values differ; the tiny data has the columns of SST-2.
STARTED = "sst2_bayes.yaml"
KINDS = [STARTED, "sst2.yaml", "sst2_ablation.yaml"]


@pytest.fixture
def start(monkeypatch, tmp_path, tiny_overrides) -> Callable[..., None]:
    """Let an agent start one tiny run of a sweep file with what the server would send, and wait for its end."""
    from wandb.wandb_agent import Agent

    (tmp_path / "checkout").mkdir()
    for name, value in {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(tmp_path / "agent"),
        "WANDB_SWEEP_ID": SWEEP_ID,
        # The agent sets these two itself, in its own environment: given here, they are taken away afterwards.
        "WANDB_RUN_ID": "",
        "WANDB_SWEEP_PARAM_PATH": "",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path / "checkout")

    def start_run(file: str, arguments: dict[str, object]) -> None:
        sweep = yaml.safe_load((ROOT / "sweeps" / file).read_text(encoding="utf-8"))
        agent = Agent(None, Queue(), sweep_id=SWEEP_ID)
        # What the tiny setting chooses comes after what the sweep chooses, and so wins.
        tiny = [*(given for given in tiny_overrides if given != "task=sst2"), "data.held_out_rows=8"]
        agent._sweep_command = [*sweep["command"], *tiny]
        sent = {key: {"value": value} for key, value in arguments.items()}
        reply = agent._process_command({"type": "run", "run_id": RUN_ID, "program": sweep["program"], "args": sent})
        assert "exception" not in reply, reply
        process = agent._run_processes[RUN_ID]._popen
        if process.wait(timeout=240):
            raise CalledProcessError(process.returncode, process.args)

    return start_run


def first_run(file: str) -> dict[str, object]:
    """Choose as the server does for a first run: the first of several values, and what lies between two ends."""
    parameters = yaml.safe_load((ROOT / "sweeps" / file).read_text(encoding="utf-8"))["parameters"]
    chosen = {}
    for key, spec in parameters.items():
        between = (spec.get("min", 0) * spec.get("max", 0)) ** 0.5
        chosen[key] = spec["values"][0] if "values" in spec else spec.get("value", between)
    return chosen


def test_agent_runs_a_sweep_file_offline(start, tmp_path):
    chosen = first_run(STARTED)
    start(STARTED, chosen)
    record = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))
    assert record["status"] == "completed"
    assert record["config"]["sparsity"] == chosen["sparsity"]
    # The run is the one that the sweep's server knows.
    (written,) = (tmp_path / "run" / "wandb").glob(f"offline-run-*-{RUN_ID}/run-{RUN_ID}.wandb")
    content = written.read_bytes()
    told = [SWEEP_ID, "final/accuracy", "final/sparsity", "cap.pruning.schedule.Cubic", *chosen]
    assert not [word for word in told if word.encode() not in content]


@pytest.mark.parametrize("syntax", ["args_no_hyphens", "args"])
@pytest.mark.parametrize("file", KINDS)
def test_run_that_is_taken_up_again_has_the_configuration_it_had(compose_config, file, syntax):
    """An agent is sent all that the run had logged: the sweep's own values stay, groups come as dictionaries."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    from cap.config.check import check
    from cap.launch.arguments import as_overrides
    from cap.launch.cli import known_keys

    chosen = first_run(file)
    before = check(compose_config(*[f"{key}={value}" for key, value in chosen.items()]))
    logged = {"_wandb": {}, **before.resolved, **chosen}
    # JSON has one kind of number, and what stores it may drop the point.
    logged["trainer"] = {key: int(v) if isinstance(v, float) else v for key, v in logged["trainer"].items()}
    sent = create_sweep_command_args({"args": {key: {"value": value} for key, value in logged.items()}})[syntax]
    assert any("{'" in argument for argument in sent)
    assert check(compose_config(*as_overrides(sent, known_keys()))).hash == before.hash


@pytest.mark.parametrize(
    ("written", "read"),
    [
        pytest.param("sparsity=0.9", ["sparsity=0.9"], id="plain"),
        pytest.param("--sparsity=0.9", ["sparsity=0.9"], id="hyphens"),
        pytest.param("--contrast.temperature=0.1", ["contrast.temperature=0.1"], id="hyphens and a dot"),
        pytest.param("--config-name=probe", ["--config-name=probe"], id="Hydra's option"),
        pytest.param("--multirun", ["--multirun"], id="Hydra's option without a value"),
        pytest.param("-m", ["-m"], id="Hydra's short option"),
        pytest.param("hydra.sweep.dir=None", ["hydra.sweep.dir=None"], id="Hydra's key"),
        pytest.param("+sparsity=None", ["+sparsity=None"], id="Hydra's prefix"),
        pytest.param("--spasity=0.9", ["--spasity=0.9"], id="unknown"),
        pytest.param("data_dir=None", ["data_dir=null"], id="None"),
        pytest.param("teacher=none", ["teacher=none"], id="the word none"),
        pytest.param("contrast.pretrained=False", ["contrast.pretrained=False"], id="bool"),
        pytest.param("schedule.levels=[0.5, 0.9]", ["schedule.levels=[0.5, 0.9]"], id="list"),
        pytest.param("task.metrics=['f1', None]", ["task.metrics=['f1',null]"], id="None in a list"),
        pytest.param("contrast={'temperature': 0.3}", ["contrast.temperature=0.3"], id="nested parameter"),
        pytest.param(
            "task={'label_column': \"it's, null\", 'stride': None}",
            ["task.label_column='it\\'s, null'", "task.stride=null"],
            id="nested text and None",
        ),
        pytest.param("memory={'budget_gb': 2}", ["memory.budget_gb=2"], id="every key of one group"),
        pytest.param("contrast={temperature:0.3}", ["contrast={temperature:0.3}"], id="Hydra's dictionary"),
        pytest.param("_wandb={'code_path': 'x'}", [], id="W&B's own entry"),
        pytest.param("sparsity=0.5,0.9", ["sparsity=0.5,0.9"], id="multirun"),
        pytest.param("keep_levels=None,[0.5]", ["keep_levels=null,[0.5]"], id="None in a multirun"),
        pytest.param("data_dir=a/b,None", ["data_dir=a/b,null"], id="None beside a word in a multirun"),
        pytest.param("keep_levels=[0.5, None],None", ["keep_levels=[0.5,null],null"], id="lists in a multirun"),
        pytest.param("data_dir='a,None,b'", ["data_dir='a,None,b'"], id="None in quotes"),
        pytest.param("data_dir='it\\'s,None,b'", ["data_dir='it\\'s,None,b'"], id="None behind a quote in quotes"),
        pytest.param("data_dir=choice(a,None)", ["data_dir=choice(a,None)"], id="Hydra's function"),
        pytest.param("teacher=None", ["teacher=None"], id="None as a word"),
        pytest.param("teacher=None,auto", ["teacher=None,auto"], id="None as a word in a multirun"),
        pytest.param("contrast.pool=None", ["contrast.pool=None"], id="None as a word below a group"),
        pytest.param("trainer.profiler=None", ["trainer.profiler=null"], id="None below a group"),
        pytest.param("pruning.pattern=None", ["pruning.pattern=null"], id="None without a type"),
    ],
)
def test_agents_spelling_is_read(written, read):
    from cap.launch.arguments import as_overrides
    from cap.launch.cli import known_keys

    assert as_overrides([written], known_keys()) == read


@pytest.mark.parametrize(
    ("written", "key", "value"),
    [
        pytest.param("contrast.snapshots=False", "contrast.snapshots", False, id="bool"),
        pytest.param("data_dir=None", "data_dir", None, id="None"),
        pytest.param("learning_rate=3e-05", "learning_rate", 3e-5, id="small number"),
        pytest.param("contrast.temperature=1", "contrast.temperature", 1.0, id="number without a point"),
        pytest.param("task.metrics=['f1', 'accuracy']", "task.metrics", ["f1", "accuracy"], id="list of words"),
        pytest.param("model.name_or_path='a,b'", "model.name_or_path", "a,b", id="comma in quotes"),
        pytest.param("task={'label_column': \"it's\"}", "task.label_column", "it's", id="nested text"),
    ],
)
def test_hydra_makes_of_it_what_the_sweep_meant(compose_config, written, key, value):
    from omegaconf import OmegaConf

    from cap.launch.arguments import as_overrides
    from cap.launch.cli import known_keys

    assert OmegaConf.select(compose_config(*as_overrides([written], known_keys())), key) == value


def test_door_reads_hyphens(monkeypatch, capsys):
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig

    from cap.train import main

    GlobalHydra.instance().clear()
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)  # --cfg leaves one, which later records would speak of
    monkeypatch.setattr(sys, "argv", ["cap.train", "--sparsity=0.75", "--_wandb={'t': {}}", "--cfg", "job"])
    main()
    assert "sparsity: 0.75\n" in capsys.readouterr().out
