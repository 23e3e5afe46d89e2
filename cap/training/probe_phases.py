"""The phases of ``python -m cap.probe``: read rows, find models, encode, train linear heads, sum up their scores."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cap.base.files import content_key, ensure_lockable
from cap.config.probe import ProbeConfig, data_dir_of, probed_task
from cap.data.datamodule import CapDataModule
from cap.data.majority import majority_of
from cap.data.sources import load_rows
from cap.data.tasks import Task
from cap.models.pooled import PooledModel
from cap.runs.environment import environment
from cap.runs.finished import read_runs
from cap.training.encode import Computation, computation_of, frozen_outputs
from cap.training.linear_head import EncodedRows, HeadTraining, score_head, summary, train_head
from cap.training.probe_subjects import Reading, Subject, find_subjects, load_encoder
from cap.training.progress import tracked
from cap.training.trainer import idle_trainer, takes_gpus


@dataclass(frozen=True)
class Comparison:
    """Hold what is compared, on which rows and how.

    Args:
        subjects: The models.
        data: The rows, by task.
        training: How a linear head is trained.
        seeds: One head for each.
        computation: Where and how the models run.
        notes: What a reader of the table must know.
    """

    subjects: list[Subject]
    data: dict[str, TaskData]
    training: HeadTraining
    seeds: list[int]
    computation: Computation
    notes: list[str]

    @cached_property
    def key(self) -> str:
        """Name the comparison by what changes its result."""
        content = {
            "subjects": sorted(subject.id for subject in self.subjects),
            "rows": {name: one.rows.fingerprint for name, one in self.data.items()},
            "training": dataclasses.asdict(self.training),
            "seeds": self.seeds,
        }
        return content_key(content)


def read(config: ProbeConfig) -> Comparison:
    """Read runs and rows, and find the models that belong to them.

    Raises:
        InputError: If something of it cannot be read.
    """
    runs = read_runs([Path(folder) for folder in config.runs])
    tasks = [probed_task(name) for name in config.tasks]
    folders = [data_dir_of(task, config.data_root) for task in tasks]
    ensure_lockable(Path(config.cache_dir), "cache_dir")
    computation = computation_of(idle_trainer(config.accelerator))
    data = {task.name: TaskData(task, folder, config) for task, folder in zip(tasks, folders, strict=True)}
    subjects, notes = find_subjects(runs, config)
    training = HeadTraining(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    return Comparison(subjects, data, training, config.seeds, computation, notes)


def compare(comparison: Comparison, *, resolved: Any) -> dict[str, Any]:
    """Train the heads, and sum up their scores.

    Args:
        comparison: Made by ``read``.
        resolved: The configuration as plain containers.

    Returns:
        What ``cap.reports.probe_table`` lists.
    """
    subjects, data = comparison.subjects, comparison.data
    scores = _scores(subjects, data, comparison.training, comparison.seeds, comparison.computation)
    return {
        "key": comparison.key,
        "config": resolved,
        "environment": environment(on_gpu=comparison.computation.device.type == "cuda"),
        "tasks": {name: one.describe() for name, one in data.items()},
        "rows": [_row(subject, subjects, scores) for subject in subjects],
        "notes": comparison.notes,
    }


class TaskData:
    """Hold the rows of a task, tokenised as the models of each run read them.

    Args:
        task: The task.
        data_dir: Its folder, or None for the Hub.
        config: How many rows, how large a batch, where the cache is.
    """

    def __init__(self, task: Task, data_dir: Path | None, config: ProbeConfig) -> None:
        self.task = task
        self._config = config
        self.rows = load_rows(
            task,
            data_dir=data_dir,
            max_train_rows=config.data.max_train_rows,
            max_eval_rows=config.data.max_eval_rows,
        )
        self._modules: dict[tuple[str, int], CapDataModule] = {}

    def module(self, reading: Reading) -> CapDataModule:
        """Return the rows tokenised as the models of a run read them."""
        key = (reading.tokenizer_key, reading.max_length)
        if key not in self._modules:
            self._modules[key] = CapDataModule(
                rows=self.rows,
                task=self.task,
                tokenizer=reading.tokenizer,
                tokenizer_key=reading.tokenizer_key,
                max_length=reading.max_length,
                eval_batch_size=self._config.data.eval_batch_size,
                cache_dir=Path(self._config.cache_dir),
                num_workers=self._config.data.num_workers,
                pin_memory=takes_gpus(self._config.accelerator),
            )
            self._modules[key].setup()
        return self._modules[key]

    def encode(self, subject: Subject, model: PooledModel, computation: Computation) -> dict[str, Path]:
        """Encode every split with a model, unless the cache holds it; return the files."""
        module = self.module(subject.reading)
        files = {}
        for split, loader in {"train": module.encoding_dataloader(), **module.eval_dataloaders()}.items():
            # The module's key names the training rows; a run that trains on them finds these encodings.
            own = content_key([module.key, split, self.rows.fingerprints[split]])
            files[split] = frozen_outputs(
                model,
                loader,
                data_key=module.key if split == "train" else own,
                cache_dir=Path(self._config.cache_dir),
                computation=computation,
                description=f"encoding {self.task.name} {split} with {subject.name}",
                with_logits=False,
            ).encodings
        return files

    def read(self, files: Mapping[str, Path]) -> dict[str, EncodedRows]:
        """Read encodings back, with the labels that belong to them."""
        dtype = torch.float32 if self.task.kind == "number" else torch.int64
        return {
            split: EncodedRows(
                torch.from_numpy(np.load(file, allow_pickle=False)),
                torch.tensor(self.rows.splits[split]["label"][:], dtype=dtype),
            )
            for split, file in files.items()
        }

    def describe(self) -> dict[str, Any]:
        """Say for the result what was read, and what a head that learned nothing would score."""
        return {
            "metric": self.task.monitored,
            "source": self.rows.source,
            "fingerprint": self.rows.fingerprint,
            "n_rows": {split: len(rows) for split, rows in self.rows.splits.items()},
            "majority": majority_of(self.task, self.rows),
        }


_Scores = dict[str, dict[str, dict[str, list[float]]]]  # by subject, task and metric: one for each seed


def _scores(
    subjects: list[Subject],
    data: Mapping[str, TaskData],
    training: HeadTraining,
    seeds: list[int],
    computation: Computation,
) -> _Scores:
    files = {}
    for subject in subjects:
        model = load_encoder(subject.source, subject.reading.pooling)
        for name, one in data.items():
            files[subject.id, name] = one.encode(subject, model, computation)
    scores: _Scores = {subject.id: {} for subject in subjects}
    for subject, (name, one) in tracked([*itertools.product(subjects, data.items())], description="linear heads"):
        rows = one.read(files[subject.id, name])
        train, metrics, n_outputs = rows.pop("train"), one.module(subject.reading).metrics(), one.task.head.n_outputs
        by_seed = [
            score_head(train_head(train, n_outputs=n_outputs, training=training, seed=seed), rows, metrics)
            for seed in seeds
        ]
        scores[subject.id][name] = {metric: [found[metric] for found in by_seed] for metric in by_seed[0]}
    return scores


def _row(subject: Subject, subjects: list[Subject], scores: _Scores) -> dict[str, Any]:
    about = ("role", "name", "trained_on", "pruning", "contrast", "sparsity", "weights")
    teacher = scores[subject.teacher] if subject.teacher else None
    return {
        **{key: getattr(subject, key) for key in about},
        "teacher": next((other.name for other in subjects if other.id == subject.teacher), None),
        "pooling": subject.reading.pooling,
        "max_length": subject.reading.max_length,
        "scores": {
            task: {
                metric: summary(values, teacher[task][metric] if teacher else None)
                for metric, values in by_metric.items()
            }
            for task, by_metric in scores[subject.id].items()
        },
    }


__all__ = ["Comparison", "TaskData", "compare", "read"]
