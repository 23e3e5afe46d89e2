"""Every door says what is wrong, and finds what is there already, before anything is imported that takes seconds."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reports.made_records import SWITCHES, write_grid, write_run

ROOT = Path(__file__).parents[1]

# One process gives all commands: what one of them imports is seen from there on.
PROGRAM = """
import contextlib, importlib, io, json, sys

from hydra.core.global_hydra import GlobalHydra

slow = ("torch", "transformers", "lightning", "datasets", "torchmetrics", "wandb")
answers = []
for door, *arguments in json.loads(sys.argv[1]):
    GlobalHydra.instance().clear()
    sys.argv = [door, *arguments]
    said, code = io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            importlib.import_module(door).main()
        except SystemExit as error:
            code = error.code
    answers.append([code, said.getvalue(), [name for name in slow if name in sys.modules]])
print(json.dumps(answers))
"""
WRONG = {
    "cap.train sparsity=97": "did you mean 0.97?",
    "cap.train spasity=0.5": "there is no key 'spasity'",
    "cap.train task=qpq": "task must be one of qqp",
    "cap.train sparsity=abc": "sparsity must be a number",
    "cap.train pruning=structured pruning.pattern=2:4": "pruning=structured has no key pattern",
    "cap.train schedule.flat_after=1.5": "schedule.flat_after is a fraction of the run",
    "cap.train trainer.num_nodes=2": "needs a launcher that starts the processes on every machine",
    "cap.finetune finetune.max_epochs=0": "finetune.max_epochs must be > 0",
    "cap.finetune teacher=none": "makes the teacher of teacher=auto",
    "cap.finetune dry_run=true": "cap.finetune trains a teacher, got dry_run=true; python -m cap.train with the same",
    "cap.evaluate modeldir=x": "there is no key 'modeldir'",
    "cap.evaluate": "model_dir must be a folder",
    "cap.export fromat=x": "there is no key 'fromat'",
    "cap.export run=a format=onix": "format must be one of onnx",
    "cap.push": "repo must be the name of a repository on the Hub",
    "cap.push run=a repo=a/b/c": "repo must be NAME or OWNER/NAME",
    "cap.push run=nowhere repo=a": "which is not there; correct the path",
    "cap.probe rnus=[a]": "there is no key 'rnus'",
    "cap.probe runs=[a]": "tasks must name one at least",
    "cap.report nowhere": "every argument must be a folder that holds runs",
}
SHOWN = {
    "cap.train --help": "pruning: first_order    # second_order magnitude",
    "cap.train --cfg job": "sparsity: 0.5",
    "cap.finetune --help": "python -m cap.finetune task=qqp\n\nFine-tune the teacher that cap.train",
    "cap.evaluate --help": "model_dir: null        # a folder of a saved model",
    "cap.export --help": "vocabulary: null    # auto keeps the pieces that the training rows use",
    "cap.push --help": "dry_run: false     # true writes the folder that would be pushed",
    "cap.probe --help": "epochs: 20\n",
    "cap.report --help": "folders that hold runs",
    "cap.report runs": "2 completed runs of 1 configuration",
}
RUN = ["task=sst2", "data_dir=rows", "model.name_or_path=model"]
FOUND = {
    f"cap.train {' '.join(RUN)} output_dir=complete resume=true": (0, "0.8000"),
    f"cap.train {' '.join(RUN)} output_dir=complete": (2, "must not hold a finished run"),
    f"cap.train {' '.join(RUN)} output_dir=interrupted": (2, "with a checkpoint of step 3; continue it with"),
    f"cap.train {' '.join(RUN)} output_dir=taken": (2, "got taken with thesis.txt"),
}


def config_hash() -> str:
    from hydra import compose, initialize_config_dir

    from cap.config.check import check
    from cap.config.places import conf_dir
    from cap.config.schema import register

    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return check(compose("train", overrides=RUN)).hash


def written(file: Path, content: str) -> dict[str, str]:
    """Write a file; return its hash by its name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content, encoding="utf-8")
    return {file.name: hashlib.sha256(content.encode()).hexdigest()}


def make_runs(folder: Path) -> None:
    """Make up what runs have left: two records for a report, one run complete, one interrupted, and something else."""
    write_grid(folder / "runs", prunings=("movement",), sparsities=(0.5,), terms=(SWITCHES,), exports=True)
    files = written(folder / "rows" / "train.jsonl", "rows") | written(folder / "rows" / "validation.jsonl", "others")
    record = {
        "status": "completed",
        "config_hash": config_hash(),
        "metric": "accuracy",
        "scores": {"pruned": {"accuracy": 0.8}},
        "data": {"source": "folder rows", "files": files},
        "weights_sha256": {"model": written(folder / "model" / "model.safetensors", "weights")},
    }
    write_run(folder / "complete", record)
    write_run(folder / "interrupted", record | {"status": "interrupted"})
    checkpoint = folder / "interrupted" / "checkpoints" / "step-0000003.ckpt"
    (sha256,) = written(checkpoint, "state").values()
    seal = {"step": 3, "bytes": 5, "sha256": sha256, "config_hash": record["config_hash"], "n_rows": 1}
    written(checkpoint.with_suffix(".json"), json.dumps(seal))
    written(folder / "taken" / "thesis.txt", "mine")


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, list]:
    """Give all commands; return for each its exit code, what it said, and what was imported that takes seconds."""
    folder = tmp_path_factory.mktemp("doors")
    make_runs(folder)
    commands = [*WRONG, *SHOWN, *FOUND]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([command.split() for command in commands])],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(commands, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(("command", "expected"), WRONG.items(), ids=WRONG)
def test_what_is_wrong_is_said_at_once(answers, command, expected):
    code, said, imported = answers[command]
    assert expected in said
    assert (code, imported) == (2, [])


@pytest.mark.parametrize(("command", "expected"), SHOWN.items(), ids=SHOWN)
def test_what_only_reads_is_shown_at_once(answers, command, expected):
    code, said, imported = answers[command]
    assert expected in said
    assert (code, imported) == (0, [])


@pytest.mark.parametrize(("command", "expected"), FOUND.items(), ids=FOUND)
def test_what_lies_in_the_folder_of_a_run_is_found_at_once(answers, command, expected):
    code, said, imported = answers[command]
    assert expected[1] in said
    assert (code, imported) == (expected[0], [])
