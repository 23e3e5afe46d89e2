"""What an export is made of and checked on: the run's model, and rows."""

from __future__ import annotations

import dataclasses
import gzip
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cap.base.errors import InputError
from cap.base.kinds import KINDS
from cap.base.words import spaced
from cap.config.export import NEAREST, OWN_ROWS, ExportConfig
from cap.config.schema import TaskConfig
from cap.data.corpus import Part, corpus_texts, split_texts, training_texts
from cap.data.custom import task_of
from cap.data.datamodule import CapDataModule
from cap.data.held_out import scored_on_held_out
from cap.data.sources import Rows, load_rows
from cap.data.tasks import Task, data_terms
from cap.data.unlabelled import with_unlabelled
from cap.data.words import space_between
from cap.formats.compact import Compacted, compact
from cap.formats.folders import WEIGHTS_FILE
from cap.formats.load import load
from cap.formats.onnx import ONNX_FILE, export_onnx
from cap.formats.vocabulary import Smaller, Vocabulary, count_changed, with_vocabulary
from cap.models.depth import as_deep_as_dense, read_removed
from cap.models.outputs import output_order
from cap.models.pooled import Pooling
from cap.models.sources import ModelSource, load_tokenizer, tokenizer_key
from cap.runs.card import CARD_KEYS
from cap.runs.finished import FinishedRun, require_keys
from cap.runs.folder import MODEL

log = logging.getLogger("cap.export")

