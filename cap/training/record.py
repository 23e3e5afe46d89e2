"""What ``cap.train`` writes down: the record from its first line to its last, the log, and what loggers are told."""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from transformers import PreTrainedModel

from cap.base.console import print_table
from cap.base.errors import InputError, StoppedError, first_line
from cap.base.kinds import KINDS
from cap.config.check import Checked
from cap.data.tasks import data_terms
from cap.models.encoders import AUTO_CLASS
from cap.pruning.masks import sparsity_fractions
from cap.pruning.schedule import held_level
from cap.runs.card import record_of_level, write_card
from cap.runs.checkpoints import Checkpoint
from cap.runs.environment import environment, forget_peak_memory, peak_memory_gb
from cap.runs.folder import (
    CHECKPOINTS,
    MODEL,
    RunFolder,
    claim,
    drop_other_replacement,
    hold,
    put_in_place,
    replacement_of,
)
from cap.runs.page import summary_table, write_report
from cap.runs.record import retention, write_record
from cap.training.dynamics import Dynamics
from cap.training.ending import end_kept, end_levels, end_parts, kept_without_training, missed_sparsity
from cap.training.inputs import hashes_of_rows, hashes_of_weights
from cap.training.preparation import Prepared
from cap.training.resume.curves import cut_curves
from cap.training.seconds import PhaseSeconds
from cap.training.teacher import Teacher
from cap.training.tracking import close_loggers, errors_of_wandb
from cap.training.trainer import takes_gpus

# A process that was killed with its grid may still be writing its last checkpoint in the folder.
_PATIENCE_SECONDS = 150.0
log = logging.getLogger("cap.train")


@dataclass(frozen=True)
class Begun:
    """Say how a run begins once its folder is held.

    Args:
        checkpoint: Where it goes on; None starts.
        completed: The record of this very run if another process, which was waited for, has completed it: then nothing
            is left to do, and the folder is as that process left it.
    """

    checkpoint: Checkpoint | None = None
    completed: dict[str, Any] | None = None


