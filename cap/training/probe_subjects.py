"""Who is probed beside whom: finished runs, their dense pre-trained models and their dense teachers."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from cap.base.errors import InputError
from cap.base.files import content_key
from cap.base.kinds import KINDS, Head
from cap.config.probe import ProbeConfig
from cap.data.tasks import known_kind
from cap.models.encoders import load_model, weights_key
from cap.models.pooled import PooledModel, Pooling
from cap.models.sources import ModelSource, load_tokenizer, tokenizer_key
from cap.runs.finished import FinishedRun
from cap.runs.folder import MODEL, RECORD
from cap.runs.reading import TERMS
from cap.training.recorded_model import recorded_model

log = logging.getLogger("cap.probe")

# An encoder comes with a task head in this package; nobody reads this one, and one output is the least there is.
_UNREAD = Head("number")
# What cap calls the folders of teachers: nothing that leads out of the cache.
_CACHE_KEY = re.compile(r"[0-9a-f]+")


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
            f"run {run.name}: its {RECORD} must hold what this version of cap writes, but lacks {error}; run it again "
            f"with overwrite=true"
        ) from error


def _pretrained(run: FinishedRun, max_length: int) -> Subject:
    settings, model = run.record["config"], run.record["config"]["model"]
    source = recorded_model(model, named_in=f"its {RECORD}", sha256=model["sha256"])
    tokenizer = load_tokenizer(source)
    reading = Reading(
        tokenizer,
        tokenizer_key(tokenizer),
        min(max_length, settings["max_length"]),
        run.record["pooling"],
    )
    return _subject("pretrained", f"pre-trained {source.label}", source, reading)


def _teacher(run: FinishedRun, reading: Reading, cache_dir: Path) -> Subject | str:
    """Return the dense teacher, or the reason why there is none and what to do."""
    settings = run.record["config"]
    wanted: str = settings["teacher"]
    label: str | None = (run.record.get("teacher") or {}).get("name")
    if wanted == "none":
        return "it was run with teacher=none, so there is no dense teacher and no gap."
    kind = known_kind(settings["task"]["name"])
    if kind is not None and not KINDS[kind].learns_from_labels:
        return "it was aligned with the pre-trained model, which is its teacher, so there is no other one and no gap."
    source, remedy = ModelSource(wanted, label or wanted), "put it back where it was"
    if wanted == "auto":
        if label is None:
            return "its record does not name its teacher, so there is no gap; run it again with overwrite=true."
        key = label.removeprefix("auto ")
        if not _CACHE_KEY.fullmatch(key):
            return f"its teacher {label!r} is no folder that cap names in its cache, so there is no gap; run it again."
        folder = cache_dir / "teachers" / key
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
        contrast=", ".join(name for key, name in TERMS.items() if settings["contrast"][key]) or "none",
        sparsity=run.record["sparsity"]["prunable"],
        teacher=teacher.id if teacher else None,
    )


def _subject(
    role: Literal["pretrained", "teacher", "run"], name: str, source: ModelSource, reading: Reading, **about: Any
) -> Subject:
    weights = weights_key(load_encoder(source, reading.pooling).model.base_model)
    return Subject(role=role, name=name, source=source, reading=reading, weights=weights, **about)


def load_encoder(source: ModelSource, pooling: Pooling) -> PooledModel:
    """Load an encoder to be frozen; its task head means nothing."""
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


__all__ = ["Reading", "Subject", "find_subjects", "load_encoder"]
