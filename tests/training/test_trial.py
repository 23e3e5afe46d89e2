"""What a dry run says of the time that a run will take."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch

# Overrides, and what is said of 32 rows in batches of 8, two epochs of the student and one of the teacher, where a
# batch takes 6 s.
SAID = {
    "teacher": (
        [],
        "6.00 s a plain step on this machine, so that the 8 steps take about 0.8 minutes, and the 4 of the ",
    ),
    "longer teacher": (["finetune.max_epochs=5"], "and the 20 of the teacher 2.0, unless the cache has it"),
    "no teacher": (["teacher=none", "distill.ce_weight=1", "student_init=pretrained"], "about 0.8 minutes; contrast,"),
    "batches accumulated": (
        ["trainer.accumulate_grad_batches=2"],
        "12.00 s a plain step on this machine, so that the 4 steps take about 0.8 minutes, and the 4 of the ",
    ),
    "structured": (["pruning=structured", "schedule.epochs_per_level=1"], "6.00 s a plain step"),
    "scores alone": (["pruning=static_scores", "student_init=pretrained"], "6.00 s a plain step"),
}


@pytest.fixture
def slow_clock(monkeypatch):
    """Let every look at the clock be six seconds after the one before."""
    from cap.training import trial

    ticks = itertools.count()
    monkeypatch.setattr(trial, "perf_counter", lambda: 6.0 * next(ticks))


@pytest.mark.parametrize(("overrides", "expected"), SAID.values(), ids=SAID)
def test_a_dry_run_says_how_long_the_steps_take(
    compose_config, tiny_overrides, slow_clock, caplog, overrides, expected
):
    from cap.train import train

    caplog.set_level(logging.INFO, logger="cap")
    train(compose_config(*tiny_overrides, *overrides, "dry_run=true"))
    assert expected in caplog.text


@pytest.fixture
def ready(compose_config, tiny_overrides):
    from cap.config.check import check
    from cap.training.ready import make_ready

    return make_ready(check(compose_config(*tiny_overrides)))


def test_nothing_that_a_run_starts_from_is_changed(ready):
    from cap.training.preparation import prepare
    from cap.training.trial import seconds_per_step

    prepared = prepare(ready)
    before = {name: tensor.clone() for name, tensor in prepared.pretrained.state_dict().items()}
    assert seconds_per_step(ready, prepared) > 0
    after = prepared.pretrained.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not ready.pruner.masks


def test_the_first_step_does_not_count_and_a_slow_machine_is_not_kept_busy(ready, monkeypatch):
    from cap.training import trial
    from cap.training.preparation import prepare

    seconds = iter([100.0, 30.0])
    times = iter(list(itertools.accumulate(itertools.chain.from_iterable((0.0, next(seconds)) for _ in range(2)))))
    monkeypatch.setattr(trial, "perf_counter", lambda: next(times))
    monkeypatch.setattr(trial, "_MOST_SECONDS", 110.0)
    assert trial.seconds_per_step(ready, prepare(ready)) == pytest.approx(30.0)
