"""``python -m cap.probe``: does the pruned encoder still generalise? Linear heads on its frozen encodings answer."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from cap.cli import door
from cap.data.datamodule import CapDataModule
from cap.data.sources import load_rows
from cap.data.tasks import Task
from cap.errors import InputError
from cap.heads import Head
from cap.models.encoders import (
    ModelSource,
    PooledModel,
    Pooling,
    load_config,
    load_model,
    load_tokenizer,
    resolve_pooling,
    resolve_source,
    tokenizer_key,
    weights_key,
)
from cap.probe_config import ProbeConfig, check_probe, data_dir_of, probed_task
from cap.results.finished import FinishedRun, read_runs
from cap.results.folder import MODEL, RECORD
from cap.results.probe_table import console_table, require_free, summary, write_probe
from cap.results.record import environment
from cap.storage import content_key, ensure_writable
from cap.training.encode import Computation, computation_of, frozen_outputs
from cap.training.probe import EncodedRows, HeadTraining, score_head, train_head
from cap.training.progress import tracked

log = logging.getLogger("cap.probe")  # as a command, __name__ is __main__

# An encoder comes with a task head in this package; nobody reads this one, and one output is the least there is.
_UNREAD = Head("number")
_BANKS = {"pretrained": "PrC", "snapshots": "SnC", "finetuned": "FiC"}


@dataclass(frozen=True)
class Reading:
    """Say how all models of one run read a text: tokenizer, longest row in tokens, pooling."""

    tokenizer: PreTrainedTokenizerBase
    tokenizer_key: str
    max_length: int
    pooling: Pooling


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Hold an encoder to be probed, a row of the table; what a dense one has not is None."""

    role: Literal["pretrained", "teacher", "run"]
    name: str
    source: ModelSource
    reading: Reading
    weights: str
    trained_on: str | None = None
    pruning: str | None = None
    contrast: str | None = None
    sparsity: float | None = None
    teacher: str | None = None

    @property
    def id(self) -> str:
        """Name what makes the row: the same weights read in the same way are one row, but every run has its own."""
        reading = self.reading
        own = [self.name] if self.role == "run" else []
        return content_key([self.role, self.weights, reading.pooling, reading.tokenizer_key, reading.max_length, *own])


def probe(cfg: DictConfig) -> None:
    """Train linear heads on the encodings of every run, of its pre-trained model and of its dense teacher.

    Args:
        cfg: The composed configuration.

    Raises:
        InputError: If something given cannot work.
    """
    config = check_probe(cfg)
    runs = read_runs([Path(folder) for folder in config.runs])
    tasks = [probed_task(name) for name in config.tasks]
    folders = [data_dir_of(task, config.data_root) for task in tasks]
    ensure_writable(Path(config.cache_dir), "cache_dir")
    computation = _computation(config.accelerator)
    data = {task.name: TaskData(task, folder, config) for task, folder in zip(tasks, folders, strict=True)}
    subjects, notes = find_subjects(runs, config)
    training = HeadTraining(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    content = {
        "subjects": sorted(subject.id for subject in subjects),
        "rows": {name: one.rows.fingerprint for name, one in data.items()},
        "training": dataclasses.asdict(training),
        "seeds": config.seeds,
    }
    key = content_key(content)
    folder = Path("outputs") / "probe" / key if config.output_dir is None else Path(config.output_dir)
    require_free(folder, key)
    ensure_writable(folder.parent, "output_dir")
    scores = _scores(subjects, data, training, config.seeds, computation)
    result = {
        "key": key,
        "config": OmegaConf.to_container(cfg, resolve=True),
        "environment": environment(),
        "tasks": {name: one.describe() for name, one in data.items()},
        "rows": [_row(subject, subjects, scores) for subject in subjects],
        "notes": notes,
    }
    write_probe(folder, result)
    Console().print(console_table(result))
    log.info("table, picture and the scores of every seed: %s", folder)


def _computation(accelerator: str) -> Computation:
    try:
        trainer = Trainer(accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False)
    except (ValueError, MisconfigurationException) as error:
        raise InputError(f"accelerator must be what Lightning's Trainer takes: {error}") from error
    return computation_of(trainer)


def find_subjects(runs: list[FinishedRun], config: ProbeConfig) -> tuple[list[Subject], list[str]]:
    """Find the models of every run: its own, the pre-trained one, the dense teacher.

    Returns:
        Every model once, dense ones before the runs that are compared with them; and what a reader must know.

    Raises:
        InputError: If a pre-trained model cannot be loaded, or a record lacks what is needed.
    """
    groups: list[tuple[Subject, Subject | None, Subject]] = []
    notes: list[str] = []
    for run in runs:
        with _said_of(run):
            pretrained = _pretrained(run, config.max_length)
            teacher = _teacher(run, pretrained.reading, Path(config.cache_dir))
            if isinstance(teacher, str):
                notes.append(f"{run.name}: {teacher}")
                log.warning(notes[-1])
            dense = teacher if isinstance(teacher, Subject) else None
            groups.append((pretrained, dense, _pruned(run, pretrained.reading, dense)))
    ids = [subject.id for group in groups for subject in group if subject is not None]
    groups.sort(key=lambda group: (ids.index(group[0].id), ids.index(group[1].id) if group[1] else len(ids)))
    subjects: dict[str, Subject] = {}
    for subject in (subject for group in groups for subject in group if subject is not None):
        subjects.setdefault(subject.id, subject)
    named = _with_own_names(list(subjects.values()))
    return named, notes + _remarks(named, config.tasks)


@contextmanager
def _said_of(run: FinishedRun) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"run {run.name}: {error}") from error
    except (KeyError, TypeError) as error:
        raise InputError(
            f"run {run.name}: its {RECORD} must hold what this version of cap writes, but lacks {error}; run it again"
        ) from error


