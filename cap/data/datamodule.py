"""Tokenised examples, cached by content, served in batches that are padded to their own longest."""

from __future__ import annotations

import copy
import math
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from cap.base.cache import CacheEntry
from cap.base.errors import InputError
from cap.base.files import content_key
from cap.base.kinds import Metrics
from cap.base.memory_budget import MemoryBudget
from cap.data.batch import on_device
from cap.data.examples import examples_of
from cap.data.loader import ResumableLoader
from cap.data.majority import majority_of
from cap.data.metrics import split_suffixes
from cap.data.sampler import LengthGroupedBatchSampler, representative_rows
from cap.data.sources import Rows
from cap.data.tasks import Task
from cap.data.tokens import FORMAT, NO_LABEL, TokenRows, require_embedded


class CapDataModule(LightningDataModule):
    """Serve a task's rows as padded batches of tokens.

    An example is a row, for tasks with spans one of a row's windows, or one text of a pair. Every batch is a dict of
    tensors: ``input_ids``, ``attention_mask``, ``token_type_ids`` if the tokenizer gives them, ``labels``,
    ``example_id``; for training also ``is_labelled`` if there are rows without a label. Those follow the others, and
    stand in ``labels`` as ``NO_LABEL``. Where words are tagged, ``labels`` are those of tokens, ``NO_LABEL`` at all but
    the first of each word, which ``is_word`` marks. Texts to encode have none.
    Several processes share the rows of every split here, training rows as the trainer's rank says, so the trainer must
    not insert samplers of its own (``use_distributed_sampler=False``).

    Args:
        rows: Where the texts and labels come from; without a split ``train`` for a model that is only scored.
        task: Which columns a model reads.
        tokenizer: Turns texts into tokens; sentences and pairs are truncated ``longest_first``.
        tokenizer_key: Content hash of the tokenizer, for the names of cache entries.
        max_length: Longest example in tokens, special ones included.
        stride: Tokens that neighbouring windows of one context share; None unless answers are spans.
        batch_size: Training examples per batch and process; None where nothing is trained.
        eval_batch_size: Examples per batch where nothing is learned.
        seed: Fixes the order of the training batches, >= 0.
        cache_dir: Folder of all caches; tokens go to ``tokenised/<key>`` in it.
        num_workers: Processes that prepare batches; 0 prepares them in this one.
        budget: What the tokens of all splits may hold in memory, training rows first; None maps them all.
        pin_memory: Whether batches are put where a GPU fetches them by itself.

    Raises:
        InputError: If ``max_length`` is more than the tokenizer's model can read or leaves no room for text, if
            the tokenizer has no padding token, or if ``stride`` does not fit the task.
    """

    def __init__(
        self,
        *,
        rows: Rows,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        tokenizer_key: str,
        max_length: int,
        stride: int | None = None,
        batch_size: int | None = None,
        eval_batch_size: int = 64,
        seed: int = 0,
        cache_dir: Path,
        num_workers: int = 0,
        budget: MemoryBudget | None = None,
        pin_memory: bool = False,
    ) -> None:
        super().__init__()
        # Of a small split a process may get nothing; the others have it then.
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self._examples = examples_of(task, tokenizer, max_length=max_length, stride=stride)
        self._rows = rows
        self._task = task
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._batch_size = batch_size
        self._eval_batch_size = eval_batch_size
        self._seed = seed
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._budget = MemoryBudget(0.0) if budget is None else budget
        self._limit: tuple[Any, int | float] | None = None
        # One key per split: other validation rows leave everything that is made of the training rows as it was.
        keys = {
            split: content_key(
                {
                    "format": FORMAT,
                    "rows": fingerprint,
                    "tokenizer": tokenizer_key,
                    **self._examples.settings,
                }
            )
            for split, fingerprint in rows.fingerprints.items()
        }
        if "train" in keys:
            # What depends on the rows with a label alone, like a teacher, is the same whatever other rows there are.
            self.labelled_key: str = keys["train"]
            if rows.unlabelled is not None:
                keys["train"] = content_key([keys["train"], rows.unlabelled.fingerprint])
        self.keys = keys
        self._folders = {split: cache_dir / "tokenised" / key for split, key in keys.items()}

    @property
    def key(self) -> str:
        """Hash of the training rows and of what turns them into tokens."""
        return self.keys["train"]

    @property
    def n_train(self) -> int:
        """Count the training examples: windows where answers are spans, rows otherwise, with and without a label."""
        return len(self._tokens["train"])

    @property
    def n_labelled(self) -> int:
        """Count the training examples that have a label."""
        return len(self._tokens["train"].labelled())

    @property
    def train_labels(self) -> Tensor | None:
        """Return the training labels, indexed by ``example_id``.

        int64 classes ``(n,)``, float32 values ``(n,)``, int64 first and last tokens of the answers ``(n, 2)``, or
        int8 marks of the labels of a text ``(n, labels)``;
        ``NO_LABEL`` where there is none. None where the words of an example have a label each, or no text has one.
        """
        return self._tokens["train"].labels

    @property
    def train_groups(self) -> Tensor | None:
        """Return the row number of each training window's question; None where every row is one example."""
        return self._tokens["train"].groups

    def metrics(self) -> dict[str, Metrics]:
        """Make fresh metrics for every validation split, in the task's order."""
        return {
            split: self._examples.metrics(self._rows.splits[split], self._arrays[split], suffix=suffix)
            for split, suffix in split_suffixes(self._task).items()
        }

    def majority(self) -> dict[str, float]:
        """Score the model that learned nothing on every validation split, by the names that the metrics give."""
        return majority_of(self._task, self._rows)

    def n_full(self) -> dict[str, tuple[int, int]]:
        """Count by split the examples that fill ``max_length``, of all; empty where longer ones are not cut."""
        if self._task.kind in ("span", "tags"):  # which are windows, or say themselves which words are lost
            return {}
        lengths = {split: tokens.lengths for split, tokens in self._tokens.items()}
        return {split: (int((each >= self._max_length).sum()), len(each)) for split, each in lengths.items()}

    def labelled(self) -> CapDataModule:
        """Return a data module that trains on the rows with a label alone: the same batches as without the others."""
        part = copy.copy(self)
        part.keys = {**self.keys, "train": self.labelled_key}
        part._tokens = {**self._tokens, "train": self._tokens["train"].labelled()}
        return part

    def setup(self, stage: str | None = None) -> None:  # noqa: D102 - Lightning's hook
        _ = self._tokens

    def require_embedded(self, config: PretrainedConfig) -> None:
        """Check that a model has an embedding for every token, see ``cap.data.tokens.require_embedded``."""
        require_embedded(self._tokens.values(), self._tokenizer, config)

    def transfer_batch_to_device(  # noqa: D102 - Lightning's hook
        self, batch: dict[str, Tensor], device: torch.device, dataloader_idx: int
    ) -> dict[str, Tensor]:
        return on_device(batch, device)

    def train_dataloader(self) -> DataLoader:  # noqa: D102 - Lightning's hook
        return self._train_loader(self._tokens["train"])

    def labelled_dataloader(self) -> DataLoader:
        """Make a loader of training batches of the rows with a label alone; processes share it as those of training."""
        return self._train_loader(self._tokens["train"].labelled())

    def dataloader_in_turns(self, batch_rows: int, order: int) -> DataLoader:
        """Make a loader of training rows with a label, in batches of another size; processes take whole ones in turn.

        Args:
            batch_rows: Rows of a batch; one that is not full is left out, unless there is no other.
            order: With the seed, fixes the order, >= 0.
        """
        tokens = self._tokens["train"].labelled()
        rank, size = self._place
        sampler = self._shuffled(tokens, batch_rows)
        sampler.set_epoch(order)
        batches = [batch for batch in sampler if len(batch) == min(batch_rows, len(tokens))]
        return self._loader(tokens, batches[rank::size], DataLoader)

    def val_dataloader(self) -> list[DataLoader]:  # noqa: D102 - Lightning's hook
        return list(self.limited_dataloaders().values())

    def limited_dataloaders(self) -> dict[str, DataLoader]:
        """Make a loader per validation split of the rows that are scored while a model trains, longest first.

        ``trainer.limit_val_batches`` says how many; they are drawn once for all runs. Several processes share them.

        Raises:
            InputError: If none are left, or fewer than processes.
        """
        rank, size = self._place
        rows = self._limited_rows()
        n_rows = max(map(len, rows.values()))
        if n_rows < size:
            raise InputError(
                f"validation rows are shared by all processes, so that there must be as many as processes at least, "
                f"got {n_rows} for trainer.devices x trainer.num_nodes = {size}; use fewer processes, more rows "
                f"or a higher trainer.limit_val_batches"
            )
        return {split: self._busy_loader(split, limited, rank, size) for split, limited in rows.items()}

    def limited_share(self) -> float:
        """Return the fraction of the validation rows that ``limited_dataloaders`` gives."""
        n_limited = sum(map(len, self._limited_rows().values()))
        return n_limited / sum(len(self._tokens[split]) for split in self._task.validation_splits)

    def eval_dataloaders(self, rank: int = 0, size: int = 1) -> dict[str, DataLoader]:
        """Make a loader per validation split, in the task's order, longest examples first.

        Args:
            rank: Which of the processes that share the rows asks.
            size: How many they are; together their loaders give every row once.
        """
        return {split: self._sorted_loader(split, rank, size) for split in self._task.validation_splits}

    def encoding_dataloader(self, rank: int = 0, size: int = 1) -> DataLoader:
        """Make a loader of every training example once, longest first.

        Args:
            rank: Which of the processes that share the examples asks.
            size: How many they are; together their loaders give the very batches of one process.
        """
        return self._sorted_loader("train", rank, size)

    @property
    def _place(self) -> tuple[int, int]:
        """The rank of this process in training, and how many there are."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _take_limit(self) -> int | float:
        """Return ``limit_val_batches``, and keep the trainer from applying it once more.

        It would apply it to what each process has, and to the batches in their order: the longest rows.
        """
        trainer: Any = self.trainer
        if trainer is None or trainer.limit_val_batches == 0:
            return 1.0  # nothing is validated, so nothing is limited
        if self._limit is None or self._limit[0] is not trainer:
            self._limit = (trainer, trainer.limit_val_batches)
            trainer.limit_val_batches = 1.0
        return self._limit[1]

    def _limited_rows(self) -> dict[str, Tensor]:
        """Choose the rows of each validation split that are scored during training, longest first."""
        limit = self._take_limit()
        chosen = {}
        for split in self._task.validation_splits:
            tokens = self._tokens[split]
            rows = representative_rows(len(tokens), self.n_validated(split, limit), tokens.groups)
            chosen[split] = rows[tokens.lengths[rows].argsort(descending=True, stable=True)]
        return chosen

    def n_validated(self, split: str, limit: int | float) -> int:
        """Count the rows of the batches that a validation is limited to.

        Args:
            split: A validation split.
            limit: As ``trainer.limit_val_batches``, but not 0.

        Raises:
            InputError: If none is left.
        """
        n_rows, batch_size = len(self._tokens[split]), self._eval_batch_size
        n_batches = -(-n_rows // batch_size)
        # As Lightning reads it: a whole number counts batches, any other is a fraction of them.
        n_limited = min(n_batches, limit) if isinstance(limit, int) else int(n_batches * limit)
        if n_limited == 0 and n_batches > 0:
            raise InputError(
                f"trainer.limit_val_batches must leave at least one of the {n_batches} batches of the split {split}, "
                f"got {limit}; set {math.ceil(1000 / n_batches) / 1000} or more, or 0 to leave validation out"
            )
        return min(n_rows, n_limited * batch_size)

    def _train_loader(self, tokens: TokenRows) -> DataLoader:
        rank, size = self._place
        if self._batch_size is None:
            raise ValueError("training needs a batch_size, got None")
        return self._loader(tokens, self._shuffled(tokens, self._batch_size, rank, size), ResumableLoader)

    def _shuffled(self, tokens: TokenRows, batch_size: int, rank: int = 0, size: int = 1) -> LengthGroupedBatchSampler:
        return LengthGroupedBatchSampler(
            tokens.lengths,
            batch_size,
            self._seed,
            shuffle=True,
            num_replicas=size,
            rank=rank,
            classes=tokens.labels if self._task.kind == "classes" else None,
        )

    def _sorted_loader(self, split: str, rank: int = 0, size: int = 1) -> DataLoader:
        tokens = self._tokens[split]
        return self._loader(tokens, self._in_turns(tokens.lengths, self._eval_batch_size, rank, size), DataLoader)

    def _busy_loader(self, split: str, rows: Tensor, rank: int, size: int) -> DataLoader:
        """Share rows of a split, longest first, so that every process has a batch, if there are enough of them."""
        tokens, batch_size = self._tokens[split], self._eval_batch_size
        if len(rows) <= batch_size * (size - 1):
            # Lightning passes over the end of a validation in which a process has no batch, where the others wait.
            batch_size = max(1, len(rows) // size)
        sampler = self._in_turns(tokens.lengths[rows], batch_size, rank, size)
        return self._loader(Subset(tokens, rows.tolist()), sampler, DataLoader)

    def _in_turns(self, lengths: Tensor, batch_size: int, rank: int, size: int) -> LengthGroupedBatchSampler:
        return LengthGroupedBatchSampler(lengths, batch_size, self._seed, shuffle=False, num_replicas=size, rank=rank)

    def _loader(
        self,
        tokens: Dataset[dict[str, Tensor]],
        sampler: LengthGroupedBatchSampler | list[list[int]],
        kind: type[DataLoader],
    ) -> DataLoader:
        return kind(
            tokens,
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=self._num_workers,
            pin_memory=self._pin_memory,
            # Its own: a loader draws a seed for its workers, and would take it from the stream that dropout draws from.
            generator=torch.Generator(),
        )

    @cached_property
    def _tokens(self) -> dict[str, TokenRows]:
        return {split: self._tokens_of(split, folder) for split, folder in self._arrays.items()}

    def _tokens_of(self, split: str, folder: Path) -> TokenRows:
        labels = self._examples.labels(self._rows.splits[split], folder)
        n_labelled = None
        if split == "train" and self._rows.unlabelled is not None:
            assert labels is not None  # other rows without labels are refused where each word has one, or none
            n_labelled = len(labels)
            labels = torch.cat(
                [labels, labels.new_full((len(self._rows.unlabelled.rows), *labels.shape[1:]), NO_LABEL)]
            )
        groups = self._examples.groups(folder)
        return TokenRows(folder, labels, self._tokenizer, budget=self._budget, n_labelled=n_labelled, groups=groups)

    @cached_property
    def _arrays(self) -> dict[str, Path]:
        """The folder of each split's arrays, made if the cache lacks it."""
        return {split: self._arrays_of(split, folder) for split, folder in self._folders.items()}

    def _arrays_of(self, split: str, folder: Path) -> Path:
        def tokenise(aside: Path) -> None:
            where = f"the split {split} of {self._rows.source}"
            self._examples.tokenise(self._texts_of(split), aside / "tokens", where=where)

        CacheEntry(folder, f"tokens of the {split} rows", seal="files.json").ensure(tokenise)
        return folder / "tokens"

    def _texts_of(self, split: str) -> datasets.Dataset:
        rows = self._rows.splits[split]
        if split != "train" or self._rows.unlabelled is None:
            return rows
        return datasets.concatenate_datasets(
            [rows.select_columns([*self._task.text_columns]), self._rows.unlabelled.rows]
        )


def _as_it_is(batch: Any) -> Any:
    return batch


__all__ = ["NO_LABEL", "CapDataModule"]
