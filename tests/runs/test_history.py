from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from cap.runs.history import History, read_history


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _pairs(history: History, name: str) -> list[tuple[int, float]]:
    series = history.series[name]
    return list(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def test_reads_what_lightning_s_logger_writes(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    logger.log_metrics({"loss/total": 2.0, "epoch": 0}, step=0)
    logger.log_metrics({"loss/total": 1.5, "epoch": 0}, step=1)
    logger.log_metrics({"val/f1": 0.75, "epoch": 0}, step=1)
    logger.save()
    history = read_history(tmp_path / "metrics.csv")
    assert _pairs(history, "loss/total") == [(0, 2.0), (1, 1.5)]
    assert _pairs(history, "val/f1") == [(1, 0.75)]


def test_empty_cells_are_dropped(tmp_path: Path) -> None:
    history = read_history(_write(tmp_path / "m.csv", "epoch,loss/ce,step,val/f1\n0,1.0,0,\n0,,5,0.5\n0,0.5,10,\n"))
    assert _pairs(history, "loss/ce") == [(0, 1.0), (10, 0.5)]


def test_a_column_without_a_value_gives_no_series(tmp_path: Path) -> None:
    history = read_history(_write(tmp_path / "m.csv", "loss/ce,loss/prc,step\n1.0,,0\n"))
    assert history.get("loss/prc") is None


def test_the_step_itself_is_no_series(tmp_path: Path) -> None:
    assert set(read_history(_write(tmp_path / "m.csv", "loss/ce,step\n1.0,0\n")).series) == {"loss/ce"}


@pytest.mark.parametrize("cell", ["nan", "inf", "words"])
def test_cells_without_a_finite_number_are_left_out(tmp_path: Path, cell: str) -> None:
    history = read_history(_write(tmp_path / "m.csv", f"loss/ce,step\n1.0,0\n{cell},1\n"))
    assert _pairs(history, "loss/ce") == [(0, 1.0)]


def test_steps_that_were_repeated_after_a_resume_count_once(tmp_path: Path) -> None:
    history = read_history(_write(tmp_path / "m.csv", "loss/ce,step\n3,0\n2,10\n9,20\n1,10\n0.5,20\n"))
    assert _pairs(history, "loss/ce") == [(0, 3.0), (10, 1.0), (20, 0.5)]


def test_steps_rise_after_a_resume_from_an_older_checkpoint(tmp_path: Path) -> None:
    history = read_history(_write(tmp_path / "m.csv", "loss/ce,step\n3,0\n9,20\n1,15\n"))
    assert history.series["loss/ce"].steps.tolist() == [0, 15, 20]


def test_a_row_that_was_cut_off_is_not_read(tmp_path: Path) -> None:
    history = read_history(_write(tmp_path / "m.csv", "step,val/f1\n0,0.25\n1,0.7"))
    assert _pairs(history, "val/f1") == [(0, 0.25)]


def test_rows_that_are_too_short_or_too_long_do_no_harm(tmp_path: Path) -> None:
    history = read_history(_write(tmp_path / "m.csv", "step,val/f1\n0\n1,0.5,7,8\n"))
    assert _pairs(history, "val/f1") == [(1, 0.5)]


@pytest.mark.parametrize("text", ["", "loss/ce,step\n", "loss/ce\n1.0\n"], ids=["empty", "header", "no step"])
def test_a_file_without_points_gives_an_empty_history(tmp_path: Path, text: str) -> None:
    assert read_history(_write(tmp_path / "m.csv", text)).series == {}


def test_a_missing_file_gives_an_empty_history(tmp_path: Path) -> None:
    assert read_history(tmp_path / "metrics.csv").series == {}
