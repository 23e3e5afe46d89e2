"""``python -m benchmarks.bake_off --minutes N --data-root DIR``: run what the list has and no record has yet.

The list is ``benchmarks/bake_off.yaml``; a cell is done when ``benchmarks/records/bake_off/<cell>.json`` is there.
Started again, the command goes on: with cells that were interrupted, then with those that have not begun.
"""

from __future__ import annotations

import argparse
import fnmatch
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from filelock import FileLock, Timeout
from rich.console import Console
from rich.text import Text

from benchmarks.bake_off.cells import Cell, read_cells
from benchmarks.bake_off.places import LIST, OUTPUTS, RECORDS, Places
from benchmarks.bake_off.pool import Outcome, Pool
from benchmarks.bake_off.workers import slots
from cap.base.errors import InputError, RunError, StoppedError


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and do what it says.

    Returns:
        0; 1 if a cell failed; 2 for bad input; 143 or 130 after a signal.
    """
    console = Console(highlight=False, soft_wrap=True)
    try:
        options = _parser().parse_args(arguments)
        cells = _selected(read_cells(options.cells), options.only)
        places = Places(options.outputs.resolve(), options.records.resolve(), _resolved(options.data_root))
        if options.list:
            _show_states(console, places, cells)
            return 0
        if options.minutes is None or not options.minutes > 0:
            raise InputError(f"--minutes must be more than 0, got {options.minutes}; how long may cells run?")
        todo = [cell for cell in cells if not places.is_done(cell)]
        places.require_data(todo)
        with _alone(places.outputs), _ending_by_signal():
            outcomes = _run(console, places, todo, len(cells), minutes=options.minutes, n_workers=options.workers)
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        return InputError.exit_code
    except StoppedError as error:
        sys.stderr.write(f"{error}; repeat the command to go on\n")
        return error.exit_code
    return RunError.exit_code if any(outcome.outcome == "failed" for outcome in outcomes) else 0


def _run(
    console: Console, places: Places, todo: list[Cell], n_cells: int, *, minutes: float, n_workers: int | None
) -> list[Outcome]:
    workers = slots(n_workers)

    def say(line: str) -> None:
        console.print(Text(f"{time.strftime('%H:%M:%S')} {line}"))

    say(f"{n_cells - len(todo)} of {n_cells} cells have a record; {len(workers)} at a time for {minutes:g} minutes")
    pool = Pool(places, workers, limit_seconds=60 * minutes, say=say)
    try:
        return pool.run(todo)
    finally:
        _show_outcomes(console, pool.outcomes, n_left=sum(not places.is_done(cell) for cell in todo))


def _show_outcomes(console: Console, outcomes: Sequence[Outcome], *, n_left: int) -> None:
    counted = Counter(outcome.outcome for outcome in outcomes)
    said = ", ".join(f"{n} {kind}" for kind, n in counted.items()) or "nothing was run"
    console.print(f"{said}; {n_left} cells are left")
    for outcome in outcomes:
        if outcome.outcome == "failed":
            console.print(Text(f"failed: {outcome.cell.name}: {outcome.reason}"))


def _show_states(console: Console, places: Places, cells: Sequence[Cell]) -> None:
    states = [places.state(cell) for cell in cells]
    width = max(len(cell.name) for cell in cells)
    for cell, state in zip(cells, states, strict=True):
        console.print(Text(f"{cell.priority}  {cell.name:{width}}  {state}"))
    console.print(", ".join(f"{n} {kind}" for kind, n in Counter(state.kind for state in states).items()))


def _selected(cells: Sequence[Cell], pattern: str | None) -> list[Cell]:
    if pattern is None:
        return list(cells)
    found = [cell for cell in cells if any(fnmatch.fnmatch(text, f"*{pattern}*") for text in (cell.name, cell.block))]
    if not found:
        raise InputError(f"--only must match the name of a cell or block, got {pattern}; see --list")
    return found


@contextmanager
def _alone(outputs: Path) -> Iterator[None]:
    """Keep a second command from running the same cells."""
    outputs.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(outputs / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise InputError(f"one bake-off at a time, but another one runs in {outputs}; wait for it") from error


@contextmanager
def _ending_by_signal() -> Iterator[None]:
    """Turn SIGTERM and SIGINT into an exception, at which the pool ends its processes."""

    def receive(number: int, frame: FrameType | None) -> NoReturn:
        for one in previous:
            signal.signal(one, signal.SIG_IGN)  # the processes are being ended already
        raise StoppedError(number, is_clean=True)

    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in previous:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _resolved(path: Path | None) -> Path | None:
    return None if path is None else path.resolve()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see python -m benchmarks.bake_off --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m benchmarks.bake_off", description=__doc__)
    parser.add_argument("--minutes", type=float, help="after these what runs is asked to save and end")
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="the folder of all data: DIR/sst2_8k, DIR/mrpc")
    parser.add_argument("--workers", type=int, help="cells at a time (default: one a GPU, or two cores with a thread)")
    parser.add_argument("--cells", type=Path, default=LIST, metavar="FILE", help="the list (default: bake_off.yaml)")
    parser.add_argument("--only", metavar="PATTERN", help="cells or blocks whose name holds this, * for anything")
    parser.add_argument("--list", action="store_true", help="show how far each cell is, and run nothing")
    parser.add_argument("--records", type=Path, default=RECORDS, metavar="DIR", help="where small records are kept")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, metavar="DIR", help="where the runs happen")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
