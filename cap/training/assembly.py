"""What ``cap.train`` assembles: the memory, the module with its loss terms, the callbacks' settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from cap.base.parts import PARTS, Part
from cap.config.check import Checked, contrast_weights
from cap.data.datamodule import CapDataModule
from cap.models.encoders import weights_key
from cap.models.families import prunable
from cap.models.pooled import PooledModel
from cap.objectives.memory import Memory, Source
from cap.pruning.parameters import kept_parameters
from cap.pruning.pruner import ImportancePass
from cap.pruning.schedule import held_level
from cap.runs.folder import CHECKPOINTS, LEVELS
from cap.training.callbacks.agreement import MaskAgreement
from cap.training.callbacks.estimate import EstimateCallback
from cap.training.callbacks.gradient_shares import GradientShares
from cap.training.callbacks.importance import ImportanceCallback
from cap.training.callbacks.keep import KeepCallback
from cap.training.callbacks.pruning import PruningCallback
from cap.training.callbacks.restart import RestartCallback
from cap.training.callbacks.scores import ScoreCallback
from cap.training.callbacks.snapshots import SnapshotCallback
from cap.training.callbacks.timer import StepTimer
from cap.training.encode import computation_of, frozen_outputs
from cap.training.module import CapModule, Contrast, Distill, Optimisation
from cap.training.parallel.strategy import make_strategy
from cap.training.preparation import Prepared
from cap.training.ready import Ready
from cap.training.resume.checkpoint import CheckpointCallback
from cap.training.teacher import Teacher
from cap.training.trainer import build_trainer


def filled_memory(
    checked: Checked, prepared: Prepared, teacher: Teacher | None, trainer: Trainer
) -> tuple[Memory, dict[str, str]]:
    """Encode the training rows with the frozen models that take part, or find that done, and open the results.

    Args:
        checked: The configuration.
        prepared: Rows and the pre-trained model.
        teacher: The fine-tuned model; None if the run has none.
        trainer: Says where and in which precision to encode; its processes share the rows, and each then reads what
            all have encoded.

    Returns:
        The memory, and by source a key of the content of what it was filled with.
    """
    config = checked.config
    memory = Memory(n_examples=prepared.datamodule.n_train, budget=prepared.budget)
    keys: dict[str, str] = {}
    computation = computation_of(trainer)
    ranks = computation.ranks
    wanted: list[tuple[Source, PooledModel]] = []
    if config.contrast.pretrained:
        wanted.append(("pretrained", prepared.pretrained))
    distill = _distill_settings(checked, prepared)
    if teacher is not None and (config.contrast.finetuned or distill.reads_teachers_outputs):
        wanted.append(("finetuned", teacher.model))
    for source, model in wanted:
        is_dense = source == "finetuned" and prepared.is_of_encodings  # its encodings are what it answers
        outputs = frozen_outputs(
            model,
            prepared.datamodule.encoding_dataloader(ranks.rank, ranks.size),
            data_key=prepared.datamodule.key,
            cache_dir=prepared.cache_dir,
            computation=computation,
            description=f"encoding the training rows with the {'dense' if is_dense else source} model",
            with_logits=source == "finetuned" and not is_dense,
            with_hidden=source == "finetuned" and distill.hidden_weight > 0 and not distill.runs_teacher,
        )
        model.cpu()
        keys[source] = outputs.encodings.parent.name
        if is_dense:
            memory.set_teacher_logits(outputs.encodings)
        elif source == "pretrained" or config.contrast.finetuned:
            memory.add(source, outputs.encodings)  # else nothing reads them: not even the memory they would take
        if outputs.logits is not None:
            memory.set_teacher_logits(outputs.logits, lengths=outputs.lengths)
        if outputs.hidden is not None:
            memory.set_hidden(outputs.hidden)
    if teacher is not None and distill.runs_teacher:
        keys["teacher"] = weights_key(teacher.model.model.base_model)
    return memory, keys


def new_module(
    checked: Ready,
    prepared: Prepared,
    teacher: Teacher | None,
    memory: Memory,
    *,
    frozen_keys: Mapping[str, str] | None = None,
    warn: Callable[[str], None],
) -> CapModule:
    """Make the module of a run: a student with its masks on, beside the models that it learns from.

    Args:
        checked: The configuration.
        prepared: Rows and the pre-trained model.
        teacher: The fine-tuned model; None if the run has none.
        memory: What the frozen models gave.
        frozen_keys: Of what the memory was filled with, by source; a checkpoint refers to them.
        warn: Called with each warning for the record.
    """
    config = checked.config
    student = prepared.new_student(config.seed)
    if config.student_init == "teacher" and teacher is not None:
        student.load_state_dict(teacher.model.state_dict())
        if not checked.pruner.trains_weights:
            warn(
                f"With student_init=teacher the masks of pruning={checked.pruning_name} lie on the teacher's weights; "
                f"cap.export format=masks takes those on the pre-trained model's, of student_init=pretrained."
            )
    pruner = checked.pruner
    pruner.attach(prunable(student.model), seed=config.seed)
    return CapModule(
        student,
        distill=_distill(checked, prepared, teacher, warn),
        optimisation=optimisation_of(checked),
        metrics=prepared.metrics(),
        contrast=_contrast(checked, student, teacher, n_examples=prepared.datamodule.n_train),
        memory=memory,
        train_labels=_classes_to_contrast(prepared.datamodule.train_labels, memory),
        train_groups=prepared.datamodule.train_groups,
        pruner=pruner,
        freeze=kept_parameters(student.model, pruner, _frozen(checked, prepared)),
        pretrained=prepared.pretrained,
        teacher=teacher.model if teacher is not None else None,
        frozen_keys=frozen_keys,
    )


def _classes_to_contrast(labels: Tensor | None, memory: Memory) -> Tensor | None:
    """Let the teacher say the class of the rows that have no label, if its answers are there."""
    if labels is None or labels.is_floating_point() or labels.ndim != 1 or not memory.has_teacher_logits:
        return labels
    unknown = (labels < 0).nonzero().flatten()
    if len(unknown) == 0:
        return labels
    return labels.index_copy(0, unknown, memory.teacher_logits(unknown).argmax(dim=1).to(labels.dtype))


def optimisation_of(checked: Checked) -> Optimisation:
    """Say how the weights of a run move."""
    config = checked.config
    return Optimisation(
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=checked.plan.warmup,
        floor=config.learning_rate_floor,
        start=config.learning_rate_start,
        plan=checked.plan,
    )


@dataclass(frozen=True)
class Callbacks:
    """Hold the callbacks of a run.

    Those that write or read the state of a run stand first, so that a checkpoint holds the run as it was before a step;
    then those that look at the student before its masks move, those that move them, and what follows from that.
    """

    checkpoint: CheckpointCallback
    scores: ScoreCallback
    importance: ImportanceCallback
    snapshots: list[SnapshotCallback]
    gradients: GradientShares
    keep: KeepCallback | None
    timer: StepTimer
    estimate: EstimateCallback
    pruning: PruningCallback
    agreement: MaskAgreement
    restart: RestartCallback

    @property
    def in_order(self) -> list[Callback]:
        """The order in which they act at the start of a step."""
        return [
            self.checkpoint,
            self.scores,
            self.importance,
            *self.snapshots,
            self.gradients,
            *([] if self.keep is None else [self.keep]),
            self.timer,
            self.estimate,
            self.pruning,
            self.agreement,
            self.restart,
        ]


def new_callbacks(
    checked: Ready,
    prepared: Prepared,
    run_dir: Path,
    *,
    note_kept: Callable[[list[dict[str, Any]]], None],
    note_gradients: Callable[[dict[str, float]], None],
    note_minutes: Callable[[float], None],
    warn: Callable[[str], None],
) -> Callbacks:
    """Make the callbacks of a run.

    Args:
        checked: The configuration.
        prepared: Rows and tokenizer.
        run_dir: The run's folder.
        note_kept: Told of the models that ``keep_levels`` has kept so far.
        note_gradients: Told of how hard each loss term pulls on the encoder.
        note_minutes: Told of how long the steps will take.
        warn: Called with each warning for the record.
    """
    config, rows, wanted = checked.config, prepared.datamodule, checked.pruner.importance_pass
    starts_from_teacher = config.student_init == "teacher" or prepared.is_of_encodings
    needs_labels = wanted is not None and wanted.loss == "task"
    pruning = PruningCallback(
        checked.pruner,
        checked.plan,
        every_n_steps=checked.every_n_steps,
        may_go_on=True,
        adds_regularizer=False,
        warn=warn,
    )
    timer = StepTimer()
    return Callbacks(
        checkpoint=CheckpointCallback(
            run_dir / CHECKPOINTS,
            config_hash=checked.hash,
            **dataclasses.asdict(config.checkpoint),
        ),
        scores=ScoreCallback(
            pruning,
            plan=checked.plan,
            loaders=rows.limited_dataloaders,
            share=rows.limited_share,
            metric=prepared.task.monitored,
        ),
        importance=ImportanceCallback(
            pruning,
            loader=_importance_loader(rows, wanted),
            batch_size=config.batch_size,
            n_examples=rows.n_labelled if needs_labels else rows.n_train,
            warn=warn,
        ),
        snapshots=_snapshots(checked, prepared, run_dir),
        gradients=GradientShares(
            pruning,
            # Half of the way a student that starts from its teacher has something to learn from it.
            from_sparsity=config.sparsity / 2 if starts_from_teacher else 0.0,
            note=note_gradients,
            warn=warn,
        ),
        keep=_keep(checked, prepared, run_dir, pruning, note=note_kept, warn=warn),
        timer=timer,
        estimate=EstimateCallback(timer, note=note_minutes),
        pruning=pruning,
        agreement=MaskAgreement(pruning.moves),
        restart=RestartCallback(checked.plan),
    )


def _snapshots(checked: Ready, prepared: Prepared, run_dir: Path) -> list[SnapshotCallback]:
    """Take snapshots where a term learns from them."""
    config = checked.config
    snapshots = SnapshotCallback(
        checked.plan,
        n_snapshots=config.contrast.snapshot_count,
        loader=prepared.datamodule.encoding_dataloader,
        folder=run_dir / CHECKPOINTS / "snapshots",
        with_encodings=config.contrast.snapshots,
        with_logits=config.distill.snapshot_weight > 0,
    )
    return [snapshots] if snapshots.terms else []


def _keep(
    checked: Ready,
    prepared: Prepared,
    run_dir: Path,
    pruning: PruningCallback,
    *,
    note: Callable[[list[dict[str, Any]]], None],
    warn: Callable[[str], None],
) -> KeepCallback | None:
    """Keep the models of ``keep_levels``; the final level is the run's own model."""
    config = checked.config
    if config.keep_levels is None:
        return None
    meant = {level: held_level(level, checked.plan) for level in config.keep_levels}
    return KeepCallback(
        {asked: level for asked, level in meant.items() if level is not None and level < config.sparsity},
        pruning=pruning,
        folder=run_dir / LEVELS,
        save=prepared.save,
        kind=prepared.task.kind,
        loaders=prepared.datamodule.eval_dataloaders,
        metrics=prepared.metrics,
        note=note,
        warn=warn,
    )


