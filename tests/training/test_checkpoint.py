"""When a checkpoint is written, and what of it a run that goes on takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

NOW = {"seconds": 1000.0}


@pytest.fixture
def callback(tmp_path, monkeypatch):
    """Make a callback whose clock a test moves."""
    from cap.training.resume import checkpoint

    monkeypatch.setitem(NOW, "seconds", 1000.0)
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: NOW["seconds"])

    def make(**options):
        given = {"every_n_minutes": None, "every_n_steps": None} | options
        return checkpoint.CheckpointCallback(tmp_path, config_hash="mine", **given)

    return make


def test_minutes_are_minutes_and_count_from_the_last_one(callback, monkeypatch):
    from cap.training.resume import checkpoint

    monkeypatch.setattr(checkpoint, "ranks_of", lambda trainer: SimpleNamespace(is_first=False))
    made = callback(every_n_minutes=10.0)
    trainer = SimpleNamespace(global_step=7, loggers=[], save_checkpoint=lambda path: None)
    NOW["seconds"] += 599
    assert not made._is_due(7)
    NOW["seconds"] += 1
    assert made._is_due(7)
    assert not made._is_due(0)  # there is nothing to keep
    made.save(trainer)
    assert not made._is_due(8)
    NOW["seconds"] += 600
    assert made._is_due(8)


def test_steps_are_steps(callback):
    made = callback(every_n_steps=4)
    assert [step for step in range(10) if made._is_due(step)] == [4, 8]
    assert not any(callback()._is_due(step) for step in range(10))


def test_a_process_goes_on_with_its_own_random_numbers(callback, monkeypatch):
    from cap.training.resume import checkpoint

    taken = []
    monkeypatch.setattr(checkpoint, "ranks_of", lambda trainer: SimpleNamespace(rank=1))
    monkeypatch.setattr(checkpoint, "set_random_state", lambda state, device: taken.append(state))
    total = SimpleNamespace(ready=0, completed=5)
    loop = SimpleNamespace(_batches_that_stepped=0, batch_progress=SimpleNamespace(total=total))
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device="cpu"), fit_loop=SimpleNamespace(epoch_loop=loop))
    callback()._go_on(trainer, {"random": ["of the first", "of the second"], "n_batches_that_stepped": 3})
    assert taken == ["of the second"]
    assert (loop._batches_that_stepped, total.ready) == (3, 6)


def test_seconds_of_training_add_up_over_attempts(callback, monkeypatch):
    from cap.training.resume import checkpoint

    monkeypatch.setattr(checkpoint, "ranks_of", lambda trainer: SimpleNamespace(gather=lambda state: [state]))
    monkeypatch.setattr(checkpoint, "random_state", lambda device: "numbers")
    monkeypatch.setattr(checkpoint, "_loader", lambda trainer: SimpleNamespace(state_dict=dict))
    module = SimpleNamespace(frozen_keys={})
    monkeypatch.setattr(checkpoint, "cap_module", lambda pl_module: module)
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=0))
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device="cpu"), fit_loop=loop)
    written: dict = {}
    first = callback()
    first.on_fit_start(trainer, module)
    NOW["seconds"] += 30
    first.on_save_checkpoint(trainer, module, written)
    second = callback()
    second.on_load_checkpoint(trainer, module, written)
    NOW["seconds"] += 1000  # between the attempts, and while the second reads its data
    second.on_fit_start(trainer, module)
    NOW["seconds"] += 12
    second.on_save_checkpoint(trainer, module, written)
    assert [entry["seconds"] for entry in written.values()] == [42.0]
