from __future__ import annotations

import pytest
from lightning.pytorch import Trainer

from cap.training.progress import tracked


@pytest.fixture
def terminal(monkeypatch):
    """Let rich take what pytest captures for a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")


def shown(capsys, monkeypatch, rank: int) -> str:
    monkeypatch.setattr(Trainer, "is_global_zero", property(lambda trainer: rank == 0))
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    capsys.readouterr()
    assert list(tracked([1, 2, 3], description="importance", trainer=trainer)) == [1, 2, 3]
    return capsys.readouterr().err


@pytest.mark.usefixtures("terminal")
def test_first_process_shows_what_it_goes_through(capsys, monkeypatch):
    assert "importance" in shown(capsys, monkeypatch, 0)


@pytest.mark.usefixtures("terminal")
def test_other_processes_go_through_it_silently(capsys, monkeypatch):
    assert shown(capsys, monkeypatch, 1) == ""