def _pretrained(run: FinishedRun, max_length: int) -> Subject:
    settings, model = run.record["config"], run.record["config"]["model"]
    source = resolve_source(
        model["name_or_path"], package=model["package"], sha256=model["sha256"], revision=model["revision"]
    )
    architectures = load_config(ModelSource(str(run.folder / MODEL), f"{MODEL}/")).architectures or [""]
    # Whether there is a pooler may depend on the head, so the run's own kind of head decides.
    head = Head("span") if architectures[0].endswith("ForQuestionAnswering") else _UNREAD
    tokenizer = load_tokenizer(source)
    reading = Reading(
        tokenizer,
        tokenizer_key(tokenizer),
        min(max_length, settings["max_length"]),
        resolve_pooling(
            settings["contrast"]["pool"], has_trained_pooler=load_model(source, head=head).has_trained_pooler
        ),
    )
    return _subject("pretrained", f"pre-trained {source.label}", source, reading)


def _teacher(run: FinishedRun, reading: Reading, cache_dir: Path) -> Subject | str:
    """Return the dense teacher, or the reason why there is none and what to do."""
    settings = run.record["config"]
    wanted: str = settings["teacher"]
    label: str | None = (run.record.get("teacher") or {}).get("name")
    if wanted == "none":
        return "it was run with teacher=none, so there is no dense teacher and no gap."
    source, remedy = ModelSource(wanted, label or wanted), "put it back where it was"
    if wanted == "auto":
        if label is None:
            return "its record does not name its teacher, so there is no gap; run it again."
        folder = cache_dir / "teachers" / label.removeprefix("auto ")
        source, remedy = ModelSource(str(folder), label), _how_to_make_it(run, cache_dir)
        if not folder.is_dir():
            return f"its teacher {label} is not in {folder.parent}, so there is no gap; {remedy}"
    try:
        return _subject("teacher", f"teacher {source.label}", source, reading, trained_on=settings["task"]["name"])
    except InputError as error:
        return f"its teacher cannot be loaded, so there is no gap ({error}); {remedy}"


def _how_to_make_it(run: FinishedRun, cache_dir: Path) -> str:
    kept_in = str(run.record["config"]["cache_dir"])
    command = f"make it again: {run.record['command'].replace('cap.train', 'cap.finetune', 1)}"
    if Path(kept_in).resolve() == cache_dir.resolve():
        return command
    return f"give cache_dir={kept_in}, where the run kept it, or {command} cache_dir={cache_dir}"


def _pruned(run: FinishedRun, reading: Reading, teacher: Subject | None) -> Subject:
    settings = run.record["config"]
    return _subject(
        "run",
        run.name,
        ModelSource(str(run.folder / MODEL), f"model/ of {run.name}"),
        reading,
        trained_on=settings["task"]["name"],
        pruning=settings["pruning"]["name"],
        contrast=", ".join(name for key, name in _BANKS.items() if settings["contrast"][key]) or "none",
        sparsity=run.record["sparsity"]["prunable"],
        teacher=teacher.id if teacher else None,
    )


def _subject(
    role: Literal["pretrained", "teacher", "run"], name: str, source: ModelSource, reading: Reading, **about: Any
) -> Subject:
    weights = weights_key(_load(source, reading.pooling).model.base_model)
    return Subject(role=role, name=name, source=source, reading=reading, weights=weights, **about)


def _load(source: ModelSource, pooling: Pooling) -> PooledModel:
    with torch.random.fork_rng(devices=[]):
        # What a checkpoint lacks, like a pooler that is not read, is drawn: it is part of the encodings' cache key.
        torch.manual_seed(0)
        return PooledModel(load_model(source, head=_UNREAD).model, pooling)


def _with_own_names(subjects: list[Subject]) -> list[Subject]:
    """Number the models that bear the name of an earlier one: two folders may be called the same."""
    seen: dict[str, int] = {}
    named = []
    for subject in subjects:
        n = seen[subject.name] = seen.get(subject.name, 0) + 1
        named.append(dataclasses.replace(subject, name=f"{subject.name} ({n})") if n > 1 else subject)
    return named


def _remarks(subjects: list[Subject], tasks: list[str]) -> list[str]:
    teachers = {subject.id: subject.name for subject in subjects if subject.role == "teacher"}
    runs = [subject for subject in subjects if subject.role == "run"]
    remarks = [f"{run.name} was trained on {run.trained_on} itself." for run in runs if run.trained_on in tasks]
    if len(teachers) > 1:
        remarks += [f"{run.name} is compared with {teachers[run.teacher]}." for run in runs if run.teacher]
    return remarks


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
                batch_size=self._config.data.eval_batch_size,
                eval_batch_size=self._config.data.eval_batch_size,
                seed=0,
                cache_dir=Path(self._config.cache_dir),
                num_workers=self._config.data.num_workers,
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
            # Labels do not depend on how a text is read: any module will do.
            "majority": next(iter(self._modules.values())).majority(),
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
        model = _load(subject.source, subject.reading.pooling)
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


main = door(probe, config_name="probe", schema=ProbeConfig)

if __name__ == "__main__":
    main()
