"""Where a cell runs and where its record goes, and what is there already."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bake_off.cells import DIR, Cell
from cap.base.errors import InputError
from cap.base.files import read_json, write_json
from cap.launch.cli import quoted

ROOT = Path(__file__).parents[2]
LIST = ROOT / "benchmarks" / "bake_off.yaml"
RECORDS = ROOT / "benchmarks" / "records" / "bake_off"
OUTPUTS = ROOT / "outputs" / "bake_off"


@dataclass(frozen=True)
class State:
    """Say how far a cell is.

    Args:
        kind: ``done`` (there is a record), ``interrupted``, ``failed`` or ``missing``.
        step: The last checkpoint's optimizer step; None without one.
        reason: Why the last attempt failed; empty for all others.
    """

    kind: str
    step: int | None = None
    reason: str = ""

    def __str__(self) -> str:
        step = "" if self.step is None else f" at step {self.step:,}"
        return f"{self.kind}{step}{': ' if self.reason else ''}{self.reason}"


@dataclass(frozen=True)
class Places:
    """Know the folders.

    Args:
        outputs: Where runs happen: a folder a cell.
        records: Where small records are kept.
        data_root: The folder of all data; None if nobody said.
    """

    outputs: Path = OUTPUTS
    records: Path = RECORDS
    data_root: Path | None = None

    def record(self, cell: Cell) -> Path:
        """Name the small record of a cell."""
        return self.records / f"{cell.name}.json"

    def run(self, cell: Cell) -> Path:
        """Name the folder of a cell's run; a cell whose overrides have changed has another."""
        return self.outputs / cell.name / cell.key

    def log(self, cell: Cell) -> Path:
        """Name the file that holds what a cell's process has said, over all attempts."""
        return self.run(cell).with_name(f"{cell.key}.log")

    def attempts(self, cell: Cell) -> list[dict[str, Any]]:
        """Read what is known of earlier attempts, the oldest first."""
        path = self._attempts(cell)
        return list(read_json(path)) if path.is_file() else []

    def note(self, cell: Cell, attempts: list[dict[str, Any]]) -> None:
        """Write down what is known of the attempts."""
        write_json(self._attempts(cell), attempts)

    def _attempts(self, cell: Cell) -> Path:
        return self.run(cell).with_name(f"{cell.key}.json")

    def command(self, cell: Cell) -> list[str]:
        """Make the command of a cell, which starts its run, continues it, or finds it done."""
        run = self.run(cell)
        output_dir = str(run.relative_to(ROOT) if run.is_relative_to(ROOT) else run)
        own = [f"output_dir={_value(output_dir)}", "resume=true", "trainer.enable_progress_bar=false"]
        data = []
        if cell.needs_data:
            data = [f"data_dir={_value(str(self._data_root / cell.task))}"]
        given = [_with_root(text, self.data_root) for text in cell.all_overrides]
        return [sys.executable, "-m", "cap.train", *given, *data, *own]

    @property
    def _data_root(self) -> Path:
        if self.data_root is None:
            raise ValueError("cells that read data need a data root")
        return self.data_root

    def require_data(self, cells: Iterable[Cell]) -> None:
        """Check that the data of all cells are there.

        Raises:
            InputError: If a folder is missing.
        """
        wanted = sorted({cell.task for cell in cells if cell.needs_data})
        if wanted and self.data_root is None:
            raise InputError(f"--data-root must be the folder that holds {', '.join(wanted)}, and was not given")
        missing = [name for name in wanted if self.data_root is not None and not (self.data_root / name).is_dir()]
        if missing:
            raise InputError(
                f"--data-root must hold a folder for each task, got {self.data_root} without {', '.join(missing)}; "
                f"add them, or choose other cells with --only"
            )

    def state(self, cell: Cell) -> State:
        """Say how far a cell is."""
        if self.is_done(cell):
            return State("done")
        attempts, step = self.attempts(cell), self.checkpoint_step(cell)
        if attempts and attempts[-1].get("outcome") == "failed":
            return State("failed", step, str(attempts[-1].get("reason", "")))
        return State("missing" if step is None and not self.run(cell).exists() else "interrupted", step)

    def is_done(self, cell: Cell) -> bool:
        """Say whether a cell has a record; that of other overrides under the same name is none of it."""
        path = self.record(cell)
        if not path.is_file():
            return False
        try:
            return bool(read_json(path)["cell"]["overrides"] == list(cell.all_overrides))
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} must be a record of the bake-off, and is not; remove it") from error

    def is_finished_by_other_code(self, cell: Cell, commit: str | None) -> bool:
        """Say whether a cell without a record has a finished run of another commit, which this one has not made."""
        record = self.run_record(cell)
        made_at = (record.get("environment") or {}).get("git_commit")
        return record.get("status") == "completed" and not self.is_done(cell) and made_at != commit

    def checkpoint_step(self, cell: Cell) -> int | None:
        """Find the step that a run would go on from."""
        found = [
            re.fullmatch(r"step-(\d+)\.json", path.name) for path in self.run(cell).glob("checkpoints/step-*.json")
        ]
        return max((int(match[1]) for match in found if match), default=None)

    def run_record(self, cell: Cell) -> dict[str, Any]:
        """Read what a run has written so far; empty if there is nothing."""
        path = self.run(cell) / "record.json"
        try:
            return dict(read_json(path))
        except (OSError, ValueError):
            return {}


def _value(text: str) -> str:
    """Write a path as the value of an override, quoted where a sign needs it."""
    return text if re.fullmatch(r"[\w./-]+", text) else quoted(text)


def _with_root(text: str, data_root: Path | None) -> str:
    if re.search(rf"=\[?{DIR}/", text) is None:
        return text
    if data_root is None:
        raise InputError(f"--data-root must be given for the override {text}")
    key, _, value = text.partition("=")
    return f"{key}={value.replace(f'{DIR}/', f'{data_root}/')}"


__all__ = ["LIST", "OUTPUTS", "RECORDS", "ROOT", "Places", "State"]
