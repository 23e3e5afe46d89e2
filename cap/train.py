"""``python -m cap.train``: prune a pre-trained encoder while it learns by contrast, and write down what it cost."""

from __future__ import annotations

import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig
from rich.console import Console

from cap.base.errors import InputError, RunError
from cap.base.files import atomic_folder, full_disk_reason, read_json
from cap.config.rules import HIGHEST_SEED
from cap.config.schema import Checked, check
from cap.launch import grid
from cap.launch.cli import door, quoted, typed_command, typed_line
from cap.launch.devices import leased_devices
from cap.launch.processes import check_processes, end_with_parent, is_first_process, is_one_of_many, run_processes
from cap.models.encoders import load_saved_model, save_model
from cap.models.pooled import PooledModel
from cap.runs.checkpoints import Checkpoint, newest_checkpoint
from cap.runs.folder import CHECKPOINTS, MODEL, RunFolder, settle_replacement
from cap.runs.page import summary_table
from cap.training.assembly import (
    Callbacks,
    filled_memory,
    new_callbacks,
    new_module,
    new_trainer,
    planned_dynamics,
    require_possible,
)
from cap.training.evaluation import evaluate
from cap.training.inputs import changes_since
from cap.training.module import CapModule
from cap.training.parallel.ranks import Ranks, join
from cap.training.parallel.shares import together
from cap.training.preparation import Prepared, prepare
from cap.training.record import RunRecord
from cap.training.resume.randomness import keeping_determinism
from cap.training.resume.stop import stop
from cap.training.teacher import chance_message, get_teacher
from cap.training.trainer import add_callbacks, fit

log = logging.getLogger("cap.train")  # as a command, __name__ is __main__


def train(cfg: DictConfig) -> float | None:
    """Run the main job, go on with it, or find it done.

    Args:
        cfg: The composed configuration.

    Returns:
        The pruned model's score on the task's first metric; None of a dry run.

    Raises:
        InputError: If something given cannot work.
        StoppedError: If the process was asked to stop.
        RunError: If the run had to stop.
    """
    # Not as a decorator: launchers send this function to other processes, and a context manager cannot go along.
    with keeping_determinism():
        return _train_or_find(cfg)


def _train_or_find(cfg: DictConfig) -> float | None:
    end_with_parent()
    checked = check(cfg)
    check_processes(checked.n_processes, checked.config.trainer.num_nodes)
    # Runs of one process each may share a launcher; then every one of them is a first process.
    is_first = checked.n_processes == 1 or is_first_process()
    logging.getLogger("cap").setLevel(logging.INFO if is_first else logging.ERROR)
    if checked.config.dry_run:
        _say_what_it_would_do(checked)
        return None
    run_dir = run_folder(checked)
    goes_on = _goes_on(checked)
    is_started_here = checked.n_processes > 1 and not is_one_of_many()
    is_settled = not is_one_of_many() and settle_replacement(run_dir, checked.hash) and goes_on
    found = RunFolder.read(run_dir, checked.hash)
    found.require_free()
    earlier, replaces = found.record, found.state == "complete"
    if earlier is not None and replaces and (is_settled or not checked.config.overwrite):
        found.require_going_on(goes_on=goes_on)
        return _found_done(checked, earlier, run_dir, is_first=is_first)
    grid.note(folder=run_dir)
    with leased_devices(checked, is_grid=is_multirun() and (checked.n_processes == 1 or is_started_here)) as devices:
        if is_started_here:
            own = [f"output_dir={quoted(str(run_dir))}", f"resume={str(goes_on).lower()}"]
            run_processes(checked.config.trainer.devices, [*typed_command(), *own], visible_devices=devices.names)
            record = read_json(run_dir / "record.json")
            if record.get("resumed_at") != (earlier or {}).get("resumed_at"):
                grid.note(outcome="resumed")
            return _score_of(record)
        with stop.listening():
            record = RunRecord(checked, run_dir, command=typed_line("train"), is_first=is_first, replaces=replaces)
            return _train(checked, record, goes_on=goes_on, devices=devices.places)


