"""Seconds of phases, over attempts."""

from __future__ import annotations

import pytest


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    from cap.training import seconds

    class Clock:
        now = 100.0

    monkeypatch.setattr(seconds.time, "perf_counter", lambda: Clock.now)
    return Clock


def spend(phases, clock, name: str, seconds: float) -> None:
    with phases.phase(name):
        clock.now += seconds


def test_phases_of_one_attempt_add_up(clock) -> None:
    from cap.training.seconds import PhaseSeconds

    phases = PhaseSeconds()
    spend(phases, clock, "data", 1.0)
    spend(phases, clock, "fit", 10.0)
    phases.note_training(before=0.0, within={"snapshots": 3.0, "importance": 0.0})
    phases.end()
    assert phases.by_phase() == {"data": 1.0, "fit": 7.0, "snapshots": 3.0, "total": 11.0}


def test_a_later_attempt_counts_what_an_earlier_one_has_paid_for(clock) -> None:
    from cap.training.seconds import PhaseSeconds

    first = PhaseSeconds()
    spend(first, clock, "data", 1.0)
    spend(first, clock, "teacher", 100.0)
    with pytest.raises(KeyboardInterrupt), first.phase("fit"):
        raise KeyboardInterrupt
    second = PhaseSeconds()
    second.take_over(first.by_phase())
    spend(second, clock, "data", 2.0)
    spend(second, clock, "teacher", 0.5)
    spend(second, clock, "fit", 10.0)
    second.note_training(before=5.0, within={})
    second.end()
    assert second.by_phase() == {"data": 3.0, "teacher": 100.5, "fit": 15.0, "total": 118.5}
    third = PhaseSeconds()
    third.take_over(second.by_phase())
    assert third.by_phase() == {"data": 3.0, "teacher": 100.5}
