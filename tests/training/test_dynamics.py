from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

import pytest
from safetensors.torch import load_file

from cap.pruning.schedule import Cubic, Stepwise
from tests.cases import cases


def run(compose_config, overrides: list[str]) -> tuple[Path, dict]:
    from cap.train import train

    cfg = compose_config(*overrides)
    train(cfg)
    return Path(cfg.output_dir), json.loads((Path(cfg.output_dir) / "record.json").read_text())


# --- in a run

# Overrides, and how many encodings of each example the banks end up with: two of frozen models, the rest snapshots.
RUNS = {
    "cubic": (["pruning=movement"], 4),
    "prunings": (
        [
            "pruning=magnitude",
            "schedule.n_prunings=2",
            "schedule.initial_sparsity=0.2",
            "schedule.rewind=each",
            "learning_rate_floor=0.1",
            "learning_rate_start=0.3",
        ],
        3,
    ),
    "accumulated": (["pruning=random", "trainer.accumulate_grad_batches=3", "teacher=none"], 3),
    "structured": (["pruning=structured", "schedule.levels=[0.25,0.5]", "schedule.epochs_per_level=1"], 3),
    "logits alone": (["pruning=magnitude", "contrast=none"], 0),
    "hidden states": (["pruning=magnitude", "contrast=none", "distill.weight=0", "distill.hidden_weight=1"], 0),
}


