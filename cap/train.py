"""``python -m cap.train``: prune a pre-trained encoder while it learns by contrast, and write down what it cost."""

from __future__ import annotations

import dataclasses
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from cap.cli import door, typed_overrides
from cap.config import Checked, check
from cap.errors import InputError
from cap.models.encoders import AUTO_CLASS, PooledModel, load_saved_model, save_model
from cap.models.families import prunable, prunable_linears
from cap.objectives.memory import Memory, Source
from cap.preparation import Prepared, Teacher, chance_message, data_terms, get_teacher, prepare
from cap.pruning.masks import count_pruned_units, count_zeros, sparsity_fractions
from cap.results.card import write_card
from cap.results.folder import CHECKPOINTS, MODEL, claim, hold, require_free
from cap.results.record import environment, peak_memory_gb, retention, write_record
from cap.results.report import summary_table, write_report
from cap.storage import atomic_folder
from cap.training.callbacks import (
    ImportanceCallback,
    PruningCallback,
    RestartCallback,
    ScoreCallback,
    SnapshotCallback,
    StepTimer,
)
from cap.training.checkpoint import CheckpointCallback
from cap.training.encode import computation_of, frozen_outputs
from cap.training.evaluation import evaluate
from cap.training.module import CapModule, Contrast, Distill, Optimisation
from cap.training.run import build_trainer

log = logging.getLogger("cap.train")  # as a command, __name__ is __main__


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
    run = Run(checked, run_dir)
    with run.phase("data"):
        prepared = prepare(checked)
    try:
        checked.pruner.check(prunable(prepared.pretrained.model))
    except ValueError as error:  # a target that this model cannot meet
        raise InputError(str(error)) from error
    run.begin(prepared)
    try:
        run.start_loggers()
        return run.finish(*run.fit(prepared))
    except BaseException as error:
        run.fail(error)
        raise


