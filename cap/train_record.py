"""What ``cap.train`` writes down: the record from its first line to its last, the log, and what loggers are told."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf
from rich.console import Console
from transformers import PreTrainedModel

from cap.cli import typed_overrides
from cap.config import Checked
from cap.models.encoders import AUTO_CLASS
from cap.models.families import prunable_linears
from cap.preparation import Prepared, data_terms
from cap.pruning.masks import count_pruned_units, count_zeros, sparsity_fractions
from cap.results.card import write_card
from cap.results.folder import CHECKPOINTS, MODEL, claim, hold
from cap.results.record import environment, peak_memory_gb, retention, write_record
from cap.results.report import summary_table, write_report

log = logging.getLogger("cap.train")


class RunRecord:
    """Keep the record of a run from the moment it takes its folder to its end.

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
        self.content: dict[str, Any] = {
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
        self.content["metric"] = prepared.task.monitored
        self.content["data"] = {
            "source": prepared.rows.source,
            "fingerprint": prepared.rows.fingerprint,
            "n_rows": prepared.n_rows(),
        }
        self.content["model"] = prepared.source.label
        self.content["scores"] = {"majority": prepared.majority, "teacher": None, "pruned": None}
        claim(self.run_dir, self.content, OmegaConf.to_yaml(OmegaConf.create(self.checked.resolved)))

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

    def fail(self, error: BaseException) -> None:
        """Write down why the run ended early; whatever happens, its folder does not look complete."""
        status = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else "failed"
        message = "stopped from outside" if status == "interrupted" else f"{type(error).__name__}: {error}".strip(": ")
        log.error("%s: %s", status, message)
        try:
            write_record(self.run_dir, {**self.content, "status": status, "error": message, "warnings": self.warnings})
        except (OSError, ValueError):
            log.exception("the record of the failed run could not be written")
        self._close_loggers(succeeded=False)

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
        teacher_score = scores["teacher"][metric] if scores["teacher"] else None
        majority = scores["majority"][metric] if prepared.task.kind == "classes" else None
        self.content.update(retention(pruned[metric], teacher_score, majority))
        self.content["sparsity"] = {"asked": self.checked.config.sparsity, **sparsity_fractions(saved)}
        self._note_final_level(pruned)
        self.content["matrices"] = {name: list(count) for name, count in count_zeros(prunable_linears(saved)).items()}
        self.content["units"] = count_pruned_units(saved)
        self.seconds["total"] = time.perf_counter() - self.started
        self.content["seconds"] = {name: round(value, 3) for name, value in self.seconds.items()}
        self.content["peak_memory_gb"] = peak_memory_gb()
        self.content["warnings"] = self.warnings
        self.content["status"] = "completed"
        for logger in self.loggers:
            final = {f"final/{name}": value for name, value in pruned.items()}
            logger.log_metrics({**final, "final/sparsity": self.content["sparsity"]["prunable"]}, self.content["steps"])
        # The record comes last: it alone says that a run is complete.
        write_card(
            self.run_dir / MODEL,
            self.content,
            auto_class=AUTO_CLASS[prepared.task.kind],
            terms=data_terms(prepared.task, self.checked.config.data_dir),
        )
        write_report(self.run_dir, self.content)
        write_record(self.run_dir, self.content)
        self._close_loggers(succeeded=True)
        shutil.rmtree(self.run_dir / CHECKPOINTS, ignore_errors=True)
        Console().print(summary_table(self.content, str(self.run_dir)))
        return pruned[metric]

    def _note_final_level(self, pruned: dict[str, float]) -> None:
        """Add the end of the run to the levels, unless a validation fell on the last step."""
        levels, step = self.content["levels"], self.content["steps"]
        if not levels or levels[-1]["step"] != step:
            asked, reached = self.checked.config.sparsity, self.content["sparsity"]["prunable"]
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


__all__ = ["RunRecord"]