def _say_what_it_would_do(checked: Checked) -> None:
    """Stop before anything is trained or written but the tokenised rows."""
    prepared = prepare(checked)
    planned_dynamics(checked, prepared, require_possible(checked, prepared)).say(checked.config.sparsity)


def _train(checked: Checked, record: RunRecord, *, goes_on: bool, devices: int | list[int]) -> float:
    """Run the phases: data, teacher, encode, fit, fold, evaluate, save, record, report."""
    with record.phase("data"):
        prepared = prepare(checked)
    n_steps = require_possible(checked, prepared)
    trainer = new_trainer(checked, record.run_dir, devices=devices)
    trainer.strategy.setup_environment()
    ranks = join(trainer)
    begin = partial(record.begin, prepared, find=partial(_checkpoint, checked, goes_on=goes_on), goes_on=goes_on)
    begun = together(ranks, begin, what="taking the run's folder")[0]
    if begun.completed is not None:
        return _found_done(checked, begun.completed, record.run_dir, is_first=record.is_first)
    if begun.checkpoint is not None:
        grid.note(outcome="resumed")
    try:
        trainer.loggers = [*trainer.loggers, *record.start_loggers()]
        record.note_dynamics(planned_dynamics(checked, prepared, n_steps))
        module = _fit(checked, prepared, record, trainer, ranks, begun.checkpoint)
        return _finish(module, prepared, record, trainer.strategy.root_device, ranks)
    except BaseException as error:
        record.fail(error)
        reason = full_disk_reason(error)
        if reason is not None:
            raise RunError(
                f"{reason}; what the run had written before is as it was. Make room, then repeat the command with "
                f"resume=true"
            ) from error
        raise


def _fit(
    checked: Checked,
    prepared: Prepared,
    record: RunRecord,
    trainer: Trainer,
    ranks: Ranks,
    checkpoint: Checkpoint | None,
) -> CapModule:
    """Get the teacher, fill the memory and train the student; its masks are still on."""
    with record.phase("teacher"):
        teacher = get_teacher(checked, prepared, device=trainer.strategy.root_device, ranks=ranks)
    if teacher is not None:
        record.note_teacher(teacher)
        if teacher.is_at_chance:
            record.warnings.append(f"The teacher stayed at chance level: {chance_message(teacher.scores, prepared)}.")
    with record.phase("encode"):
        memory, frozen = filled_memory(checked, prepared, teacher, trainer, ranks)
    module = new_module(checked, prepared, teacher, memory, ranks, warn=record.warn)
    if ranks.rank > 0:
        # Heads and scores are drawn alike on every process; what is dropped out must differ.
        seed_everything((checked.config.seed + 1_000_003 * ranks.rank) % (HIGHEST_SEED + 1), verbose=False)
    callbacks = new_callbacks(
        checked,
        prepared,
        record.run_dir,
        ranks,
        frozen=frozen,
        note_kept=record.note_kept,
        note_gradients=record.note_gradients,
        warn=record.warn,
    )
    add_callbacks(trainer, callbacks.in_order)
    with record.phase("fit"):
        fit(trainer, module, prepared.datamodule, checkpoint, ranks=ranks)
    _note_fit(record, callbacks, trainer)
    record.warnings += [
        f"No snapshot was taken: left out is {callback.terms}."
        for callback in callbacks.snapshots
        if not callback.n_taken
    ]
    return module


def _note_fit(record: RunRecord, callbacks: Callbacks, trainer: Trainer) -> None:
    record.note_training(
        levels=callbacks.scores.levels,
        kept=callbacks.keep.kept if callbacks.keep is not None else None,
        steps=trainer.global_step,
        seconds_per_step=callbacks.timer.median(),
        minutes_estimated=callbacks.estimate.minutes,
        seconds_before=callbacks.checkpoint.seconds,
        seconds_within={
            "importance": callbacks.importance.seconds,
            "gradients": callbacks.gradients.seconds,
            "snapshots": sum(callback.seconds for callback in callbacks.snapshots),
        },
    )


