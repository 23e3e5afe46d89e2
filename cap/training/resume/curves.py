"""``metrics.csv`` of a run, which a resumed run continues."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from cap.base.files import atomic_file
from cap.runs.folder import CURVES

_FLUSH_STEPS = 50


class CurvesLogger(CSVLogger):
    """Log to ``logs/metrics.csv`` in a run's folder, behind what an earlier attempt left there.

    Args:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=run_dir, name="logs", version="", flush_logs_every_n_steps=_FLUSH_STEPS)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:  # noqa: D102 - Lightning's property
        if self._experiment is None:
            self._fs.makedirs(self.root_dir, exist_ok=True)
            self._experiment = _ContinuingWriter(log_dir=self.log_dir)
        return self._experiment

    def n_rows(self) -> int:
        """Write out what is still in memory, and count the rows of the file."""
        self.save()
        path = Path(self.log_dir) / ExperimentWriter.NAME_METRICS_FILE
        return len(_read(path)) if path.is_file() else 0


def cut_curves(run_dir: Path, n_rows: int) -> None:
    """Keep the first rows of ``logs/metrics.csv``: those behind a checkpoint will be logged again.

    Args:
        run_dir: The run's folder.
        n_rows: Rows there were when the checkpoint was written.
    """
    path = run_dir / CURVES
    if path.is_file():
        rows = _read(path)[:n_rows]
        if rows:
            _write(path, list(rows[0]), rows)
        else:
            path.unlink()


class _ContinuingWriter(ExperimentWriter):
    """Append to the file that is there, where Lightning's own writer would remove it."""

    def _check_log_dir_exists(self) -> None:
        path = Path(self.metrics_file_path)
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.metrics_keys = next(csv.reader(file), [])

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path = Path(self.metrics_file_path)
        _write(path, fieldnames, _read(path))


def _read(path: Path) -> list[dict[str, str]]:
    # A killed process may leave its last row cut: only rows that were ended count.
    text = path.read_text(encoding="utf-8")
    return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))


def _write(path: Path, names: list[str], rows: list[dict[str, str]]) -> None:
    with atomic_file(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)


__all__ = ["CurvesLogger", "cut_curves"]
