"""How long an optimizer step is said to take."""

from __future__ import annotations

from types import SimpleNamespace

import pytest


def test_a_step_is_as_long_as_its_batches_together_and_the_median_counts(monkeypatch):
    from cap.training.callbacks import timer

    now = 0.0
    monkeypatch.setattr(timer.time, "perf_counter", lambda: now)
    clock, trainer = timer.StepTimer(), SimpleNamespace(global_step=0)
    assert clock.median() is None
    for seconds in ([1.0, 2.0], [3.0, 4.0], [30.0, 40.0]):
        for number, part in enumerate(seconds):
            clock.on_train_batch_start(trainer, None, None, 0)
            now += part
            trainer.global_step += number  # the second batch ends the step
            clock.on_train_batch_end(trainer, None, None, None, 0)
        now += 100.0  # what comes between two steps is no part of them
    assert clock.seconds == pytest.approx([3.0, 7.0, 70.0])
    assert clock.median() == pytest.approx(7.0)
    again = timer.StepTimer()
    again.load_state_dict(clock.state_dict())
    assert again.seconds == clock.seconds
