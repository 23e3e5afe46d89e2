"""``python -m cap.train``: prune a pre-trained encoder while it learns by contrast, and write down what it cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Callback
from omegaconf import DictConfig

from cap.cli import door
from cap.config import Checked, check
from cap.errors import InputError
from cap.models.encoders import PooledModel, load_saved_model, save_model
from cap.models.families import prunable
from cap.preparation import Prepared, chance_message, get_teacher, prepare
from cap.results.folder import CHECKPOINTS, MODEL, require_free
from cap.storage import atomic_folder
from cap.train_parts import filled_memory, new_module
from cap.train_record import RunRecord
from cap.training.callbacks import (
    ImportanceCallback,
    PruningCallback,
    RestartCallback,
    ScoreCallback,
    SnapshotCallback,
    StepTimer,
)
from cap.training.checkpoint import CheckpointCallback
from cap.training.evaluation import evaluate
from cap.training.module import CapModule
from cap.training.run import build_trainer


def train(cfg: DictConfig) -> float:
    """Run the main job: compose, check, data, teacher, encode, fit, fold, evaluate, save, record, report.

    Args:
        cfg: The composed configuration.

    Returns:
        The pruned model's score on the task's first metric.

    Raises:
        InputError: If something given cannot work.
        RunError: If the run had to stop.
    """
    checked = check(cfg)
    run_dir = run_folder(checked)
    require_free(run_dir, checked.hash)
    record = RunRecord(checked, run_dir)
    with record.phase("data"):
        prepared = prepare(checked)
    try:
        checked.pruner.check(prunable(prepared.pretrained.model))
    except ValueError as error:  # a target that this model cannot meet
        raise InputError(str(error)) from error
    record.begin(prepared)
    try:
        record.start_loggers()
        module, device = _fit(checked, prepared, record)
        return _finish(module, prepared, record, device)
    except BaseException as error:
        record.fail(error)
        raise


def _fit(checked: Checked, prepared: Prepared, record: RunRecord) -> tuple[CapModule, torch.device]:
    """Get the teacher, fill the memory and train the student.

    Returns:
        The trained module, its masks still on; the device.
    """
    config, run_dir = checked.config, record.run_dir
    pruning = PruningCallback(checked.plan, every_n_steps=checked.every_n_steps, warn=record.warn)
    scores = ScoreCallback(
        pruning,
        plan=checked.plan,
        loaders=prepared.datamodule.eval_dataloaders,
        metric=prepared.task.monitored,
    )
    timer = StepTimer()
    snapshots = _snapshots(checked, prepared, run_dir)
    checkpoint = CheckpointCallback(run_dir / CHECKPOINTS, **dataclasses.asdict(config.checkpoint))
    importance = ImportanceCallback(
        pruning,
        loader=prepared.datamodule.train_dataloader,
        batch_size=config.batch_size,
        n_examples=prepared.datamodule.n_train,
        warn=record.warn,
    )
    restart = RestartCallback(checked.plan)
    callbacks: list[Callback] = [scores, importance, *snapshots, timer, pruning, restart, checkpoint]
    trainer = build_trainer(
        dataclasses.asdict(config.trainer), run_dir=run_dir, callbacks=callbacks, loggers=record.loggers
    )
    device = trainer.strategy.root_device
    with record.phase("teacher"):
        teacher = get_teacher(checked, prepared, device=device)
    if teacher is not None:
        record.content["scores"]["teacher"] = teacher.scores
        record.content["teacher"] = {"name": teacher.label, "was_cached": teacher.was_cached}
        if teacher.is_at_chance:
            record.warnings.append(f"The teacher stayed at chance level: {chance_message(teacher.scores, prepared)}.")
    with record.phase("encode"):
        memory = filled_memory(checked, prepared, teacher, trainer)
    module = new_module(checked, prepared, teacher, memory, warn=record.warn)
    with record.phase("fit"):
        trainer.fit(module, datamodule=prepared.datamodule)
    within_fit = {"importance": importance.seconds, "snapshots": sum(callback.seconds for callback in snapshots)}
    for name, seconds in within_fit.items():
        if seconds:
            record.seconds[name] = seconds
            record.seconds["fit"] -= seconds  # so that the phases add up
    if snapshots and memory.n_encodings("snapshots") == 0:
        record.warnings.append("No snapshot was taken: loss/snc is left out.")
    record.content["levels"] = scores.levels
    record.content["steps"] = trainer.global_step
    record.content["seconds_per_step"] = timer.median()
    return module, device


def _finish(module: CapModule, prepared: Prepared, record: RunRecord, device: torch.device) -> float:
    """Fold the masks, save, score what was saved, and write record and report.

    Returns:
        The score of the saved model on the task's first metric.
    """
    if module.pruner is not None:
        module.pruner.fold()
    model = module.student.model.cpu()
    with atomic_folder(record.run_dir / MODEL) as folder:
        save_model(model, prepared.tokenizer, folder)
    saved = load_saved_model(record.run_dir / MODEL, prepared.task.kind)
    with record.phase("evaluate"):
        pruned, is_constant = evaluate(
            PooledModel(saved, prepared.pooling),
            prepared.datamodule.eval_dataloaders(),
            prepared.metrics(),
            device=device,
            description="pruned model's score",
        )
    if is_constant:
        record.warn(
            "The pruned model gives one and the same answer to every row. Give it more steps (trainer.max_epochs), "
            "a lower sparsity or student_init=teacher; learned scores that start at 0 need a very slow rise of "
            "sparsity."
        )
    return record.complete(prepared, saved.cpu(), pruned)


def _snapshots(checked: Checked, prepared: Prepared, run_dir: Path) -> list[SnapshotCallback]:
    contrast = checked.config.contrast
    if not contrast.snapshots:
        return []
    return [
        SnapshotCallback(
            checked.plan,
            n_snapshots=contrast.snapshot_count,
            loader=prepared.datamodule.encoding_dataloader,
            folder=run_dir / CHECKPOINTS / "snapshots",
        )
    ]


def run_folder(checked: Checked) -> Path:
    """Name the run's folder."""
    config = checked.config
    if config.output_dir is not None:
        return Path(config.output_dir)
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        return Path(HydraConfig.get().runtime.output_dir)
    return Path("outputs") / config.task.name / f"{checked.pruning_name}-{config.sparsity:g}" / checked.hash


main = door(train)

if __name__ == "__main__":
    main()
