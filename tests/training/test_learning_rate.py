from __future__ import annotations

import csv
import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cap.pruning.schedule import Cubic, OneShot, Stepwise
from cap.training.module import Optimisation
from tests.cases import cases


def parts(n_steps: int, bounds: list[int], *, warmups: list[float], floor: float) -> list[float]:
    """Draw the learning rate part by part: a straight line from 0 to 1, then one from 1 to the floor."""
    rates: list[float] = []
    for (begin, end), warmup in zip(pairwise([0, *bounds, n_steps]), warmups, strict=True):
        n_rising = round(warmup * (end - begin))
        rates += [*np.linspace(0, 1, n_rising + 1)[:-1], *np.linspace(1, floor, end - begin - n_rising + 1)[:-1]]
    return rates


def multipliers(plan, n_steps: int, **options) -> list[float]:
    optimisation = Optimisation(learning_rate=1.0, weight_decay=0.0, warmup=plan.warmup, plan=plan, **options)
    return [*map(optimisation.over(n_steps), range(n_steps))]


SHARED = {"sparsity": 0.9, "warmup": 0.1, "rewind_warmup": 0.05}
CUBIC = {**SHARED, "flat_before": 0.2, "flat_after": 0.4}
PLANS = {
    "cubic, none": (Cubic(**CUBIC), []),
    "cubic, last": (Cubic(**CUBIC, rewind="last"), [60]),
    "prunings, none": (Cubic(**CUBIC, n_prunings=3, initial_sparsity=0.3), []),
    "prunings, last": (Cubic(**CUBIC, n_prunings=3, initial_sparsity=0.3, rewind="last"), [60]),
    "prunings, each": (Cubic(**CUBIC, n_prunings=3, initial_sparsity=0.3, rewind="each"), [20, 40, 60]),
    "stepwise, none": (Stepwise(**SHARED, levels=[0.5, 0.7, 0.9]), []),
    "stepwise, last": (Stepwise(**SHARED, levels=[0.5, 0.7, 0.9], rewind="last"), [67]),
    "stepwise, each": (Stepwise(**SHARED, levels=[0.5, 0.7, 0.9], rewind="each"), [33, 67]),
    "oneshot, last": (OneShot(**SHARED, flat_before=0.3, rewind="last"), [30]),
}


@pytest.mark.parametrize("floor", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("plan", "bounds"), PLANS.values(), ids=PLANS)
def test_each_part_rises_to_the_peak_and_falls_to_the_floor(plan, bounds, floor):
    warmups = [0.1, *[0.05 for _ in bounds]]
    assert multipliers(plan, 100, floor=floor) == pytest.approx(parts(100, bounds, warmups=warmups, floor=floor))


@pytest.mark.parametrize("plan", [plan for plan, _ in PLANS.values()], ids=PLANS)
def test_the_start_scales_with_the_sparsity_up_to_the_target(plan):
    full, scaled = (np.array(multipliers(plan, 100, floor=0.1, start=start)) for start in (1.0, 0.2))
    sparsity = np.array([plan.over(100)(step) for step in range(100)])
    np.testing.assert_allclose(scaled, full * (0.2 + 0.8 * sparsity / 0.9))
    assert scaled[plan.jumps(100)[-1] :] == pytest.approx(full[plan.jumps(100)[-1] :])


def test_a_start_of_0_moves_nothing_before_the_first_pruning():
    plan = OneShot(sparsity=0.9, warmup=0.0, flat_before=0.3)
    rates = multipliers(plan, 10, start=0.0)
    assert rates[:3] == [0.0] * 3
    assert rates[3] == 0.7


def test_a_dense_run_has_met_its_target_from_the_start():
    plan = OneShot(sparsity=0.0, warmup=0.0, flat_before=0.3)
    assert multipliers(plan, 10, start=0.0) == multipliers(plan, 10)


# --- in a run

REWINDS = [
    "schedule.n_prunings=3",
    "schedule.initial_sparsity=0.2",
    "schedule.warmup=0.25",
    "schedule.flat_before=0.2",
    "schedule.flat_after=0.3",
    "schedule.rewind=each",
    "schedule.rewind_warmup=0.5",
    "learning_rate_floor=0.1",
    "learning_rate_start=0.5",
    "pruning=movement",
    "contrast=none",
    "trainer.max_epochs=5",
]
# 20 steps at 1e-3: prunings to 0.2, 0.4625 and 0.5 at steps 4, 9 and 14.
BOUNDS, SPARSITIES = [4, 9, 14], [0.0, 0.2, 0.4625, 0.5]


def logged(run_dir: Path) -> list[float]:
    with (run_dir / "logs" / "metrics.csv").open() as file:
        rows = [row["train/learning_rate"] for row in csv.DictReader(file)]
    return [float(rate) for rate in rows if rate]


def expected() -> list[float]:
    rates = parts(20, BOUNDS, warmups=[0.25, 0.5, 0.5, 0.5], floor=0.1)
    lengths = [end - begin for begin, end in pairwise([0, *BOUNDS, 20])]
    shares = [0.5 + 0.5 * sparsity / 0.5 for sparsity, n in zip(SPARSITIES, lengths, strict=True) for _ in range(n)]
    return [1e-3 * rate * share for rate, share in zip(rates, shares, strict=True)]


def test_the_optimizer_takes_each_step_at_the_rate_of_the_schedule(compose_config, tiny_overrides, tmp_path):
    from cap.train import train

    train(compose_config(*tiny_overrides, *REWINDS))
    assert logged(tmp_path / "run") == pytest.approx(expected(), rel=1e-6)


@pytest.mark.parametrize("step", cases({"at a rewind": 9, "between two": 12}, daily=["at a rewind"]))
def test_a_run_that_goes_on_takes_each_step_at_that_rate_too(
    compose_config, tiny_overrides, tmp_path, monkeypatch, step
):
    from cap.train import train
    from cap.training.callbacks import timer as callbacks
    from cap.training.resume import checkpoint

    def die(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == step:
            raise KeyboardInterrupt

    overrides = [*tiny_overrides, *REWINDS, "checkpoint.every_n_steps=1"]
    with monkeypatch.context() as patch:
        patch.setattr(callbacks.StepTimer, "on_train_batch_start", die)
        patch.setattr(checkpoint.CheckpointCallback, "on_exception", lambda *arguments: None)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(compose_config(*overrides))
    train(compose_config(*overrides, "resume=true"))
    assert json.loads((tmp_path / "run" / "record.json").read_text())["resumed_at"] == [step]
    assert logged(tmp_path / "run") == pytest.approx(expected(), rel=1e-6)


def test_scores_share_the_multiplier(compose_config, tiny_overrides, monkeypatch):
    from cap.train import train
    from cap.training.module import CapModule

    ratios: list[float] = []
    real = CapModule.on_before_optimizer_step

    def watch(self, optimizer):
        weights, *others = optimizer.param_groups
        if len(others) == 2 and weights["lr"] > 0:  # its teacher, trained before, has no scores
            ratios.append(others[-1]["lr"] / weights["lr"])
        real(self, optimizer)

    monkeypatch.setattr(CapModule, "on_before_optimizer_step", watch)
    train(compose_config(*tiny_overrides, *REWINDS))
    assert ratios[-1:] == pytest.approx([1e-2 / 1e-3])
    assert max(ratios) == pytest.approx(min(ratios))