def _finish(module: CapModule, prepared: Prepared, record: RunRecord, device: torch.device, ranks: Ranks) -> float:
    """Fold the masks, save, score what was saved, and write record and report.

    Returns:
        The score of the saved model on the task's first metric.
    """
    if module.pruner is not None:
        module.pruner.fold()
    model = module.student.model.cpu()
    if ranks.is_first:
        with atomic_folder(record.run_dir / MODEL) as folder:
            save_model(model, prepared.tokenizer, folder)
    ranks.barrier()
    saved = load_saved_model(record.run_dir / MODEL, prepared.task.kind)
    with record.phase("evaluate"):
        pruned, is_constant = evaluate(
            PooledModel(saved, prepared.pooling),
            prepared.datamodule.eval_dataloaders(ranks.rank, ranks.size),
            prepared.metrics(),
            device=device,
            description="pruned model's score",
            ranks=ranks,
        )
    if is_constant:
        record.warn(
            "The pruned model gives one and the same answer to every row. Give it more steps (trainer.max_epochs), "
            "a lower sparsity or student_init=teacher; learned scores that start at 0 need a very slow rise of "
            "sparsity."
        )
    return record.complete(prepared, saved.cpu(), pruned)


def _checkpoint(checked: Checked, found: RunFolder, *, goes_on: bool) -> Checkpoint | None:
    """Find where to go on; refuse to overwrite what nobody asked to overwrite."""
    if found.state != "interrupted":
        return None
    folder = found.path / CHECKPOINTS
    newest = newest_checkpoint(folder, config_hash=checked.hash)
    if newest is None or goes_on:
        return newest
    if checked.config.overwrite:
        return None
    raise InputError(
        f"output_dir must not hold an interrupted run, but {found.path} does, with a checkpoint of step {newest.step}; "
        f"continue it with resume=true, or remove {folder} or set overwrite=true to start anew"
    )


def _found_done(checked: Checked, record: dict[str, Any], run_dir: Path, *, is_first: bool) -> float:
    """Leave a finished run as it is; refuse to call it that of rows or weights which have changed since."""
    changes = changes_since(checked.config, record)
    if changes:
        raise InputError(
            f"a finished run is found for the rows and weights that it read, but since the one in {run_dir} there have "
            f"changed: {'; '.join(changes)}; give another output_dir, or replace the run with overwrite=true"
        )
    if is_first:
        shutil.rmtree(run_dir / CHECKPOINTS, ignore_errors=True)
        RunRecord(checked, run_dir, command=typed_line("train")).repeat(record)
    log.info("%s: this run is complete; nothing to do", run_dir)
    grid.note(folder=run_dir, outcome="skipped")
    if is_first and not is_multirun():
        Console().print(summary_table(record, str(run_dir)))
    return _score_of(record)


def _score_of(record: dict[str, Any]) -> float:
    return float(record["scores"]["pruned"][record["metric"]])


def _goes_on(checked: Checked) -> bool:
    skip = checked.config.skip_completed
    return checked.config.resume or (is_multirun() if skip is None else skip)


def is_multirun() -> bool:
    """Say whether this job is one of ``python -m cap.train -m``."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_folder(checked: Checked) -> Path:
    """Name the run's folder: ``output_dir``, or below ``outputs`` one that belongs to this configuration."""
    config = checked.config
    if config.output_dir is not None:
        return Path(config.output_dir)
    root = Path("outputs")
    if is_multirun():
        sweep = HydraConfig.get().sweep
        if sweep.subdir != ".":
            return Path(sweep.dir) / sweep.subdir
        root = Path(sweep.dir)
    return root / config.task.name / f"{checked.pruning_name}-{config.sparsity:g}" / checked.hash


main = door(train)

if __name__ == "__main__":
    main()
