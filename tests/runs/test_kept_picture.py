from __future__ import annotations

from typing import Any

import pytest


def line(sparsity: float, score: float, folder: str) -> dict[str, Any]:
    fractions = {"asked": sparsity, "prunable": sparsity, "encoder": 0.1, "model": 0.1}
    return {"step": 10, "sparsity": fractions, "scores": {"accuracy": score}, "folder": folder}


@pytest.fixture
def kept() -> list[dict[str, Any]]:
    return [line(0.5, 0.8, "levels/0.5"), line(0.9, 0.7, "model")]


def test_kept_models_are_drawn(tmp_path, kept):
    from cap.runs.kept_picture import plot_kept

    path = tmp_path / "kept.png"
    assert plot_kept(kept, metric="accuracy", teacher=0.9, majority=0.5, path=path) == path
    assert path.read_bytes().startswith(b"\x89PNG")


def test_nothing_is_drawn_of_no_model(tmp_path):
    from cap.runs.kept_picture import plot_kept

    assert plot_kept([], metric="accuracy", teacher=None, majority=None, path=tmp_path / "kept.png") is None


def test_page_lists_kept_models_with_their_folders(tmp_path, kept):
    from cap.runs.page import write_report
    from tests.reports.made_records import made_record

    page = write_report(tmp_path, made_record() | {"kept": kept}).read_text(encoding="utf-8")
    assert "## Kept models" in page
    assert "| 10 | 0.5000 | 0.8000 | `levels/0.5` |" in page
    assert "(pictures/kept_models.png)" in page