def new_trainer(checked: Checked, run_dir: Path, callbacks: Callbacks, *, devices: int | list[int]) -> Trainer:
    """Make the trainer of a run; what ``logger=`` names begins only once the folder is this run's.

    Args:
        checked: The configuration.
        run_dir: The run's folder.
        callbacks: Of the run.
        devices: How many, or which.
    """
    options = dataclasses.asdict(checked.config.trainer)
    options.update(devices=devices, strategy=make_strategy(options["strategy"], n_processes=checked.n_processes))
    return build_trainer(options, run_dir=run_dir, callbacks=callbacks.in_order)


def _importance_loader(rows: CapDataModule, wanted: ImportancePass | None) -> Callable[[int], DataLoader]:
    """Say what makes a loader for an importance pass, told the optimizer step."""
    if wanted is not None and wanted.batch_rows is not None:
        return partial(rows.dataloader_in_turns, wanted.batch_rows)
    make = rows.labelled_dataloader if wanted is not None and wanted.loss == "task" else rows.train_dataloader
    return lambda step: make()


def _frozen(checked: Checked, prepared: Prepared) -> list[Part]:
    """Name what keeps its weights: what was asked for, and a pooler that nothing reads."""
    unread: list[Part] = ["pooler"] if prepared.is_of_encodings else []
    return [part for part in PARTS if part in [*(checked.config.freeze or []), *unread]]


