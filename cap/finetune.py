"""``python -m cap.finetune``: make the teacher on its own; later runs that would train the same one find it."""

from __future__ import annotations

from lightning.pytorch import Trainer
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from cap.base.errors import InputError
from cap.config.schema import check
from cap.launch.cli import door
from cap.training.preparation import prepare
from cap.training.resume.randomness import keeping_determinism
from cap.training.resume.stop import stop
from cap.training.teacher import get_teacher


@keeping_determinism()
def finetune(cfg: DictConfig) -> float:
    """Fine-tune the teacher that ``python -m cap.train`` with the same keys would use.

    Args:
        cfg: The composed configuration; what is about pruning is not used.

    Returns:
        The teacher's score on the task's first metric.

    Raises:
        InputError: If ``teacher`` is not ``auto``, or something else given cannot work.
    """
    checked = check(cfg)
    if checked.config.teacher != "auto":
        raise InputError(f"cap.finetune makes the teacher of teacher=auto, got teacher={checked.config.teacher}")
    prepared = prepare(checked)
    device = Trainer(accelerator=checked.config.trainer.accelerator, devices=1, logger=False).strategy.root_device
    with stop.listening():
        teacher = get_teacher(checked, prepared, device=device)
    if teacher is None:
        raise TypeError("teacher=auto always gives a teacher")
    table = Table("metric", "majority class", "teacher", "folder")
    for metric, score in teacher.scores.items():
        table.add_row(metric, f"{prepared.majority[metric]:.4f}", f"{score:.4f}", str(teacher.folder))
    Console().print(table)
    return teacher.scores[prepared.task.monitored]


main = door(finetune)

if __name__ == "__main__":
    main()