@pytest.fixture(
    scope="module",
    params=cases({name: (each,) for name, each in RUNS.items()}, daily=["cubic", "prunings", "structured"]),
)
def finished(request, compose_config, tiny_model, tiny_data, tmp_path_factory):
    """Run a configuration once for all tests of this module that look at its record."""
    folder = tmp_path_factory.mktemp("dynamics")
    overrides, n_encodings = request.param

    own = [f"model.name_or_path={tiny_model}", f"data_dir={tiny_data}", f"output_dir={folder}/run"]
    short = ["task=sst2", "batch_size=8", "max_length=32", "learning_rate=1e-3", "trainer.max_epochs=4"]
    quiet = ["trainer.enable_progress_bar=false", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"]
    others = [f"cache_dir={folder}/cache", "finetune.max_epochs=1", "contrast.snapshot_count=2"]
    return *run(compose_config, [*own, *short, *quiet, *others, *overrides]), n_encodings


def test_path_is_the_sum_of_the_learning_rates_of_the_run(finished):
    run_dir, record, _ = finished
    with (run_dir / "logs" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/learning_rate"]]
    rates = [float(row["train/learning_rate"]) for row in rows]
    at_target = [float(row["train/learning_rate"]) for row in rows if float(row["pruning/target"]) == 0.5]
    dynamics = record["dynamics"]
    assert (len(rates), len(at_target)) == (dynamics["steps"], dynamics["steps_after_target"])
    assert dynamics["path"] == pytest.approx(sum(rates), rel=1e-5)
    assert dynamics["path_after_target"] == pytest.approx(sum(at_target), rel=1e-5)


def test_steps_are_those_that_were_taken(finished):
    _, record, _ = finished
    assert record["dynamics"]["steps"] == record["steps"]


def test_parameters_are_those_of_the_saved_model(finished):
    run_dir, record, _ = finished
    weights = load_file(run_dir / "model" / "model.safetensors")
    dynamics, n_all = record["dynamics"], sum(weight.numel() for weight in weights.values())
    n_frozen = sum(weight.numel() for name, weight in weights.items() if ".embeddings." in name) * bool(
        record["config"]["freeze"]
    )
    assert (dynamics["trained"], dynamics["frozen"]) == (n_all - n_frozen, n_frozen)
    n_prunable = sum(n for _, n in record["matrices"].values())
    assert dynamics["kept"] == n_all - n_prunable // 2


def test_banks_are_as_many_as_the_run_has_filled(finished):
    _, record, n_encodings = finished
    assert record["dynamics"]["encodings"] == n_encodings
    n_bytes = 32 * 32 * 2  # rows, width, float16
    hidden = 2 * n_bytes * (record["config"]["distill"]["hidden_weight"] > 0)  # of two layers
    assert record["dynamics"]["bank_memory_gb"] == pytest.approx((n_bytes * n_encodings + hidden) / 1024**3)
    # What the teacher encodes with its logits is kept for other runs, if nothing reads it here.
    assert record["dynamics"]["bank_disk_gb"] == pytest.approx((n_bytes * max(1, n_encodings) + hidden) / 1024**3)


def test_banks_take_as_much_disk_as_was_said(finished):
    run_dir, record, n_encodings = finished
    cached = [*(run_dir.parent / "cache" / "encodings").rglob("*.npy")]
    found = sum(path.stat().st_size for path in cached if path.name in ("encodings.npy", "hidden.npy"))
    n_snapshots = max(0, n_encodings - len([path for path in cached if path.name == "encodings.npy"]))
    n_bytes = 32 * 32 * 2
    said = record["dynamics"]["bank_disk_gb"] * 1024**3 - n_snapshots * n_bytes
    assert said == pytest.approx(found, abs=128 * len(cached))  # the head of a file of numpy has 128 bytes


def test_minutes_are_estimated_once_ten_steps_were_timed(finished):
    _, record, _ = finished
    assert (record["dynamics"]["minutes_estimated"] is None) == (record["steps"] < 10)


def test_estimated_minutes_are_those_of_all_steps_at_the_median_of_the_first():
    from types import SimpleNamespace

    from cap.training.callbacks.estimate import EstimateCallback

    timer = SimpleNamespace(seconds=[9.0, *[2.0] * 8])
    told = []
    estimate = EstimateCallback(timer, note=told.append)
    trainer = SimpleNamespace(estimated_stepping_batches=120, global_step=10)
    estimate.on_train_batch_end(trainer, None, None, None, 0)
    assert estimate.minutes is None
    timer.seconds.append(2.0)
    for _ in range(2):
        estimate.on_train_batch_end(trainer, None, None, None, 0)
    assert estimate.minutes == 2.0 * 120 / 60
    assert told == [estimate.minutes]
    resumed = EstimateCallback(timer, note=told.append)
    resumed.load_state_dict(estimate.state_dict())
    resumed.on_fit_start(trainer, None)
    assert told == [estimate.minutes] * 2


def test_the_table_comes_before_the_teacher_is_trained(compose_config, tiny_overrides, caplog):
    caplog.set_level(logging.INFO, logger="cap")
    run(compose_config, [*tiny_overrides, "contrast=none"])
    said = [record.message for record in caplog.records]
    table = next(i for i, line in enumerate(said) if line.startswith("what this run is going to do:"))
    assert table < next(i for i, line in enumerate(said) if line.startswith("teacher: fine-tuning"))
    names = [line.split()[0] for line in said[table].splitlines()[1:]]
    assert {"steps", "steps_after_target", "path", "path_after_target", "trained", "frozen", "kept"} <= set(names)
    assert len({line.index(line.split()[2]) for line in said[table].splitlines()[1:]}) == 1


@pytest.mark.parametrize(("sparsity", "is_warned"), [(0.9, True), (0.89, False)])
def test_a_short_path_at_a_high_sparsity_is_said_in_log_and_record(
    compose_config, tiny_overrides, caplog, sparsity, is_warned
):
    overrides = [*tiny_overrides, f"sparsity={sparsity}", "contrast=none", "pruning=random"]
    _, record = run(compose_config, overrides)
    # The default schedule rewinds already.
    wanted = "should be 0.02 at least; raise learning_rate, trainer.max_epochs or schedule.flat_after."
    assert any(said.endswith(wanted) for said in record["warnings"]) == is_warned
    assert ("should be 0.02 at least" in caplog.text) == is_warned


LENGTHS = {
    "epochs": (Cubic(sparsity=0.9), -1, "learning_rate, trainer.max_epochs or schedule.flat_after"),
    "steps": (Cubic(sparsity=0.9), 50, "learning_rate, trainer.max_steps or schedule.flat_after"),
    "steps that do not end it": (Cubic(sparsity=0.9), 51, "trainer.max_epochs"),
    "levels": (Stepwise(sparsity=0.9, epochs_per_level=2), -1, "raise learning_rate or schedule.epochs_per_level"),
    "levels, ended by steps": (Stepwise(sparsity=0.9, epochs_per_level=2), 50, "learning_rate or trainer.max_steps"),
}


@pytest.mark.parametrize(("plan", "max_steps", "expected"), LENGTHS.values(), ids=LENGTHS)
def test_a_short_path_names_the_key_that_sets_the_length(plan, max_steps, expected):
    from cap.training.dynamics import Dynamics

    numbers = dict.fromkeys(("trained", "frozen", "kept", "encodings", "bank_disk_gb", "bank_memory_gb"), 0)
    dynamics = Dynamics(steps=50, steps_after_target=20, path=0.01, path_after_target=0.005, **numbers)
    assert expected in dynamics.warning(plan, max_steps=max_steps)


def test_a_run_that_is_too_short_for_its_prunings_is_refused_before_anything_is_trained(
    compose_config, tiny_overrides, tmp_path
):
    from cap.base.errors import InputError

    # Eight steps: nobody knew before the rows were there.
    with pytest.raises(InputError, match="must be at most 4 in a run of 8 steps"):
        run(compose_config, [*tiny_overrides, "schedule.n_prunings=5"])
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache" / "teachers").exists()


# --- alone


@pytest.mark.parametrize("overrides", [[], ["trainer.devices=2"]], ids=["one process", "two"])
def test_a_dry_run_says_it_and_leaves_no_run_and_no_teacher(
    compose_config, tiny_overrides, tmp_path, caplog, overrides
):
    from cap.train import train

    caplog.set_level(logging.INFO, logger="cap")
    assert train(compose_config(*tiny_overrides, *overrides, "dry_run=true")) is None
    # 32 rows in batches of 8 for two epochs.
    assert f"{4 if overrides else 8}  optimizer steps" in caplog.text
    assert not (tmp_path / "run").exists()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["tokenised"]


def test_a_dry_run_leaves_a_complete_run_as_it_is_and_says_what_that_did(
    compose_config, tiny_overrides, tmp_path, caplog
):
    from cap.train import train

    overrides = [*tiny_overrides, "contrast=none", "sparsity=0.9"]
    run(compose_config, overrides)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    caplog.clear()
    caplog.set_level(logging.INFO, logger="cap")
    train(compose_config(*overrides, "dry_run=true"))
    (said,) = (record.message for record in caplog.records if record.message.startswith("what this run"))
    assert said in (tmp_path / "run" / "train.log").read_text()
    assert "should be 0.02 at least" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_a_dry_run_refuses_what_a_run_would(compose_config, tiny_overrides):
    from cap.base.errors import InputError
    from cap.train import train

    with pytest.raises(InputError, match=r"reaches sparsity 0\.75 at most, got 0\.9"):
        train(compose_config(*tiny_overrides, "pruning=structured", "sparsity=0.9", "dry_run=true"))


@pytest.mark.ends
def test_the_command_of_a_dry_run_succeeds(tiny_overrides, tmp_path):
    import subprocess
    import sys

    command = [sys.executable, "-m", "cap.train", *tiny_overrides, "dry_run=true"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("path_after_target") == 1
    assert "GPU available" not in done.stdout + done.stderr  # Lightning's own lines, wherever it would put them
    assert not (tmp_path / "run").exists()


# --- in numbers


@pytest.mark.parametrize("limit", [1.0, 0.5, 0.34, 3, 100], ids=lambda limit: f"limit {limit}")
@pytest.mark.parametrize(
    ("accumulate", "max_epochs", "max_steps"), [(1, 3, -1), (2, 3, 5), (4, 3, -1), (2, 1, 1000), (4, -1, 7)]
)
def test_planned_steps_are_those_that_lightning_counts(tmp_path, limit, accumulate, max_epochs, max_steps):
    from lightning.pytorch import Trainer
    from lightning.pytorch.demos.boring_classes import BoringModel, RandomDataset
    from torch.utils.data import DataLoader

    from cap.training.dynamics import planned_steps

    trainer = Trainer(
        default_root_dir=tmp_path,
        max_epochs=max_epochs,
        max_steps=max_steps,
        limit_train_batches=limit,
        accumulate_grad_batches=accumulate,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
    )
    trainer.strategy.connect(BoringModel())
    trainer._data_connector.attach_data(trainer.lightning_module, train_dataloaders=DataLoader(RandomDataset(32, 11)))
    counted = trainer.estimated_stepping_batches
    planned = planned_steps(
        11, limit=limit, accumulate_grad_batches=accumulate, max_epochs=max_epochs, max_steps=max_steps
    )
    assert planned == counted


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([100] * 3, 300), ([400] * 2, 800), ([401] * 2, 401), ([1001], 0), ([0] * 5, 0), ([300, 600, 400], 700)],
    ids=["all", "to the last byte", "as many as fit", "none fits", "empty", "a smaller one behind"],
)
def test_what_fits_into_a_memory_budget_is_known_beforehand(sizes, expected):
    import numpy as np

    from cap.base.memory_budget import MemoryBudget

    budget = MemoryBudget(1000 / 1024**3)
    budget.hold(np.zeros(200, dtype=np.int8))
    assert budget.bytes_to_read(sizes) == expected
