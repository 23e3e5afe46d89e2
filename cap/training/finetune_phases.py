"""The phases of ``python -m cap.finetune``: read the rows, make the teacher or find it, show its scores."""

from __future__ import annotations

from rich.table import Table

from cap.base.console import print_table
from cap.config.check import Checked
from cap.training.preparation import Prepared, prepare
from cap.training.ready import make_ready
from cap.training.resume.randomness import keeping_determinism
from cap.training.resume.stop import stop
from cap.training.teacher import Teacher, get_teacher
from cap.training.trainer import idle_trainer


@keeping_determinism()
def make_teacher(checked: Checked) -> tuple[Prepared, Teacher]:
    """Make the teacher that ``python -m cap.train`` with the same configuration would use, or find it made.

    Returns:
        What it was made from, and the teacher.

    Raises:
        InputError: If something given cannot work.
        StoppedError: If the process was asked to stop.
    """
    prepared = prepare(make_ready(checked))
    trainer = idle_trainer(checked.config.trainer.accelerator)
    with stop.listening():
        teacher = get_teacher(checked, prepared, trainer)
    if teacher is None:
        raise TypeError("teacher=auto always gives a teacher")
    return prepared, teacher


def show(prepared: Prepared, teacher: Teacher) -> None:
    """Print its scores beside those of the majority class, and where it lies."""
    table = Table("metric", "majority class", "teacher", "folder")
    for metric, score in teacher.scores.items():
        table.add_row(metric, f"{prepared.majority[metric]:.4f}", f"{score:.4f}", str(teacher.folder))
    print_table(table)


__all__ = ["make_teacher", "show"]
