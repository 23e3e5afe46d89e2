"""What became of each job of a grid, as a table and as an exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cap.base.errors import InputError, RunError
from cap.launch.grid_jobs import Job

_STYLES = {"completed": "green", "skipped": "green", "resumed": "green", "failed": "red", "lost": "red"}
_WIDTH_OF_A_FILE = 160  # where no terminal says how wide it is


def exit_code(jobs: Sequence[Job]) -> int:
    """Return 0 where every job is complete, 2 where all others were given bad input, else 1."""
    others = [job for job in jobs if not job.is_good]
    if not others:
        return 0
    return InputError.exit_code if all(job.is_bad_input for job in others) else RunError.exit_code


def show(jobs: Sequence[Job]) -> None:
    """List the jobs on the terminal, the incomplete ones last and with their reasons.

    Args:
        jobs: One at least.
    """
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH_OF_A_FILE
    table = Table("job", "settings", "ended", "score", "time", "folder", box=box.SIMPLE)
    for job in sorted(jobs, key=lambda job: (not job.is_good, job.number)):
        table.add_row(
            str(job.number),
            Text(settings(job, jobs)),
            Text(job.outcome, style=_STYLES.get(job.outcome, "yellow")),
            "" if job.score is None else f"{job.score:.4f}",
            "" if job.seconds is None else str(timedelta(seconds=round(job.seconds))),
            Text(job.folder or ""),
        )
    console.print(table)
    counts = Counter(job.outcome for job in jobs)
    # The lines below are never wrapped: somebody will search a log for them.
    console.print(f"{len(jobs)} jobs: {', '.join(f'{n} {outcome}' for outcome, n in counts.items())}", soft_wrap=True)
    for job in jobs:
        if job.reason and not job.is_good:
            line = f"job {job.number} ({settings(job, jobs)}) {job.outcome}: {job.reason}"
            console.print(line, soft_wrap=True, markup=False)
    if exit_code(jobs):
        console.print(_what_to_do(jobs), soft_wrap=True)


def settings(job: Job, jobs: Sequence[Job]) -> str:
    """Give what tells a job from the others, or all that it was told if there are none."""
    shared = set.intersection(*(set(other.overrides) for other in jobs)) if len(jobs) > 1 else set()
    return " ".join(override for override in job.overrides if override not in shared)


def _what_to_do(jobs: Sequence[Job]) -> str:
    repeat = (
        f"repeat the command{_so_that_they_are_kept(jobs)}: jobs that are complete are skipped, interrupted ones go on "
        f"where they stopped"
    )
    if any(job.outcome == "failed" for job in jobs):
        return f"Mend what failed, then {repeat}."
    if any(job.outcome == "running" for job in jobs):
        return f"Wait for what is running, then {repeat}."
    return f"{repeat[0].upper()}{repeat[1:]}."


def _so_that_they_are_kept(jobs: Sequence[Job]) -> str:
    """Say what a repeated command must say too, lest complete jobs are made again or refused."""
    typed = {override.lower() for job in jobs for override in job.overrides}
    instead = []
    if "overwrite=true" in typed or any(override.startswith("debug=") for override in typed):  # every debug= sets it
        instead.append("overwrite=false")
    if "skip_completed=false" in typed:
        instead.append("skip_completed=true")
    return f" with {' '.join(instead)}" if instead else ""


__all__ = ["exit_code", "settings", "show"]
