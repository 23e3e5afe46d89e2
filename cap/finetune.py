"""``python -m cap.finetune``: make the teacher on its own; later runs that would train the same one find it."""

from __future__ import annotations

from omegaconf import DictConfig

from cap.base.errors import InputError
from cap.config.check import check
from cap.launch.cli import door
from cap.launch.imports import first_import


def finetune(cfg: DictConfig) -> float:
    """Fine-tune the teacher that ``python -m cap.train`` with the same keys would use, and keep it in ``cache_dir``.

    Args:
        cfg: The composed configuration; what is about pruning is not used.

    Returns:
        The teacher's score on the task's first metric.

    Raises:
        InputError: If ``teacher`` is not ``auto``, ``dry_run`` is asked for, or something else given cannot work.
    """
    checked = check(cfg)
    if checked.config.teacher != "auto":
        raise InputError(f"cap.finetune makes the teacher of teacher=auto, got teacher={checked.config.teacher}")
    if checked.config.dry_run:
        raise InputError(
            "cap.finetune trains a teacher, got dry_run=true; python -m cap.train with the same keys says what it takes"
        )
    if not checked.learns_from_labels:
        raise InputError(
            f"cap.finetune makes a teacher that learns from labels, got task={checked.config.task.name}, whose teacher "
            f"is the pre-trained model as it is; run python -m cap.train with the same keys"
        )
    with first_import():
        from cap.training import finetune_phases as phases  # takes seconds: after the verdict

    prepared, teacher = phases.make_teacher(checked)
    phases.show(prepared, teacher)
    return teacher.scores[prepared.task.monitored]


main = door(
    finetune,
    opening="""\
python -m cap.finetune task=qqp

Fine-tune the teacher that cap.train with the same keys would use, and keep it in cache_dir. Keys about pruning,
contrast and distillation are not used. dry_run=true and teacher= other than auto are refused.""",
)

if __name__ == "__main__":
    main()