def _distill_settings(checked: Checked, prepared: Prepared) -> Distill:
    distill = checked.config.distill
    return Distill(
        weight=distill.weight,
        ce_weight=distill.ce_weight,
        temperature=distill.temperature,
        hidden_weight=distill.hidden_weight,
        hidden="tokens" if distill.hidden == "tokens" else "pooled",
        snapshot_weight=distill.snapshot_weight,
        compares="encodings" if prepared.is_of_encodings else "logits",
    )


def _distill(checked: Checked, prepared: Prepared, teacher: Teacher | None, warn: Callable[[str], None]) -> Distill:
    distill = _distill_settings(checked, prepared)
    if teacher is not None:
        return distill
    # Of encodings that is a module which is only counted, see cap.training.planning.
    if prepared.is_of_encodings or distill.weight == 0:
        return dataclasses.replace(distill, hidden_weight=0.0)
    warn("There is no teacher to distil from: the labels weigh 1, as with distill=none.")
    return dataclasses.replace(distill, weight=0.0, ce_weight=1.0, hidden_weight=0.0)


def _contrast(checked: Checked, student: PooledModel, teacher: Teacher | None, *, n_examples: int) -> Contrast | None:
    contrast = checked.config.contrast
    unsupervised_weight, supervised_weight = contrast_weights(contrast)
    extras = contrast.extra_examples
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
        unsupervised_weight=unsupervised_weight,
        supervised_weight=supervised_weight,
        temperature=contrast.temperature,
        extra_examples=extras if isinstance(extras, int) else max(1, round(extras * n_examples)),
        reduction="anchors" if contrast.reduction == "anchors" else "pairs",
        anchor_dropout=student.head_dropout() if contrast.anchor_dropout else 0.0,
        seed=checked.config.seed,
        ignore_same_label=contrast.ignore_same_label,
    )


__all__ = ["Callbacks", "filled_memory", "new_callbacks", "new_module", "new_trainer", "optimisation_of"]
