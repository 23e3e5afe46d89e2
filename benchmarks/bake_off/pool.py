"""Run cells in processes of their own, as many at a time as there are slots, until none is left or time is up.

A slot is a core with one thread, or a GPU. A cell that fails is written down and stops no other; one that is still
running when time is up is asked to save, so that the same command goes on with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.bake_off.cells import Cell
from benchmarks.bake_off.places import ROOT, Places
from benchmarks.bake_off.records import small_record
from benchmarks.bake_off.workers import Slot, Times
from cap.base.files import write_json
from cap.launch.processes import PARENT, SECONDS_TO_SAVE
from cap.runs.environment import git_commit

_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = SECONDS_TO_SAVE + 30.0
# A cell is begun if by what is known at least this part of it lies before the limit.
_PART_IN_TIME = 0.75
_STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT)


@dataclass
class Running:
    """Hold a cell whose process runs."""

    cell: Cell
    process: subprocess.Popen[bytes]
    slot: Slot
    started: float
    attempts: list[dict[str, Any]]
    said_before: int  # bytes of the log, of earlier attempts


@dataclass(frozen=True)
class Outcome:
    """Say how an attempt at a cell ended: ``completed``, ``interrupted`` or ``failed``, and why if it failed."""

    cell: Cell
    outcome: str
    seconds: float
    reason: str = ""
    score: float | None = None


class Pool:
    """Run cells.

    Args:
        places: Folders and commands.
        slots: What the workers use.
        limit_seconds: From the start of ``run`` on, after which nothing runs any more.
        say: Told of what happens, a line each.
        command: Makes the command of a cell.
        poll_seconds: Between two looks at the processes.
    """

    def __init__(
        self,
        places: Places,
        slots: Sequence[Slot],
        *,
        limit_seconds: float,
        say: Callable[[str], None],
        command: Callable[[Cell], list[str]] | None = None,
        poll_seconds: float = _POLL_SECONDS,
    ) -> None:
        self.places = places
        self.slots = list(slots)
        self.limit_seconds = limit_seconds
        self.say = say
        self.command = command or places.command
        self.poll_seconds = poll_seconds
        self.times = Times()
        self.pending: list[Cell] = []
        self.running: list[Running] = []
        self.outcomes: list[Outcome] = []
        self._asked: float | None = None
        self._deadline = float("inf")

    def run(self, cells: Iterable[Cell]) -> list[Outcome]:
        """Run the cells in their order; return how each attempt ended."""
        self.pending = list(cells)
        self._deadline = time.monotonic() + self.limit_seconds
        try:
            while self._fill() or self.running:
                time.sleep(self.poll_seconds)
                self._reap()
                if self.running and time.monotonic() > self._deadline and self._asked is None:
                    self.say("time is up: what runs is asked to save and end")
                    self.stop()
                self._end_what_does_not()
        except BaseException:
            self.stop()
            raise
        finally:
            self._wait()
        return self.outcomes

    def stop(self) -> None:
        """Ask all processes to save and end, and begin no further cell; called again, it asks again."""
        self._asked = self._asked or time.monotonic()
        for running in self.running:
            running.process.terminate()

    def _fill(self) -> bool:
        """Begin cells while there are free slots; say whether one was begun."""
        has_begun = False
        free = [slot for slot in self.slots if all(running.slot is not slot for running in self.running)]
        for slot in free:
            cell = self._next()
            if cell is None:
                break
            self.pending.remove(cell)
            self._start(cell, slot)
            has_begun = True
        return has_begun

    def _next(self) -> Cell | None:
        """Choose the first cell that can end in time, rather one whose teacher nobody is just training."""
        left = self._deadline - time.monotonic()
        if self._asked is not None or left <= 0:
            return None
        in_time = [cell for cell in self.pending if left >= _PART_IN_TIME * (self._expected(cell) or 0.0)]
        awaited = {running.cell.teacher_key for running in self.running if not self._has_teacher(running.cell)}
        ready = [cell for cell in in_time if cell.teacher_key not in awaited]
        return next(iter([*ready, *in_time]), None)

    def _has_teacher(self, cell: Cell) -> bool:
        record = self.places.run_record(cell)
        return bool((record.get("scores") or {}).get("teacher")) or "teacher=none" in cell.overrides

    def _expected(self, cell: Cell) -> float | None:
        spent = sum(attempt.get("seconds") or 0.0 for attempt in self.places.attempts(cell))
        return self.times.expected(cell, spent=spent)

    def _start(self, cell: Cell, slot: Slot) -> None:
        log, commit = self.places.log(cell), git_commit(ROOT / "cap")
        is_of_other_code = self.places.is_finished_by_other_code(cell, commit)
        attempts = [] if is_of_other_code else self.places.attempts(cell)
        log.parent.mkdir(parents=True, exist_ok=True)
        said_before = log.stat().st_size if log.exists() else 0
        attempts.append({"commit": commit, "outcome": "running", "seconds": None})
        self.places.note(cell, attempts)
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        # A child of a process that was killed would be in the way when the command is repeated: it ends, too.
        environment = {**os.environ, **slot.environment, "PYTHONPATH": os.pathsep.join(paths), PARENT: str(os.getpid())}
        with log.open("ab") as file:
            # In a session of its own, so that Ctrl-C reaches it once, through us.
            process = subprocess.Popen(
                [*self.command(cell), *(["overwrite=true"] if is_of_other_code else [])],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if slot.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, slot.cores)  # before it has threads, which inherit it
        self.running.append(Running(cell, process, slot, time.monotonic(), attempts, said_before))
        step = self.places.checkpoint_step(cell)
        verb = "started" if step is None else f"continued after step {step:,}"
        self.say(f"{verb} {cell.name}; {len(self.pending)} more to do{self._remaining()}")

    def _reap(self) -> None:
        for running in [running for running in self.running if running.process.poll() is not None]:
            self.running.remove(running)
            outcome = self._outcome(running)
            running.attempts[-1] |= {"outcome": outcome.outcome, "seconds": round(outcome.seconds, 1)}
            if outcome.reason:
                running.attempts[-1]["reason"] = outcome.reason
            self.places.note(running.cell, running.attempts)
            self.outcomes.append(outcome)
            spent = sum(attempt.get("seconds") or 0.0 for attempt in running.attempts)
            if outcome.outcome == "completed":
                self.times.add(running.cell, spent)
            score = "" if outcome.score is None else f", {outcome.score:.4f}"
            reason = f": {outcome.reason}" if outcome.reason else ""
            self.say(
                f"{outcome.outcome} {running.cell.name}{score} in {outcome.seconds / 60:.1f} min{reason}; "
                f"{len(self.pending)} more to do{self._remaining()}"
            )

    def _outcome(self, running: Running) -> Outcome:
        cell, code = running.cell, running.process.returncode
        seconds = time.monotonic() - running.started
        record = self.places.run_record(cell)
        if code == 0 and record.get("status") == "completed":
            commits = list(dict.fromkeys(attempt.get("commit") for attempt in running.attempts))
            try:
                small = small_record(record, cell, data_root=self.places.data_root, commits=commits)
                write_json(self.places.record(cell), small)
                return Outcome(cell, "completed", seconds, score=record["scores"]["pruned"][record["metric"]])
            except (KeyError, TypeError, ValueError, OSError) as error:
                return Outcome(cell, "failed", seconds, f"no small record: {type(error).__name__}: {error}")
        # What was killed without having been asked, as for want of memory, has failed.
        if code in _STOPPED or (code == -signal.SIGKILL and self._asked is not None):
            return Outcome(cell, "interrupted", seconds)
        return Outcome(
            cell, "failed", seconds, f"exit code {code}, {last_words(self.places.log(cell), after=running.said_before)}"
        )

    def _remaining(self) -> str:
        """Estimate what is left of all cells, as far as it is known."""
        now = time.monotonic()
        known = [self._expected(cell) for cell in self.pending]
        begun = [
            max(expected - (now - running.started), 0.0)
            for running in self.running
            if (expected := self._expected(running.cell)) is not None
        ]
        seconds = sum(expected for expected in known if expected is not None) + sum(begun)
        n_unknown = sum(expected is None for expected in known)
        if not seconds:
            return ""
        beside = f" and {n_unknown} that nothing is known of" if n_unknown else ""
        return f", about {seconds / len(self.slots) / 3600:.1f} h{beside}"

    def _end_what_does_not(self) -> None:
        if self._asked is not None and time.monotonic() - self._asked > _PATIENCE_SECONDS:
            for running in self.running:
                running.process.kill()

    def _wait(self) -> None:
        while self.running:
            time.sleep(self.poll_seconds)
            self._reap()
            self._end_what_does_not()


def last_words(log: Path, *, after: int = 0) -> str:
    """Say why a process failed: its last line that names an error, else its last line.

    Args:
        log: What it and those before it have said.
        after: How many bytes are those of others.
    """
    text = log.read_bytes()[after:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("error:") or ("Error" in line.split(":")[0])]
    return (named or lines or ["and it said nothing"])[-1]


__all__ = ["Outcome", "Pool", "last_words"]
