"""The phases of ``python -m cap.train``: data, teacher, encode, fit, fold, evaluate, save, record, report."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from lightning.pytorch import Trainer, seed_everything

from cap.base.errors import RunError, StoppedError, out_of_memory_reason
from cap.base.files import atomic_folder, full_disk_reason
from cap.config.rules import HIGHEST_SEED
from cap.config.schema import TrainConfig
from cap.models.encoders import load_saved_model
from cap.models.pooled import PooledModel
from cap.runs.checkpoints import Checkpoint
from cap.runs.folder import MODEL
from cap.training.assembly import (
    Callbacks,
    filled_memory,
    new_callbacks,
    new_module,
    new_trainer,
)
from cap.training.distill import certainty
from cap.training.evaluation import evaluate
from cap.training.found import Attempt, Earlier, checkpoint_of, leave_done
from cap.training.module import CapModule
from cap.training.parallel.ranks import note_failure, ranks_of
from cap.training.parallel.shares import together
from cap.training.planning import planned_dynamics, require_possible
from cap.training.preparation import Prepared, prepare
from cap.training.ready import Ready, make_ready
from cap.training.record import RunRecord
from cap.training.resume.randomness import keeping_determinism
from cap.training.resume.stop import stop
from cap.training.teacher import chance_message, get_teacher
from cap.training.trainer import fit
from cap.training.trial import say_how_long

log = logging.getLogger(__name__)

_FOR_A_TEACHER = "Raise finetune.max_epochs or finetune.learning_rate, look at the labels, or give a teacher."


@dataclass(frozen=True)
class Ended:
    """Say what became of a run.

    Args:
        score: The pruned model's, on the task's first metric.
        how: ``completed`` from the start, ``resumed`` after an interrupted attempt, or ``skipped`` as another process
            has completed it meanwhile.
    """

    score: float
    how: Literal["completed", "resumed", "skipped"]


def run(ready: Ready, attempt: Attempt, earlier: Earlier, *, devices: int | list[int]) -> Ended:
    """Make the run, or go on with it.

    Args:
        ready: The configuration, with its pruning type.
        attempt: What this process is about to do.
        earlier: What lies there.
        devices: How many, or which.

    Raises:
        InputError: If something given cannot work.
        StoppedError: If the process was asked to stop.
        RunError: If the run had to stop.
    """
    with stop.listening():
        record = RunRecord(
            attempt.checked,
            attempt.run_dir,
            command=attempt.command,
            is_first=attempt.is_first,
            replaces=earlier.is_replaced,
        )
        return _train(ready, attempt, record, devices=devices)


def say_what_it_would_do(ready: Ready, *, is_first: bool) -> Prepared:
    """Stop before anything is trained for good, or written but the tokenised rows.

    Args:
        ready: The configuration, with its pruning type.
        is_first: Whether this process speaks for the run; no other one keeps a device busy.

    Returns:
        What the run would start from.
    """
    prepared = prepare(ready)
    n_steps = require_possible(ready, prepared)
    dynamics, max_steps = planned_dynamics(ready, prepared, n_steps), ready.config.trainer.max_steps
    dynamics.say(ready.plan, max_steps=max_steps, prunes=not ready.pruner.keeps_zeros)
    _say_doubt(ready, n_steps, log.warning)
    if is_first:
        say_how_long(ready, prepared, n_steps)
    return prepared


def _say_doubt(ready: Ready, n_steps: int, warn: Callable[[str], None]) -> None:
    doubt = ready.pruner.doubt(ready.plan.jumps(n_steps)[-1])
    if doubt is not None:
        warn(doubt)


def _train(ready: Ready, attempt: Attempt, record: RunRecord, *, devices: int | list[int]) -> Ended:
    """Run the phases."""
    with record.seconds.phase("data"):
        prepared = prepare(ready)
    n_steps = require_possible(ready, prepared, devices=devices)
    callbacks = new_callbacks(
        ready,
        prepared,
        record.run_dir,
        note_kept=record.note_kept,
        note_gradients=record.note_gradients,
        note_minutes=record.note_minutes,
        warn=record.warn,
    )
    trainer = new_trainer(ready, record.run_dir, callbacks, devices=devices)
    trainer.strategy.setup_environment()
    find = partial(checkpoint_of, attempt, device=trainer.strategy.root_device.type)
    begin = partial(record.begin, prepared, find=find, goes_on=attempt.goes_on)
    begun = together(ranks_of(trainer), begin, what="taking the run's folder")[0]
    if begun.completed is not None:
        return Ended(leave_done(attempt, begun.completed), "skipped")
    try:
        trainer.loggers = [*trainer.loggers, *record.start_loggers()]
        record.note_dynamics(planned_dynamics(ready, prepared, n_steps), prunes=not ready.pruner.keeps_zeros)
        _say_doubt(ready, n_steps, record.warn)
        module = _fit(ready, prepared, record, trainer, begun.checkpoint)
        _note_fit(record, callbacks, trainer)
        score = _finish(module, prepared, record, trainer)
    except BaseException as error:
        record.fail(error)
        if not isinstance(error, StoppedError):  # that all processes agree on
            note_failure(error)
        reason = full_disk_reason(error)
        if reason is not None:
            raise RunError(
                f"{reason}; what the run had written before is as it was. Make room, then repeat the command with "
                f"resume=true"
            ) from error
        reason = out_of_memory_reason(error)
        if reason is not None:
            raise RunError(
                f"{reason}; lower batch_size and raise trainer.accumulate_grad_batches, which begins another run, or "
                f"make room on the device and repeat the command with resume=true"
            ) from error
        raise
    return Ended(score, "completed" if begun.checkpoint is None else "resumed")


def _fit(
    ready: Ready,
    prepared: Prepared,
    record: RunRecord,
    trainer: Trainer,
    checkpoint: Checkpoint | None,
) -> CapModule:
    """Get the teacher, fill the memory and train the student; its masks are still on."""
    with record.seconds.phase("teacher"):
        teacher = get_teacher(ready, prepared, trainer)
    if teacher is not None:
        record.note_teacher(teacher)
        if teacher.is_at_chance:
            record.warnings.append(
                f"The teacher stayed at chance level: {chance_message(teacher.scores, prepared)}. "
                f"{'' if prepared.is_of_encodings else _FOR_A_TEACHER}".strip()
            )
    with record.seconds.phase("encode"):
        memory, keys = filled_memory(ready, prepared, teacher, trainer)
    if memory.has_teacher_logits and prepared.task.kind == "classes":
        found = partial(certainty, memory, prepared.datamodule.n_train)
        plain, softened = found(temperature=1.0), found(temperature=ready.config.distill.temperature)
        log.info("the teacher is %.3f sure of its answers to training rows, softened %.3f", plain, softened)
        record.note_certainty(plain, softened)
    record.write_interim()
    module = new_module(ready, prepared, teacher, memory, frozen_keys=keys, warn=record.warn)
    rank = trainer.global_rank
    if rank > 0:
        # Heads and scores are drawn alike on every process; what is dropped out must differ.
        seed_everything((ready.config.seed + 1_000_003 * rank) % (HIGHEST_SEED + 1), verbose=False)
    with record.seconds.phase("fit"):
        fit(trainer, module, prepared.datamodule, checkpoint)
    return module


def _note_fit(record: RunRecord, callbacks: Callbacks, trainer: Trainer) -> None:
    """Write down what training was, and which snapshots it missed."""
    record.note_training(
        levels=callbacks.scores.levels,
        kept=callbacks.keep.kept if callbacks.keep is not None else None,
        steps=trainer.global_step,
        seconds_per_step=callbacks.timer.median(),
        seconds_before=callbacks.checkpoint.seconds,
        seconds_within={
            "importance": callbacks.importance.seconds,
            "gradients": callbacks.gradients.seconds,
            "snapshots": sum(callback.seconds for callback in callbacks.snapshots),
        },
    )
    record.warnings += [
        f"No snapshot was taken: left out is {callback.terms}."
        for callback in callbacks.snapshots
        if not callback.n_taken
    ]


def _constant(config: TrainConfig, *, keeps_zeros: bool) -> str:
    """Say of a model that gives one answer to everything what may help that is not in force."""
    ways = ["more steps (trainer.max_epochs)", "a model that is less sparse" if keeps_zeros else "a lower sparsity"]
    ways += [] if config.student_init == "teacher" or keeps_zeros else ["student_init=teacher"]
    ways += ["pruning.score_init=magnitude"] if config.pruning.get("score_init") == "zero" else []
    return f"The pruned model gives one and the same answer to every row. Give it {', '.join(ways[:-1])} or {ways[-1]}."


def _finish(module: CapModule, prepared: Prepared, record: RunRecord, trainer: Trainer) -> float:
    """Fold the masks, save, score what was saved, and write record and report.

    Returns:
        The score of the saved model on the task's first metric.
    """
    ranks = ranks_of(trainer)
    pruner = module.pruner
    if pruner is not None:
        pruner.fold()
    model = module.student.model.cpu().float()  # a run in 64 bits leaves no larger a file, and is scored as it is saved
    if ranks.is_first:
        with atomic_folder(record.run_dir / MODEL) as folder:
            prepared.save(model, folder)
    ranks.barrier()
    saved = load_saved_model(record.run_dir / MODEL, prepared.task.kind)
    with record.seconds.phase("evaluate"):
        pruned, is_constant = evaluate(
            PooledModel(saved, prepared.pooling),
            prepared.datamodule.eval_dataloaders(ranks.rank, ranks.size),
            prepared.metrics(),
            device=trainer.strategy.root_device,
            description="pruned model's score",
            ranks=ranks,
        )
    if is_constant:
        record.warn(_constant(record.checked.config, keeps_zeros=pruner is not None and pruner.keeps_zeros))
    return record.complete(prepared, saved.cpu(), pruned)


__all__ = ["Ended", "Ready", "keeping_determinism", "make_ready", "run", "say_what_it_would_do"]
