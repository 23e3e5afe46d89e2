from __future__ import annotations

from pathlib import Path


def logged(run_dir: Path, *rows: dict[str, float]) -> None:
    from cap.training.resume.curves import CurvesLogger

    logger = CurvesLogger(run_dir)
    for row in rows:
        logger.log_metrics({name: value for name, value in row.items() if name != "step"}, int(row["step"]))
    logger.save()


def lines(run_dir: Path) -> list[str]:
    return (run_dir / "logs" / "metrics.csv").read_text(encoding="utf-8").splitlines()


def test_second_logger_continues_the_file(tmp_path):
    logged(tmp_path, {"step": 0, "loss": 1.0})
    logged(tmp_path, {"step": 1, "loss": 0.5})
    assert lines(tmp_path) == ["loss,step", "1.0,0", "0.5,1"]


def test_new_quantity_of_a_second_logger_gets_a_column(tmp_path):
    logged(tmp_path, {"step": 0, "loss": 1.0})
    logged(tmp_path, {"step": 1, "score": 0.5})
    assert lines(tmp_path) == ["loss,score,step", "1.0,,0", ",0.5,1"]


def test_rows_behind_a_checkpoint_are_cut_off(tmp_path):
    from cap.training.resume.curves import cut_curves

    logged(tmp_path, {"step": 0, "loss": 1.0}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25})
    cut_curves(tmp_path, 1)
    logged(tmp_path, {"step": 1, "loss": 0.5})
    assert lines(tmp_path) == ["loss,step", "1.0,0", "0.5,1"]


def test_row_that_a_killed_process_has_cut_is_dropped(tmp_path):
    from cap.training.resume.curves import cut_curves

    logged(tmp_path, {"step": 0, "loss": 1.0})
    with (tmp_path / "logs" / "metrics.csv").open("a", encoding="utf-8") as file:
        file.write("0.2")
    cut_curves(tmp_path, 2)
    assert lines(tmp_path) == ["loss,step", "1.0,0"]


def test_cutting_all_rows_leaves_no_file(tmp_path):
    from cap.training.resume.curves import cut_curves

    logged(tmp_path, {"step": 0, "loss": 1.0})
    cut_curves(tmp_path, 0)
    assert not (tmp_path / "logs" / "metrics.csv").exists()


def test_rows_count_what_is_still_in_memory(tmp_path):
    from cap.training.resume.curves import CurvesLogger

    logger = CurvesLogger(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    assert logger.n_rows() == 1
