"""What ``cap.train`` assembles: the memory, the module with its loss terms, the callbacks' settings."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Trainer

from cap.config import Checked
from cap.models.encoders import PooledModel
from cap.models.families import prunable
from cap.objectives.memory import Memory, Source
from cap.preparation import Prepared, Teacher
from cap.training.encode import computation_of, frozen_outputs
from cap.training.module import CapModule, Contrast, Distill, Optimisation


def filled_memory(checked: Checked, prepared: Prepared, teacher: Teacher | None, trainer: Trainer) -> Memory:
    """Encode the training rows with the frozen models that take part, or find that done, and open the results.

    Args:
        checked: The configuration.
        prepared: Rows and the pre-trained model.
        teacher: The fine-tuned model; None if the run has none.
        trainer: Says where and in which precision to encode.
    """
    config = checked.config
    memory = Memory(n_examples=prepared.datamodule.n_train, budget_gb=config.memory.budget_gb)
    wanted: list[tuple[Source, PooledModel]] = []
    if config.contrast.pretrained:
        wanted.append(("pretrained", prepared.pretrained))
    if teacher is not None and (config.contrast.finetuned or config.distill.weight > 0):
        wanted.append(("finetuned", teacher.model))
    for source, model in wanted:
        outputs = frozen_outputs(
            model,
            prepared.datamodule.encoding_dataloader(),
            data_key=prepared.datamodule.key,
            cache_dir=prepared.cache_dir,
            computation=computation_of(trainer),
            description=f"encoding the training rows with the {source} model",
            with_logits=source == "finetuned",
        )
        model.cpu()
        memory.add_encodings(source, outputs.encodings)
        if outputs.logits is not None:
            memory.set_teacher_logits(outputs.logits, lengths=outputs.lengths)
    return memory


def new_module(
    checked: Checked, prepared: Prepared, teacher: Teacher | None, memory: Memory, *, warn: Callable[[str], None]
) -> CapModule:
    """Make the module of a run: a student with its masks on, beside the models that it learns from.

    Args:
        checked: The configuration.
        prepared: Rows and the pre-trained model.
        teacher: The fine-tuned model; None if the run has none.
        memory: What the frozen models gave.
        warn: Told of what a reader of the result must know.
    """
    config = checked.config
    student = prepared.new_student(config.seed)
    if config.student_init == "teacher" and teacher is not None:
        student.load_state_dict(teacher.model.state_dict())
    pruner = checked.pruner
    pruner.attach(prunable(student.model), seed=config.seed)
    frozen = {"pretrained": prepared.pretrained}
    if teacher is not None:
        frozen["teacher"] = teacher.model
    return CapModule(
        student,
        distill=_distill(checked, teacher, warn),
        optimisation=Optimisation(
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            warmup=checked.plan.warmup,
            restarts=checked.plan.restarts,
        ),
        metrics=prepared.metrics(),
        contrast=_contrast(checked, student, teacher),
        memory=memory,
        train_labels=prepared.datamodule.train_labels,
        train_groups=prepared.datamodule.train_groups,
        pruner=pruner,
        frozen=frozen,
    )


def _distill(checked: Checked, teacher: Teacher | None, warn: Callable[[str], None]) -> Distill:
    distill = checked.config.distill
    if teacher is None and distill.weight > 0:
        warn("There is no teacher to distil from: the labels weigh 1, as with distill=none.")
        return Distill(weight=0.0, ce_weight=1.0, temperature=distill.temperature)
    return Distill(weight=distill.weight, ce_weight=distill.ce_weight, temperature=distill.temperature)


def _contrast(checked: Checked, student: PooledModel, teacher: Teacher | None) -> Contrast | None:
    contrast = checked.config.contrast
    switches: dict[Source, bool] = {
        "pretrained": contrast.pretrained,
        "snapshots": contrast.snapshots,
        "finetuned": contrast.finetuned and teacher is not None,
    }
    sources = tuple(source for source, is_on in switches.items() if is_on)
    if not sources:
        return None
    return Contrast(
        sources=sources,
        unsupervised_weight=contrast.unsupervised_weight,
        supervised_weight=contrast.supervised_weight,
        temperature=contrast.temperature,
        extra_examples=contrast.extra_examples,
        reduction="anchors" if contrast.reduction == "anchors" else "pairs",
        anchor_dropout=student.head_dropout() if contrast.anchor_dropout else 0.0,
        seed=checked.config.seed,
    )


__all__ = ["filled_memory", "new_module"]