class Run:
    """Carry a run from one phase to the next, and keep its record.

    Args:
        checked: The configuration.
        run_dir: The run's folder.
    """

    def __init__(self, checked: Checked, run_dir: Path) -> None:
        self.checked = checked
        self.run_dir = run_dir
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.warnings: list[str] = []
        self.loggers: list[Logger] = []
        self.record: dict[str, Any] = {
            "status": "interrupted",
            "error": None,
            "command": shlex.join(["python", "-m", "cap.train", *typed_overrides()]),
            "config": checked.resolved,
            "config_hash": checked.hash,
            "environment": environment(),
            "seed": checked.config.seed,
        }

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started

    def begin(self, prepared: Prepared) -> None:
        """Claim the folder; from here on it holds a record that does not look complete."""
        self._lock = hold(self.run_dir)
        self.record["metric"] = prepared.task.monitored
        self.record["data"] = {
            "source": prepared.rows.source,
            "fingerprint": prepared.rows.fingerprint,
            "n_rows": prepared.n_rows(),
        }
        self.record["model"] = prepared.source.label
        self.record["scores"] = {"majority": prepared.majority, "teacher": None, "pruned": None}
        claim(self.run_dir, self.record, OmegaConf.to_yaml(OmegaConf.create(self.checked.resolved)))

    def start_loggers(self) -> None:
        """Write the log into the folder, too, and start what ``logger=`` chose."""
        self._log_file = logging.FileHandler(self.run_dir / "train.log", encoding="utf-8")
        self._log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger("cap").addHandler(self._log_file)
        node = self.checked.config.logger
        if node:
            self.loggers.append(instantiate(node, save_dir=str(self.run_dir)))
            self.loggers[0].log_hyperparams(self.checked.resolved)

    def warn(self, message: str) -> None:
        """Say something that a reader of the result must know, in the log and in the record."""
        log.warning(message)
        self.warnings.append(message)

    def fit(self, prepared: Prepared) -> tuple[CapModule, Prepared, torch.device]:
        """Get the teacher, fill the memory and train the student.

        Returns:
            The trained module, its masks still on; what it started from; the device.
        """
        config = self.checked.config
        pruning = PruningCallback(self.checked.plan, every_n_steps=self.checked.every_n_steps, warn=self.warn)
        scores = ScoreCallback(
            pruning,
            plan=self.checked.plan,
            loaders=prepared.datamodule.eval_dataloaders,
            metric=prepared.task.monitored,
        )
        timer = StepTimer()
        snapshots = self._snapshots(prepared)
        checkpoint = CheckpointCallback(self.run_dir / CHECKPOINTS, **dataclasses.asdict(config.checkpoint))
        importance = ImportanceCallback(
            pruning,
            loader=prepared.datamodule.train_dataloader,
            batch_size=config.batch_size,
            n_examples=prepared.datamodule.n_train,
            warn=self.warn,
        )
        restart = RestartCallback(self.checked.plan)
        callbacks: list[Callback] = [scores, importance, *snapshots, timer, pruning, restart, checkpoint]
        trainer = build_trainer(
            dataclasses.asdict(config.trainer), run_dir=self.run_dir, callbacks=callbacks, loggers=self.loggers
        )
        device = trainer.strategy.root_device
        with self.phase("teacher"):
            teacher = get_teacher(self.checked, prepared, device=device)
        if teacher is not None:
            self.record["scores"]["teacher"] = teacher.scores
            self.record["teacher"] = {"name": teacher.label, "was_cached": teacher.was_cached}
            if teacher.is_at_chance:
                self.warnings.append(f"The teacher stayed at chance level: {chance_message(teacher.scores, prepared)}.")
        with self.phase("encode"):
            memory = self._fill_memory(prepared, teacher, trainer)
        module = self._module(prepared, teacher, memory)
        with self.phase("fit"):
            trainer.fit(module, datamodule=prepared.datamodule)
        within_fit = {"importance": importance.seconds, "snapshots": sum(callback.seconds for callback in snapshots)}
        for name, seconds in within_fit.items():
            if seconds:
                self.seconds[name] = seconds
                self.seconds["fit"] -= seconds  # so that the phases add up
        if snapshots and memory.n_encodings("snapshots") == 0:
            self.warnings.append("No snapshot was taken: loss/snc is left out.")
        self.record["levels"] = scores.levels
        self.record["steps"] = trainer.global_step
        self.record["seconds_per_step"] = timer.median()
        return module, prepared, device

    def finish(self, module: CapModule, prepared: Prepared, device: torch.device) -> float:
        """Fold the masks, save, score what was saved, and write record and report.

        Returns:
            The score of the saved model on the task's first metric.
        """
        if module.pruner is not None:
            module.pruner.fold()
        model = module.student.model.cpu()
        with atomic_folder(self.run_dir / MODEL) as folder:
            save_model(model, prepared.tokenizer, folder)
        saved = load_saved_model(self.run_dir / MODEL, prepared.task.kind)
        with self.phase("evaluate"):
            pruned, is_constant = evaluate(
                PooledModel(saved, prepared.pooling),
                prepared.datamodule.eval_dataloaders(),
                prepared.metrics(),
                device=device,
                description="pruned model's score",
            )
        if is_constant:
            self.warn(
                "The pruned model gives one and the same answer to every row. Give it more steps (trainer.max_epochs), "
                "a lower sparsity or student_init=teacher; learned scores that start at 0 need a very slow rise of "
                "sparsity."
            )
        return self._complete(prepared, saved.cpu(), pruned)

    def fail(self, error: BaseException) -> None:
        """Write down why the run ended early; whatever happens, its folder does not look complete."""
        status = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
        message = "stopped from outside" if status == "interrupted" else f"{type(error).__name__}: {error}".strip(": ")
        log.error("%s: %s", status, message)
        try:
            write_record(self.run_dir, {**self.record, "status": status, "error": message, "warnings": self.warnings})
        except (OSError, ValueError):
            log.exception("the record of the failed run could not be written")
        self._close_loggers(succeeded=False)

    def _complete(self, prepared: Prepared, saved: Any, pruned: dict[str, float]) -> float:
        metric = prepared.task.monitored
        scores = self.record["scores"]
        scores["pruned"] = pruned
        teacher_score = scores["teacher"][metric] if scores["teacher"] else None
        majority = scores["majority"][metric] if prepared.task.kind == "classes" else None
        self.record.update(retention(pruned[metric], teacher_score, majority))
        self.record["sparsity"] = {"asked": self.checked.config.sparsity, **sparsity_fractions(saved)}
        self._note_final_level(pruned)
        self.record["matrices"] = {name: list(count) for name, count in count_zeros(prunable_linears(saved)).items()}
        self.record["units"] = count_pruned_units(saved)
        self.seconds["total"] = time.perf_counter() - self.started
        self.record["seconds"] = {name: round(value, 3) for name, value in self.seconds.items()}
        self.record["peak_memory_gb"] = peak_memory_gb()
        self.record["warnings"] = self.warnings
        self.record["status"] = "completed"
        for logger in self.loggers:
            final = {f"final/{name}": value for name, value in pruned.items()}
            logger.log_metrics({**final, "final/sparsity": self.record["sparsity"]["prunable"]}, self.record["steps"])
        # The record comes last: it alone says that a run is complete.
        write_card(
            self.run_dir / MODEL,
            self.record,
            auto_class=AUTO_CLASS[prepared.task.kind],
            terms=data_terms(prepared.task, self.checked.config.data_dir),
        )
        write_report(self.run_dir, self.record)
        write_record(self.run_dir, self.record)
        self._close_loggers(succeeded=True)
        shutil.rmtree(self.run_dir / CHECKPOINTS, ignore_errors=True)
        Console().print(summary_table(self.record, str(self.run_dir)))
        return pruned[metric]

    def _note_final_level(self, pruned: dict[str, float]) -> None:
        """Add the end of the run to the levels, unless a validation fell on the last step."""
        levels, step = self.record["levels"], self.record["steps"]
        if not levels or levels[-1]["step"] != step:
            asked, reached = self.checked.config.sparsity, self.record["sparsity"]["prunable"]
            levels.append({"step": step, "target": asked, "sparsity": reached, "scores": pruned})

    def _close_loggers(self, *, succeeded: bool) -> None:
        for logger in self.loggers:
            logger.finalize("success" if succeeded else "failed")
        wandb = sys.modules.get("wandb")
        if wandb is not None and wandb.run is not None:
            # Otherwise the next job of a multirun would write into this one's W&B run.
            wandb.finish(exit_code=0 if succeeded else 1)
        if hasattr(self, "_log_file"):
            logging.getLogger("cap").removeHandler(self._log_file)
            self._log_file.close()
        self._lock.release()

    def _snapshots(self, prepared: Prepared) -> list[SnapshotCallback]:
        contrast = self.checked.config.contrast
        if not contrast.snapshots:
            return []
        return [
            SnapshotCallback(
                self.checked.plan,
                n_snapshots=contrast.snapshot_count,
                loader=prepared.datamodule.encoding_dataloader,
                folder=self.run_dir / CHECKPOINTS / "snapshots",
            )
        ]

    def _fill_memory(self, prepared: Prepared, teacher: Teacher | None, trainer: Trainer) -> Memory:
        config = self.checked.config
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

    def _module(self, prepared: Prepared, teacher: Teacher | None, memory: Memory) -> CapModule:
        config = self.checked.config
        student = prepared.new_student(config.seed)
        if config.student_init == "teacher" and teacher is not None:
            student.load_state_dict(teacher.model.state_dict())
        pruner = self.checked.pruner
        pruner.attach(prunable(student.model), seed=config.seed)
        frozen = {"pretrained": prepared.pretrained}
        if teacher is not None:
            frozen["teacher"] = teacher.model
        return CapModule(
            student,
            distill=self._distill(teacher),
            optimisation=Optimisation(
                learning_rate=config.learning_rate,
                weight_decay=config.weight_decay,
                warmup=self.checked.plan.warmup,
                restarts=self.checked.plan.restarts,
            ),
            metrics=prepared.metrics(),
            contrast=self._contrast(student, teacher),
            memory=memory,
            train_labels=prepared.datamodule.train_labels,
            train_groups=prepared.datamodule.train_groups,
            pruner=pruner,
            frozen=frozen,
        )

    def _distill(self, teacher: Teacher | None) -> Distill:
        distill = self.checked.config.distill
        if teacher is None and distill.weight > 0:
            self.warn("There is no teacher to distil from: the labels weigh 1, as with distill=none.")
            return Distill(weight=0.0, ce_weight=1.0, temperature=distill.temperature)
        return Distill(weight=distill.weight, ce_weight=distill.ce_weight, temperature=distill.temperature)

    def _contrast(self, student: PooledModel, teacher: Teacher | None) -> Contrast | None:
        contrast = self.checked.config.contrast
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
            seed=self.checked.config.seed,
        )


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