class RunRecord:
    """Keep the record of a run from the moment it takes its folder to its end.

    Args:
        checked: The configuration.
        run_dir: The run's folder.
        command: What was typed.
        is_first: Whether this process writes; the others of the same run only keep count.
        replaces: True if a finished run lies there, which stays until this one is complete.
    """

    def __init__(
        self, checked: Checked, run_dir: Path, *, command: str, is_first: bool = True, replaces: bool = False
    ) -> None:
        self.checked = checked
        self.home = run_dir
        self.is_replacement = replaces
        self.run_dir = replacement_of(run_dir) if replaces else run_dir
        self.is_first = is_first
        self.seconds = PhaseSeconds()
        forget_peak_memory()  # a multirun runs many jobs in one process
        self.warnings: list[str] = list(checked.notes)
        self.loggers: list[Logger] = []
        self._earlier: dict[str, Any] = {}
        self._is_complete = False
        self._lock: FileLock | None = None
        self._log_file: logging.FileHandler | None = None
        self.content: dict[str, Any] = {
            "status": "interrupted",
            "error": None,
            "command": command,
            "config": checked.resolved,
            "config_hash": checked.hash,
            "environment": environment(on_gpu=takes_gpus(checked.config.trainer.accelerator)),
            "seed": checked.config.seed,
            "warnings": self.warnings,  # of an attempt that ends early, too: the next one takes them over
        }

    def begin(self, prepared: Prepared, *, find: Callable[[RunFolder], Checkpoint | None], goes_on: bool) -> Begun:
        """Claim the folder; from here on it holds a record that does not look complete.

        Args:
            prepared: What the run starts from.
            find: Looks for the checkpoint to go on from, in what lies in the folder once nobody else writes there.
            goes_on: Whether what an earlier attempt left counts; a process that still writes there is waited for then.

        Returns:
            How the run begins; on all processes but the first that says nothing.
        """
        self.content.update(metric=prepared.task.monitored, asks=prepared.asks)
        self.content["data"] = {
            "source": prepared.rows.source,
            "fingerprint": prepared.rows.fingerprint,
            "n_rows": prepared.n_rows(),
        }
        if prepared.rows.unlabelled is not None:
            self.content["data"]["unlabelled"] = prepared.rows.unlabelled.describe()
        self.content.update(model=prepared.source.label, pooling=prepared.pooling)
        self.content["scores"] = {"majority": prepared.majority, "teacher": None, "pruned": None}
        self.warnings.extend(prepared.notes)
        if not self.is_first:
            return Begun()
        self.content["data"]["files"] = hashes_of_rows(self.checked.config)
        self.content["weights_sha256"] = hashes_of_weights(self.checked.config)
        for note in self.checked.notes:
            log.warning(note)
        lock = self._lock = hold(self.home, patience=_PATIENCE_SECONDS if goes_on else 0.0)
        try:
            if self.is_replacement:
                drop_other_replacement(self.home, self.checked.hash)
            # Once more than at the door: from here on nobody else changes what is found.
            found = RunFolder.read(self.run_dir, self.checked.hash)
            if found.state == "complete" and not self.is_replacement:
                found.require_going_on(goes_on=goes_on)
                lock.release()
                return Begun(completed=found.record)
            checkpoint = find(found)
            if goes_on and found.record is not None:
                self._take_over(found.record, checkpoint)
            config_yaml = OmegaConf.to_yaml(OmegaConf.create(self.checked.resolved))
            claim(found, self.content, config_yaml, goes_on=checkpoint is not None)
        except BaseException:
            lock.release()
            raise
        return Begun(checkpoint)

    def _take_over(self, earlier: dict[str, Any], checkpoint: Checkpoint | None) -> None:
        """Keep of an interrupted attempt's record what this one cannot know.

        Raises:
            InputError: If that attempt read other rows.
        """
        self._earlier = earlier
        self.content |= {key: earlier[key] for key in ("wandb_id", "teacher") if key in earlier}
        self.seconds.take_over(earlier.get("seconds") or {})
        self.content["seconds"] = self.seconds.by_phase()
        if checkpoint is None:
            return
        # Not the files: written again, they may still hold the same rows.
        if any(
            earlier.get("data", {}).get(key) != self.content["data"].get(key)
            for key in ("fingerprint", "n_rows", "unlabelled")
        ):
            raise InputError(
                f"a run goes on with the rows it began with, but those of {self.content['data']['source']} have "
                f"changed since; give another output_dir, or remove {self.run_dir / CHECKPOINTS} to start it again"
            )
        self.warnings[:] = dict.fromkeys([*(earlier.get("warnings") or []), *self.warnings])
        self.content["resumed_at"] = [*earlier.get("resumed_at", []), checkpoint.step]
        cut_curves(self.run_dir, checkpoint.n_rows)
        log.info("going on after step %d, in %s", checkpoint.step, self.run_dir)

    def start_loggers(self) -> list[Logger]:
        """Write the log into the folder, too, and start what ``logger=`` chose."""
        if self.is_first:
            self._log_file = logging.FileHandler(self.run_dir / "train.log", encoding="utf-8")
            self._log_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
            logging.getLogger("cap").addHandler(self._log_file)
        node = self.checked.config.logger
        if node:
            with errors_of_wandb():
                self.loggers.append(instantiate(node, save_dir=str(self.run_dir), **self._same_run(node)))
                self.loggers[0].log_hyperparams(self.checked.resolved)
        return self.loggers

    def _same_run(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """Name what makes a logger that is not ours go on where it was."""
        last = self.content.get("resumed_at", [None])[-1]
        if str(node["_target_"]).endswith("TensorBoardLogger"):
            return {} if last is None else {"purge_step": last}
        if not str(node["_target_"]).endswith("WandbLogger"):
            return {}
        # A sweep's agent has named the run already.
        by_agent = os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None
        run_id = by_agent or node.get("id") or self._earlier.get("wandb_id") or uuid.uuid4().hex[:8]
        self.content["wandb_id"] = run_id
        self.write_interim()
        return {"id": run_id}

    def note_dynamics(self, dynamics: Dynamics, *, prunes: bool) -> None:
        """Say and write down what the run is going to do, and what about it looks too short."""
        self.content["dynamics"] = dynamics.record()
        warning = dynamics.say(self.checked.plan, max_steps=self.checked.config.trainer.max_steps, prunes=prunes)
        if warning is not None:
            self.warnings.append(warning)
        self.write_interim()

    def note_teacher(self, teacher: Teacher) -> None:
        """Write down who the teacher is; an interrupted attempt may have trained the one that is cached now."""
        was_cached = (self._earlier.get("teacher") or {}).get("was_cached", teacher.was_cached)
        self.content["scores"]["teacher"] = teacher.scores
        self.content["teacher"] = {"name": teacher.label, "was_cached": was_cached}
        self.write_interim()

    def note_certainty(self, plain: float, softened: float) -> None:
        """Write down how sure the teacher is of its answers to training rows, without and with a temperature."""
        self.content["teacher"] |= {"certainty": plain, "certainty_softened": softened}

    def note_kept(self, kept: list[dict[str, Any]]) -> None:
        """Write down which models are kept so far, whatever becomes of the run."""
        self.content["kept"] = list(kept)
        self.write_interim()

    def note_gradients(self, shares: dict[str, float]) -> None:
        """Write down how hard each loss term pulls on the encoder."""
        self.content["gradient_shares"] = shares
        self.write_interim()

    def note_minutes(self, minutes: float) -> None:
        """Write down how long the steps of the run will take."""
        self.content["dynamics"]["minutes_estimated"] = minutes
        self.write_interim()

    def note_training(
        self,
        *,
        levels: list[dict[str, Any]],
        kept: list[dict[str, Any]] | None,
        steps: int,
        seconds_per_step: float | None,
        seconds_before: float,
        seconds_within: Mapping[str, float],
    ) -> None:
        """Write down what training was.

        Args:
            levels: Scores over the run.
            kept: What ``keep_levels`` kept; None if it was not asked for.
            steps: Optimizer steps.
            seconds_per_step: Median of a step.
            seconds_before: Of training before this attempt.
            seconds_within: By name, what is part of training and shown apart from it; over all attempts.
        """
        self.content["levels"] = levels
        if kept is not None:
            self.content["kept"] = kept
        self.content["steps"] = steps
        self.content["seconds_per_step"] = seconds_per_step
        self.seconds.note_training(before=seconds_before, within=seconds_within)

    def write_interim(self) -> None:
        """Write down what is known so far, whatever becomes of the run."""
        if self.is_first:
            self.content["seconds"] = self.seconds.by_phase()
            write_record(self.run_dir, self.content)

    def warn(self, message: str) -> None:
        """Say something that a reader of the result must know, in the log and in the record."""
        log.warning(message)
        self.warnings.append(message)

    def fail(self, error: BaseException) -> None:
        """Write down why the run ended early; whatever happens, its folder does not look complete."""
        is_interrupted = isinstance(error, KeyboardInterrupt | SystemExit | StoppedError)
        status = "interrupted" if is_interrupted else "failed"
        message = f"{type(error).__name__}: {error}".strip(": ")
        if is_interrupted:
            message = str(error) if isinstance(error, StoppedError) else "stopped from outside"
        if self.is_first and not self._is_complete:  # else what stopped it came after the end: the record stands
            self._to_file(f"{status}: {message}")  # the door says it on the terminal
            try:
                ended = {"status": status, "error": message, "warnings": self.warnings}
                write_record(self.run_dir, self.content | ended | {"seconds": self.seconds.by_phase()})
            except (OSError, ValueError) as problem:
                log.error("the record of this run could not be written, and still says interrupted: %s", problem)
        try:
            is_stopped = isinstance(error, StoppedError) and not self._is_complete
            self._close(succeeded=self._is_complete, is_stopped=is_stopped, is_last=True)
        except Exception as problem:  # the error itself is what matters
            log.error("what runs beside the run did not end as it should: %s", first_line(problem))

    def _to_file(self, message: str) -> None:
        if self._log_file is not None:
            self._log_file.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, message, (), None))

    def complete(self, prepared: Prepared, saved: PreTrainedModel, pruned: dict[str, float]) -> float:
        """Write card, report and, last of all, the record of a run that has reached its end.

        Args:
            prepared: What the run started from.
            saved: The saved model, on the CPU.
            pruned: Its scores.

        Returns:
            The score on the task's first metric.
        """
        metric = prepared.task.monitored
        scores = self.content["scores"]
        scores["pruned"] = pruned
        self.seconds.end()
        if not self.is_first:
            self._close(succeeded=True)
            return pruned[metric]
        teacher_score = scores["teacher"][metric] if scores["teacher"] else None
        majority = scores["majority"][metric] if KINDS[prepared.task.kind].has_majority else None
        self.content.update(retention(pruned[metric], teacher_score, majority))
        self.content["sparsity"] = {"asked": self.checked.config.sparsity, **sparsity_fractions(saved)}
        missed = missed_sparsity(self.content["sparsity"], self.checked.resolved["pruning"])
        if missed is not None:
            self.warn(missed)
        not_retrained = kept_without_training(self.content.get("kept") or [])
        if not_retrained is not None:
            self.warnings.append(not_retrained)
        end_levels(self.content, pruned)
        asked_for = [held_level(level, self.checked.plan) for level in self.checked.config.keep_levels or []]
        end_kept(self.content, pruned, asked_for=asked_for)
        end_parts(self.content, saved)
        self.content["seconds"] = self.seconds.by_phase()
        self.content["peak_memory_gb"] = peak_memory_gb()
        self.content["warnings"] = list(dict.fromkeys(self.warnings))  # an earlier attempt may have said the same
        self.content["status"] = "completed"
        self._log_final()
        # The record comes last: it alone says that a run is complete.
        card_options: dict[str, Any] = {
            "auto_class": AUTO_CLASS[prepared.task.kind],
            "terms": data_terms(prepared.task, self.checked.config.data_dir),
        }
        write_card(self.run_dir / MODEL, self.content, **card_options)
        for line in self.content.get("kept") or []:
            if line["folder"] != MODEL:
                kept = retention(line["scores"][metric], teacher_score, majority)
                write_card(self.run_dir / line["folder"], record_of_level(self.content, line) | kept, **card_options)
        write_report(self.run_dir, self.content)
        write_record(self.run_dir, self.content)
        self._is_complete = True
        shutil.rmtree(self.run_dir / CHECKPOINTS, ignore_errors=True)
        self._close(succeeded=True)
        print_table(summary_table(self.content, str(self.home)))
        return pruned[metric]

    def repeat(self, earlier: dict[str, Any]) -> None:
        """Tell a sweep, which has made a run of its own for it, what a run that was found done had reached."""
        self.content = {**earlier}
        logger = instantiate(self.checked.config.logger, save_dir=str(self.run_dir))
        logger.log_hyperparams(self.checked.resolved)
        self.loggers.append(logger)
        self._log_final()
        self._close(succeeded=True)

    def _log_final(self) -> None:
        final = {f"final/{name}": value for name, value in self.content["scores"]["pruned"].items()}
        for logger in self.loggers:
            logger.log_metrics({**final, "final/sparsity": self.content["sparsity"]["prunable"]}, self.content["steps"])

    def _close(self, *, succeeded: bool, is_stopped: bool = False, is_last: bool = False) -> None:
        """End what runs beside the run, and leave its folder; what an error cuts off, ``fail`` does once more."""
        loggers, self.loggers = self.loggers, []
        is_in_place = False
        try:
            close_loggers(loggers, ends_wandb=self.is_first, succeeded=succeeded, is_stopped=is_stopped)
        finally:
            # Whatever a tracker did: the next job of a multirun would write into this one's file.
            self._close_log()
            try:
                if self._lock is not None and self._is_complete and self.is_replacement:
                    put_in_place(self.home)  # last, since loggers write into the folder until they are closed
                is_in_place = True
            finally:
                if self._lock is not None and (is_in_place or is_last):
                    self._lock.release()
                    self._lock = None

    def _close_log(self) -> None:
        if self._log_file is not None:
            logging.getLogger("cap").removeHandler(self._log_file)
            self._log_file.close()


__all__ = ["Begun", "RunRecord"]
