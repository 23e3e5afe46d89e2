from __future__ import annotations

import gc
import sys

import pytest

from cap.launch.imports import first_import


@pytest.fixture
def frozen(monkeypatch):
    """Count what the collector leaves aside, in a process that has not imported torch."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    gc.unfreeze()
    yield gc.get_freeze_count
    gc.collect()
    gc.freeze()  # as the session began


def test_the_collector_waits_and_leaves_aside_what_was_imported(frozen):
    with first_import():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert frozen() > 0


def test_it_works_again_after_an_import_that_fails(frozen):
    with pytest.raises(ImportError, match="no such library"), first_import():
        raise ImportError("no such library")
    assert gc.isenabled()
    assert frozen() == 0


def test_nothing_is_left_aside_where_torch_is_there_already(frozen, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", object())
    with first_import():
        assert gc.isenabled()
    assert frozen() == 0


def test_a_collector_that_is_off_stays_off(frozen):
    gc.disable()
    try:
        with first_import():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
    assert frozen() == 0
