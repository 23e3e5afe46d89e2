"""What a dry run says of the time that a run will take."""

from __future__ import annotations

import itertools
import logging

import pytest
import torch

from tests.cases import cases

# Overrides, and what is said of 32 rows in batches of 8, two epochs of the student and one of the teacher, where a
# batch takes 6 s.
SAID = {
    "teacher": (
        [],
        "6 s a plain batch on this machine, so that the 8 steps take about 0.8 minutes, and the 4 of the ",
    ),
    "longer teacher": (["finetune.max_epochs=5"], "and the 20 of the teacher 2.0, unless the cache has it"),
    "no teacher": (["teacher=none", "distill.ce_weight=1", "student_init=pretrained"], "about 0.8 minutes; what is"),
    "batches accumulated": (
        ["trainer.accumulate_grad_batches=2"],
        "6 s a plain batch on this machine, so that the 4 steps take about 0.8 minutes, and the 2 of the teacher 0.4",
    ),
    "batches accumulated over a longer teacher": (
        ["trainer.accumulate_grad_batches=4", "finetune.max_epochs=-1", "finetune.max_steps=7"],
        "and the 7 of the teacher 2.8, unless the cache has it",
    ),
    "more accumulated than there are": (["trainer.accumulate_grad_batches=100"], "that the 2 steps take about 0.8 min"),
    "steps that end within an epoch": (
        ["batch_size=7", "trainer.accumulate_grad_batches=4", "trainer.max_epochs=30", "trainer.max_steps=20"],
        "that the 20 steps take about 5.0 minutes",  # ten epochs of five batches
    ),
    "steps alone": (["trainer.max_epochs=-1", "trainer.max_steps=20"], "that the 20 steps take about 2.0 minutes"),
    "part of an epoch": (["trainer.limit_train_batches=3"], "that the 6 steps take about 0.6 minutes"),
    "structured": (["pruning=structured", "schedule.epochs_per_level=1"], "6 s a plain batch"),
    "scores alone": (["pruning=static_scores", "student_init=pretrained"], "6 s a plain batch"),
}


@pytest.fixture
def slow_clock(monkeypatch):
    """Let every look at the clock be six seconds after the one before."""
    from cap.training import trial

    ticks = itertools.count()
    monkeypatch.setattr(trial, "perf_counter", lambda: 6.0 * next(ticks))


@pytest.mark.parametrize(("overrides", "expected"), cases(SAID, daily=["teacher", "batches accumulated"]))
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
    from cap.training.trial import seconds_per_batch

    prepared = prepare(ready)
    before = {name: tensor.clone() for name, tensor in prepared.pretrained.state_dict().items()}
    assert seconds_per_batch(ready, prepared) > 0
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
    assert trial.seconds_per_batch(ready, prepare(ready)) == pytest.approx(30.0)


def test_a_device_without_memory_is_named_and_what_is_known_is_said(
    compose_config, tiny_overrides, monkeypatch, caplog
):
    from cap.train import train
    from cap.training import trial

    def no_memory(ready, prepared):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd so on.")

    monkeypatch.setattr(trial, "seconds_per_batch", no_memory)
    caplog.set_level(logging.INFO, logger="cap")
    assert train(compose_config(*tiny_overrides, "dry_run=true")) is None
    assert "8  optimizer steps" in caplog.text
    assert "out of memory (CUDA out of memory. Tried to allocate 2.00 GiB.); lower batch_size" in caplog.text


def test_only_the_process_that_speaks_for_the_run_times_it(ready, monkeypatch):
    from cap.training import train_phases

    timed = []
    monkeypatch.setattr(train_phases, "say_how_long", lambda *arguments: timed.append(arguments))
    train_phases.say_what_it_would_do(ready, is_first=False)
    assert not timed
    train_phases.say_what_it_would_do(ready, is_first=True)
    assert len(timed) == 1