_BYTES_PER_WEIGHT = 4  # models are saved in float32
_READ_KEYS = (
    "config.data_dir",
    "config.data.eval_batch_size",
    "config.data.max_eval_rows",
    "config.data.max_train_rows",
    "config.max_length",
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """Hold a run's model and the rows that an export of it is compared on.

    Args:
        run: The finished run.
        task: Its task.
        dense: Its model, in eval mode; with as many zeros as weights went, but for layers that were taken out.
        model: What is exported: its model, or a copy with fewer rows of the word embedding.
        tokenizer: That of ``model``.
        smaller: The model and its tokenizer with fewer rows of the word embedding; None where all are left.
        cost: What leaving others out did to the validation rows, see ``cap.formats.vocabulary.count_changed``.
        rows: As they are now.
        data: The validation rows as tokens.
        traced: Inputs of two rows, the longest and the shortest, to follow a model's computation with.
        batches: Inputs to compare logits on.
        n_checked: Rows in these.
    """

    run: FinishedRun
    task: Task
    dense: PreTrainedModel
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    smaller: Smaller | None
    cost: Mapping[str, Any]
    rows: Rows
    data: CapDataModule
    traced: dict[str, Tensor]
    batches: list[dict[str, Tensor]]
    n_checked: int

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The rows of the word embedding that are left; None where all are."""
        return None if self.smaller is None else self.smaller.vocabulary

    @property
    def has_rows_of_run(self) -> bool:
        """True if the rows are those that the run was trained and scored on."""
        return bool(self.rows.fingerprint == self.run.record["data"]["fingerprint"])

    @property
    def is_of_encodings(self) -> bool:
        """True if the model is an encoder without a head."""
        return not KINDS[self.task.kind].learns_from_labels

    @property
    def pooling(self) -> Pooling:
        """How the model's hidden states become the vector of a text."""
        pooling: Pooling = self.run.record["pooling"] if self.is_of_encodings else "first_token"
        return pooling

    @property
    def max_length(self) -> int:
        """Tokens of a row that the run read."""
        return int(self.run.record["config"]["max_length"])

    @property
    def stride(self) -> int | None:
        """Tokens that neighbouring windows of one context share; None unless answers are spans."""
        return _task_config(self.run.record["config"]["task"]).stride

    @property
    def terms(self) -> str:
        """Under which terms the run's rows may be used."""
        return data_terms(self.task, self.run.record["config"]["data_dir"])

    @property
    def dense_file(self) -> Path:
        """The weights of the run's model."""
        return self.run.folder / MODEL / WEIGHTS_FILE

    @cached_property
    def beside(self) -> PreTrainedModel:
        """What sizes and times are measured beside: a model as large and as deep as the one that was pruned."""
        return as_deep_as_dense(self.dense)

    @property
    def dense_bytes(self) -> int:
        """Size of the weights of such a model on disk."""
        removed = read_removed(self.dense.config)
        n_gone = 0 if removed is None else removed.n_parameters
        return self.dense_file.stat().st_size + n_gone * _BYTES_PER_WEIGHT

    @cached_property
    def dense_bytes_gzipped(self) -> int:
        """Size of these weights in a gzip file: what zeros alone save."""
        return len(gzip.compress(self.dense_file.read_bytes(), compresslevel=6))

    @cached_property
    def compacted(self) -> Compacted:
        """The model without the heads and FFN units that are dead."""
        return compact(self.model)

    @cached_property
    def graph(self) -> bytes:
        """The ONNX file of the compact model: tracing takes seconds, and two formats need it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ONNX_FILE
            export_onnx(self.compacted.model, self.traced, path, pooling=self.pooling)
            return path.read_bytes()

    def as_in_run(self, batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return a batch with the token numbers of the run's model."""
        return batch if self.vocabulary is None else self.vocabulary.numbered_as_before(batch)

    def output_order(self) -> tuple[list[int] | None, list[str]]:
        """Find which of the model's outputs belongs to which label of the rows as they are now.

        Raises:
            InputError: If the labels are others.
        """
        return output_order(
            self.model.config,
            head=self.task.head,
            name=f"the model of {self.run.name}",
            key="run",
            hint="give data_dir=DIR with the rows that it was trained on",
        )


def read_source(run: FinishedRun, config: ExportConfig) -> Source:
    """Load a run's model and rows; train rows are read too, since the record has one fingerprint for all of them.

    Raises:
        InputError: If the record lacks something, the model is damaged, the rows cannot be loaded, or the vocabulary
            cannot be cut.
    """
    require_keys(run, (*CARD_KEYS, *_READ_KEYS))
    settings = run.record["config"]
    data_dir = settings["data_dir"] if config.data_dir is None else config.data_dir
    dense = load(run.folder / MODEL)
    tokenizer = load_tokenizer(ModelSource(str(run.folder / MODEL), f"{MODEL}/ of {run.name}"))
    node = _task_config(settings["task"])
    task, rows = _rows_of(run, node, data_dir)
    smaller, cost = _smaller(config, settings["data"], task, rows, dense, tokenizer)
    model, tokenizer = (dense, tokenizer) if smaller is None else (smaller.model, smaller.tokenizer)
    data = CapDataModule(
        rows=rows.without_training(),
        task=task,
        tokenizer=tokenizer,
        tokenizer_key=tokenizer_key(tokenizer),
        max_length=settings["max_length"],
        stride=node.stride,
        eval_batch_size=settings["data"]["eval_batch_size"],
        cache_dir=Path(config.cache_dir),
    )
    data.setup()
    examples: list[Any] = [loader.dataset for loader in data.eval_dataloaders().values()]

    chosen = [choose_rows(one.lengths, config.check_rows) for one in examples]
    longest, shortest = chosen[0][0][0], chosen[0][-1][-1]
    return Source(
        run=run,
        task=task,
        dense=dense,
        model=model,
        tokenizer=tokenizer,
        smaller=smaller,
        cost=cost,
        rows=rows,
        data=data,
        traced=_inputs(examples[0], [longest, shortest], tokenizer),
        batches=[
            _inputs(one, numbers, tokenizer)
            for one, batches in zip(examples, chosen, strict=True)
            for numbers in batches
        ],
        n_checked=sum(min(config.check_rows, len(one)) for one in examples),
    )


def _smaller(
    config: ExportConfig,
    limits: Mapping[str, Any],
    task: Task,
    rows: Rows,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Smaller | None, dict[str, Any]]:
    """Cut the vocabulary to what the texts that were asked for use, and count what that changes; null cuts nothing."""
    given, rest = config.vocabulary, config.vocabulary_rest
    if given is None:
        return None, {}
    if rest == NEAREST and task.kind == "tags":
        raise InputError(
            f"vocabulary_rest=nearest gives several pieces one number, but programs that put a tagger's words together "
            f"look pieces up by number, got task={task.name}; leave vocabulary_rest at split"
        )
    folder = Path(given)
    texts, corpus = (
        (training_texts(_with_unlabelled(rows, task, limits), task), "the run's training rows")
        if given == OWN_ROWS
        else (corpus_texts(folder, task), f"folder {folder.resolve().name}")
    )
    smaller = with_vocabulary(model, tokenizer, _as_read(texts, tokenizer), corpus=corpus, rest=rest)
    validated = (part for split in task.validation_splits for part in split_texts(rows.splits[split], task))
    return smaller, count_changed(tokenizer, smaller, _as_read(validated, tokenizer))


def _with_unlabelled(rows: Rows, task: Task, limits: Mapping[str, Any]) -> Rows:
    """Add the rows without a label that the run learned from beside its training rows."""
    file = limits.get("unlabelled")
    if file is None:
        return rows
    try:
        return with_unlabelled(rows, task, file=Path(file), max_rows=limits.get("max_unlabelled_rows"))
    except InputError as error:
        raise InputError(
            f"vocabulary=auto keeps what the run learned from, data.unlabelled too, which could not be read ({error}); "
            f"put it back, or give vocabulary=DIR with its texts"
        ) from error


def _as_read(texts: Iterable[Part], tokenizer: PreTrainedTokenizerBase) -> Iterator[Part]:
    """Give lists of words what must stand before each word, as ``cap.data.words`` does."""
    between = space_between(tokenizer)
    for part in texts:
        words = [spaced(one, between) for one in part if isinstance(one, list) and one]
        yield words or part


def choose_rows(lengths: Int[Tensor, " rows"], n_rows: int) -> list[list[int]]:
    """Choose the rows on which logits are compared: a graph may be right for one shape of batch and wrong for others.

    Args:
        lengths: Tokens of every row, one at least.
        n_rows: How many rows, at least 1.

    Returns:
        Row numbers by batch: the longest, the shortest, both padded together, and the very shortest alone. Batches
        that would be empty, or come twice, are left out.
    """
    order = lengths.argsort(descending=True, stable=True).tolist()
    n_chosen = min(n_rows, len(order))
    n_shortest = n_chosen // 2
    longest, shortest = order[: n_chosen - n_shortest], order[len(order) - n_shortest :]
    batches = [longest, shortest, longest + shortest, [(shortest or longest)[-1]]]
    return [list(batch) for batch in dict.fromkeys(map(tuple, batches)) if batch]


def _inputs(examples: Any, numbers: list[int], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    batch: Mapping[str, Tensor] = examples.__getitems__(numbers)
    return {name: batch[name] for name in tokenizer.model_input_names if name in batch}


def _task_config(given: Mapping[str, Any]) -> TaskConfig:
    known = {field.name for field in dataclasses.fields(TaskConfig)}
    unknown = sorted(set(given) - known)
    if unknown:
        log.warning("the run's task has keys that this version does not know; left out: %s", ", ".join(unknown))
    return TaskConfig(**{key: value for key, value in given.items() if key in known})


def _rows_of(run: FinishedRun, node: TaskConfig, data_dir: str | None) -> tuple[Task, Rows]:
    limits = run.record["config"]["data"]
    folder = None if data_dir is None else Path(data_dir)
    keep_unlabelled = bool(limits.get("keep_unlabelled"))
    try:
        task = task_of(node.name, folder, node.own(), keep_unlabelled=keep_unlabelled)
        held_out_rows = limits.get("held_out_rows")
        if held_out_rows is not None:
            task = scored_on_held_out(task)
        rows = load_rows(
            task,
            data_dir=folder,
            max_train_rows=limits["max_train_rows"],
            max_eval_rows=limits["max_eval_rows"],
            keep_unlabelled=keep_unlabelled,
            held_out_rows=held_out_rows,
        )
    except InputError as error:
        raise InputError(
            f"an export is checked on rows of the run's task, which could not be read ({error}); "
            f"give data_dir=DIR with them"
        ) from error
    return task, rows


__all__ = ["Source", "choose_rows", "read_source"]
