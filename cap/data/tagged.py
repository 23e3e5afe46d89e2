"""A user's own tags of words, ``task=tokens``: which tags there are is read off the training rows."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow as pa

from cap.base.errors import InputError
from cap.data.entities import SCORES_OF_ENTITIES, SCORES_OF_TAGS, check_tag_metrics
from cap.data.files import NAME_YOURS, read_columns, require_columns, split_file
from cap.data.lists import given_names, require_known, shown
from cap.data.own_files import OwnFiles
from cap.data.tags import OUTSIDE, TAGS, begins_without_mark, entity_types, tagged_rows
from cap.data.tasks import Task

log = logging.getLogger(__name__)

_RESERVED = (TAGS, "example_id")  # what cap.data.sources calls its own columns


def tokens_task(own: OwnFiles) -> Task:
    """Describe a task that tags words by its files.

    Args:
        own: One column with a list of words in every row (``tokens`` in CoNLL files), and one with as many tags
            (``tags``). Its scores are f1, precision and recall of entities where tags mark some (B-, I-), else
            macro_f1 and accuracy of tags, unless it names others. Every row must have its tags.

    Returns:
        The task ``tokens``; its labels are the training rows' tags in alphabetical order, or in that of a
        ``ClassLabel``; without training rows those of the model that is scored.

    Raises:
        InputError: If the files, their columns or tags are not what is required.
    """
    words, tags = _checked_columns(own)
    own.require_no_label_type("tokens", because="whose tags are classes")
    data_dir = own.folder("tokens", formats="parquet, jsonl, json or conll")
    learned = own.told_by("tags")
    if learned is not None:
        learned.require_labels()
    splits = (own.scored,) if learned is not None else ("train", own.scored)
    found = [_read(split_file(data_dir, split, kind="tags"), words, tags) for split in splits]
    among = f"those of {found[0].where}" if learned is None else "those that the model gives"
    labels = found[0].labels() if learned is None else learned.labels
    require_known(found[-1].names, labels, found[-1].where, among=among, may_add=learned is None)
    task = Task(
        name="tokens",
        kind="tags",
        text_columns=(words,),
        label_column=tags,
        labels=labels,
        metrics=_default_metrics(labels) if own.metrics is None else tuple(own.metrics),
        validation_splits=(own.scored,),
    )
    check_tag_metrics(task)
    _tell(task, found)
    return task


class _Tagged:
    """Hold the tags of one file by name.

    Args:
        names: Row by row.
        given: Names of a ``ClassLabel`` in its order; empty where there is none.
        where: What to call the rows in a message.
    """

    def __init__(self, names: pa.ListArray, given: tuple[str, ...], where: str) -> None:
        self.names = names
        self.where = where
        self._given = given

    def labels(self) -> tuple[str, ...]:
        """Name the different tags in order.

        Raises:
            InputError: If there is only one.
        """
        labels = self._given or tuple(sorted(self.names.flatten().unique().to_pylist()))
        if len(labels) < 2:
            raise InputError(
                f"tags are learned from two different ones at least, got only {labels[0]} in {self.where}; give rows "
                f"with others"
            )
        return labels


def _checked_columns(own: OwnFiles) -> tuple[str, str]:
    texts, label_column = list(own.text_columns or ()), own.label_column
    if len(texts) != 1 or not label_column or texts == [label_column] or texts[0] in _RESERVED:
        raise InputError(
            f"task=tokens reads one column of words (task.text_columns, not called {' or '.join(_RESERVED)}) and "
            f"another one with their tags (task.label_column), got {texts} and {label_column!r}; name one each"
        )
    return texts[0], label_column


def _read(file: Path, words: str, tags: str) -> _Tagged:
    wanted, where = (words, tags), f"data_dir file {file.name}"
    table = read_columns(file, wanted)
    require_columns("tokens", table, wanted, where, advice=NAME_YOURS)
    return _Tagged(tagged_rows(table, words, tags, where)[1], given_names(table, tags), where)


def _default_metrics(labels: tuple[str, ...]) -> tuple[str, ...]:
    return SCORES_OF_TAGS if entity_types(labels) is None else SCORES_OF_ENTITIES


def _tell(task: Task, files: list[_Tagged]) -> None:
    """Say what the tags are taken for, how they are scored, and once what of them is unusual."""
    is_of_entities = any(name in SCORES_OF_ENTITIES for name in task.metrics)
    log.info(
        "task=tokens: column %s holds %d tags (%s); scored by %s of %s",
        task.label_column,
        len(task.labels),
        shown(task.labels),
        ", ".join(task.metrics),
        "whole entities" if is_of_entities else "tags",
    )
    if not is_of_entities:
        return
    log.info("a model that answers %s throughout finds no entity: its f1 is 0, which retention counts from", OUTSIDE)
    counts = {one.where: sum(map(begins_without_mark, one.names.to_pylist())) for one in files}
    if any(counts.values()):
        log.warning(
            "entities begin with I- in place of B-: %s; each is read as one that begins there, in labels and in "
            "answers, as nervaluate does",
            ", ".join(f"{n:,} in {where}" for where, n in counts.items() if n),
        )


__all__ = ["tokens_task"]
