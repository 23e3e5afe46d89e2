"""A user's own task: what its labels are is read off their files."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cap.base.errors import InputError
from cap.base.kinds import Kind
from cap.data.files import NAME_YOURS, read_columns, require_columns, split_file
from cap.data.label_sets import SCORES_OF_SETS, holds_lists, label_sets_task
from cap.data.labels import LabelColumn, in_order, is_whole_number, read_labels
from cap.data.metrics import TaskMetrics
from cap.data.own_files import Learned, OwnFiles
from cap.data.pairs import embed_task
from cap.data.tagged import tokens_task
from cap.data.tasks import Task, get_task

log = logging.getLogger(__name__)

# What cap.data.sources calls its own columns.
_RESERVED = ("label", "example_id")
_LIST = re.compile(r"\[.*\]", re.DOTALL)
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_NOTHING = ("nan", "none", "null", "na", "n/a", "<na>")
# Whole numbers beyond this, or labels that hardly repeat, may be classes or not: the user has to say.
_MOST_CLASSES = 100
_FEW = 10
# A column with more numbers than this and some words is rather a damaged column of numbers.
_MOSTLY = 0.9
_SCORES_OF_TWO = ("accuracy", "f1")
_SCORES_OF_MORE = ("accuracy", "macro_f1")
_SCORES_OF_NUMBERS = ("pearson", "spearman")


def task_of(
    name: str,
    data_dir: Path | None,
    own: Mapping[str, Any],
    *,
    keep_unlabelled: bool = False,
    scored: str | None = None,
    learned: Learned | None = None,
) -> Task:
    """Look up a task, or describe the user's own by its files.

    Args:
        name: Of the task table, ``custom``, ``tokens`` or ``embed``.
        data_dir: The folder of files; None is the Hub.
        own: What describes a user's own files, by the names that ``OwnFiles`` has; None where not given.
        keep_unlabelled: Whether training rows may lack a label.
        scored: The split whose rows are held out; None is the task's own.
        learned: What a model answers that is scored and not trained: the labels, where a user's folder has no training
            rows. None requires such rows.

    Raises:
        InputError: If there is no such task, or keys are given that it does not use.
    """
    if name in _OWN:
        files = OwnFiles(data_dir=data_dir, keep_unlabelled=keep_unlabelled, learned=learned, **own)
        return _OWN[name](files if scored is None else dataclasses.replace(files, scored=scored))
    given = [f"task.{key}={value}" for key, value in own.items() if value is not None]
    if given:
        raise InputError(
            f"task.{', task.'.join(own)} describe your own files and belong to task=custom, task=tokens or task=embed, "
            f"got {', '.join(given)} with task={name}, whose columns and scores are fixed; leave them out, or "
            f"set task=custom"
        )
    task = get_task(name)
    return task if scored is None else dataclasses.replace(task, validation_splits=(scored,))


def custom_task(own: OwnFiles) -> Task:
    """Describe a task by its files.

    Words, booleans and whole numbers are classes, other numbers are numbers; texts that are numbers count as numbers.
    The classes are those of the training rows: words in alphabetical order, whole numbers in their own, ``false``
    before ``true``, those of a ``ClassLabel`` in its order. Where labels are lists, a text has any number of them.
    Without training rows both are what the model that is scored has learned.

    Args:
        own: One column of single texts, or two of pairs. Its scores are accuracy and f1 (macro_f1 for more than two
            classes), or pearson and spearman, unless it names others.

    Returns:
        The task ``custom``; its class names are the texts of the labels.

    Raises:
        InputError: If the files, the columns or the labels are not what is required, or leave open what they mean.
    """
    texts, label = _checked_columns(own)
    label_type = own.label_type
    if label_type not in (None, "classes", "number"):
        raise InputError(f"task.label_type must be classes, number or null (inferred), got {label_type!r}")
    folder, learned = own.folder("custom"), own.told_by()
    if learned is not None:
        return _learned_task(learned, own, texts, label)
    tables = _read(folder, ("train", own.scored), texts, label)
    if holds_lists(tables, label):
        return label_sets_task(tables, own, texts=texts, label=label)
    train, validation = (
        LabelColumn(table, label, where, may_be_empty=own.keep_unlabelled and number == 0)
        for number, (where, table) in enumerate(tables.items())
    )
    _refuse_written_lists(train, validation)
    given: Kind = "number" if label_type == "number" else "classes"
    kind = _inferred_kind(train, validation) if label_type is None else given
    task = _described(own, kind, texts, label, _classes(train, validation) if kind == "classes" else ())
    labels = task.labels
    if kind == "number":
        _require_spread(task, train, validation)
    _doubt_empty_names(train, labels)
    meaning = f"{len(labels)} classes ({_shown(labels)})" if labels else "numbers"
    if label_type is None and kind == "classes" and len(labels) > _FEW and all(map(is_whole_number, labels)):
        log.warning(
            "column %s holds %d different whole numbers, taken as classes; set task.label_type=number if their "
            "distance means something",
            label,
            len(labels),
        )
    log.info("task=custom: column %s holds %s; scored by %s", label, meaning, _named_scores(task))
    if label_type is None and kind == "number" and _look_like_classes(train):
        log.warning(
            "column %s holds few different numbers, all of them whole (%s); set task.label_type=classes if they are "
            "classes",
            label,
            _shown(tuple(train.counts)),
        )
    return task


def _learned_task(learned: Learned, own: OwnFiles, texts: tuple[str, ...], label: str) -> Task:
    """Describe a task by what a model answers, and check that the rows have such labels."""
    kind: Kind = learned.kind if own.label_type is None else "number" if own.label_type == "number" else "classes"
    if kind != "number":
        learned.require_labels()
    ((where, table),) = _read(own.folder("custom"), (own.scored,), texts, label).items()
    labels = () if kind == "number" else learned.labels
    if kind == "classes":
        labels = _labels_as_written(learned, LabelColumn(table, label, where))
    task = _described(own, kind, texts, label, labels)
    if kind == "number":
        _require_spread(task, LabelColumn(table, label, where))
    meaning = f"the model's {len(task.labels)} labels ({_shown(task.labels)})" if task.labels else "numbers"
    log.info(
        "task=custom: no training rows, column %s is taken for %s; scored by %s", label, meaning, _named_scores(task)
    )
    return task


def _labels_as_written(learned: Learned, found: LabelColumn) -> tuple[str, ...]:
    """Return a model's classes in its order, as the rows write them.

    Raises:
        InputError: If the rows hold other ones, or numbers where only training rows tell which class is which.
    """
    labels = learned.labels
    numbers = all(map(is_whole_number, found.counts))
    if all(name in labels for name in found.counts):
        return labels
    if not learned.has_names:
        labels = found.given if len(found.given) == len(labels) else labels
        if not found.given and not numbers:
            word = next(name for name in found.counts if not is_whole_number(name))
            raise InputError(
                f"{learned.name} does not name its labels, so that rows without training rows must give their numbers, "
                f"0 to {len(labels) - 1}, got {found.place(word)}; write those, or give a folder with train.*"
            )
        return labels
    if numbers and not found.given and not any(map(is_whole_number, labels)):
        raise InputError(
            f"which number is which class only training rows tell: {learned.name} has the labels {_shown(labels)}, and "
            f"{found.where} has numbers, {found.place(next(iter(found.counts)))} for one; write the names, or give a "
            f"folder with train.*"
        )
    names = dict.fromkeys((*found.given, *found.counts))
    written = {name.lower(): name for name in names}
    if len(written) == len(names) and len({label.lower() for label in labels}) == len(labels):
        labels = tuple(written.get(label.lower(), label) for label in labels)
    unknown = [name for name in found.counts if name not in labels]
    if unknown:
        raise InputError(
            f"every label must be among those of {learned.name} ({_shown(learned.labels)}), got "
            f"{found.place(unknown[0])}; correct or remove such rows, or give a model that has it"
        )
    return labels


def _described(own: OwnFiles, kind: Kind, texts: tuple[str, ...], label: str, labels: tuple[str, ...]) -> Task:
    of_classes = _SCORES_OF_TWO if len(labels) == 2 else _SCORES_OF_MORE
    default = {"number": _SCORES_OF_NUMBERS, "label_sets": SCORES_OF_SETS}.get(kind, of_classes)
    task = Task(
        name="custom",
        kind=kind,
        text_columns=texts,
        label_column=label,
        labels=labels,
        metrics=own.metrics_or(default),
        validation_splits=(own.scored,),
    )
    _check_metrics(task)
    return task


def _named_scores(task: Task) -> str:
    """Name the scores of a task, and the class that f1 is of."""
    of_two = task.kind == "classes"
    return ", ".join(f"f1 of {task.labels[1]}" if name == "f1" and of_two else name for name in task.metrics)


def _checked_columns(own: OwnFiles) -> tuple[tuple[str, ...], str]:
    texts, label_column = tuple(own.text_columns or ()), own.label_column
    if not 1 <= len(texts) <= 2:
        raise InputError(
            f"task.text_columns names the one or two columns a model reads, got {list(texts)}; "
            "give one column for single sentences, two for pairs: task.text_columns=[premise,hypothesis]"
        )
    if not label_column:
        raise InputError("task.label_column names the column with the answers, got none; set it")
    if len({*texts, label_column}) <= len(texts):
        raise InputError(
            f"task.text_columns and task.label_column must name different columns, got {list(texts)} and "
            f"{label_column!r}; a model must not read the answer"
        )
    reserved = [name for name in texts if name in _RESERVED]
    if reserved:
        raise InputError(
            f"task.text_columns must not be called {' or '.join(_RESERVED)}, got {', '.join(reserved)}; "
            "rename the column in the files"
        )
    return texts, label_column


def _read(data_dir: Path, splits: tuple[str, ...], texts: tuple[str, ...], label: str) -> dict[str, pa.Table]:
    """Read training rows and those held out, by what a message calls them."""
    wanted, tables = (*texts, label), {}
    for file in (split_file(data_dir, split, kind=None) for split in splits):
        where = f"data_dir file {file.name}"
        tables[where] = read_columns(file, wanted)
        require_columns("custom", tables[where], wanted, where, advice=NAME_YOURS)
    return tables


def _refuse_written_lists(*files: LabelColumn) -> None:
    for labels in files:
        written = [name for name in labels.counts if _LIST.fullmatch(name)]
        if labels.counts and len(written) == len(labels.counts):
            raise InputError(
                f"several labels of a text are a list in parquet or jsonl, got the text {labels.place(written[0])}; "
                "csv and tsv hold no lists: write the files in one of those formats"
            )


def _doubt_empty_names(train: LabelColumn, labels: tuple[str, ...]) -> None:
    """Warn of classes whose name stands for no label in other programs."""
    odd = [name for name in labels if name.lower() in _NOTHING]
    if odd and len(odd) < len(labels):
        log.warning(
            "task=custom: %s learned as a class, %d rows of %s; leave the cell empty where there is no label",
            ", ".join(f"{name!r} is" for name in odd),
            sum(train.counts[name] for name in odd),
            train.where,
        )


def _inferred_kind(train: LabelColumn, validation: LabelColumn) -> Kind:
    if train.given or validation.given:
        return "classes"
    counts = train.counts + validation.counts
    are_floating = (train.is_floating, validation.is_floating)
    # A gap that was removed since has left floats of class numbers, in one of the files.
    if all(are_floating) or (any(are_floating) and not all(map(is_whole_number, counts))):
        return "number"
    words = [name for name in counts if not _DECIMAL.fullmatch(name)]
    with_comma = [name for name in words if _COMMA.fullmatch(name)]
    if with_comma and len(with_comma) == len(words) and len(words) > 1:
        odd = train if words[0] in train.counts else validation
        raise InputError(
            f"numbers are written with a point, got the label {odd.place(words[0])}; write 1.5 for 1,5, or set "
            "task.label_type=classes if these are class names"
        )
    n_rows = counts.total()
    n_numbers = n_rows - sum(counts[word] for word in words)
    if words and n_numbers > _MOSTLY * n_rows:
        odd = train if words[0] in train.counts else validation
        raise InputError(
            f"labels must be all numbers or all words, got {odd.place(words[0])} where {n_numbers} of {n_rows} rows "
            "hold numbers; correct or remove such rows, or set task.label_type=classes if these are class names"
        )
    fractions = [name for name in counts if name not in words and not is_whole_number(name)]
    if words and fractions:
        odd = train if words[0] in train.counts else validation
        raise InputError(
            f"labels must be all numbers or all words, got {odd.place(words[0])} beside {fractions[0]!r}; correct or "
            "remove such rows, or set task.label_type=classes if these are class names"
        )
    if fractions:
        return "number"
    n_different, n_train = len(train.counts), train.counts.total()
    hardly_repeat = n_different > max(_FEW, n_train / 2)
    if hardly_repeat or (not words and n_different > _MOST_CLASSES):
        choices = "task.label_type=classes" if words else "task.label_type=number or task.label_type=classes"
        raise InputError(
            f"labels must show whether they are classes, got {n_different} different "
            f"{'words' if words else 'whole numbers'} in the {n_train} rows of {train.where}; set {choices}, or "
            "another task.label_column"
        )
    return "classes"


def _look_like_classes(train: LabelColumn) -> bool:
    # A gap in a column of class numbers makes its readers turn all of them into floats.
    return len(train.counts) <= _FEW and all(float(name).is_integer() for name in train.counts)


def _classes(train: LabelColumn, validation: LabelColumn) -> tuple[str, ...]:
    for labels in (train, validation):
        fractions = [name for name in labels.counts if labels.is_floating and not is_whole_number(name)]
        if fractions:
            raise InputError(
                f"task.label_type=classes needs words, whole numbers or booleans, got {labels.place(fractions[0])}; "
                "convert the labels to strings, or set task.label_type=number"
            )
    names = train.given or in_order(train.counts)
    if len(names) < 2:
        raise InputError(
            f"classes are learned from two different labels at least, got only {names[0]} in {train.where}; "
            "give rows of another class, or another task.label_column"
        )
    unknown = [] if train.given else [name for name in validation.counts if name not in names]
    if unknown:
        raise InputError(
            f"every label must be among those of {train.where} ({_shown(names)}), got {validation.place(unknown[0])}; "
            "correct or remove such rows, or add training rows of that class"
        )
    return names


def _check_metrics(task: Task) -> None:
    TaskMetrics(task)
    if task.kind == "classes" and "f1" in task.metrics and len(task.labels) > 2:
        raise InputError(
            f"task.metrics may hold f1 where there are two classes, the second being the positive one; got "
            f"{len(task.labels)} classes ({_shown(task.labels)}); choose accuracy, say"
        )


def _require_spread(task: Task, *files: LabelColumn) -> None:
    for labels in files:
        values = read_labels(task, labels.table, labels.where, may_be_empty=labels.may_be_empty).drop_null()
        if pc.count_distinct(values).as_py() < 2:
            raise InputError(
                f"numbers are scored by correlations, which need two different ones at least, got only {values[0]} in "
                f"{labels.where}; give other rows, or another task.label_column"
            )


def _shown(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_FEW]) + (", ..." if len(names) > _FEW else "")


_OWN: dict[str, Callable[[OwnFiles], Task]] = {"custom": custom_task, "tokens": tokens_task, "embed": embed_task}

__all__ = ["custom_task", "task_of"]
