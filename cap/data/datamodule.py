"""Tokenised rows, cached by content, served in batches that are padded to their own longest row."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from cap.data.sampler import LengthGroupedBatchSampler
from cap.data.sources import Rows
from cap.data.tasks import Task
from cap.data.tokens import FORMAT, TokenRows, is_whole, seal, tokenise
from cap.errors import InputError
from cap.storage import atomic_folder, content_key, locked


class CapDataModule(LightningDataModule):
    """Serve a task's rows as padded batches of tokens.

    Every batch is a dict of tensors: ``input_ids``, ``attention_mask``, ``token_type_ids`` if the tokenizer gives
    them, ``labels``, ``example_id``. Under several processes the training batches are shared out here and every
    process scores all validation rows, so the trainer must not insert samplers of its own
    (``use_distributed_sampler=False``).

    Args:
        rows: Where the texts and labels come from.
        task: Which columns a model reads.
        tokenizer: Turns texts into tokens; pairs are truncated ``longest_first``.
        tokenizer_key: Content hash of the tokenizer, for the names of cache entries.
        max_length: Longest row in tokens, special ones included.
        batch_size: Training rows per batch and process.
        eval_batch_size: Rows per batch where nothing is learned.
        seed: Fixes the order of the training batches.
        cache_dir: Folder of all caches; tokens go to ``tokenised/<key>`` in it.
        num_workers: Processes that prepare batches; 0 prepares them in this one.

    Raises:
        InputError: If ``max_length`` is more than the tokenizer's model can read or leaves no room for text, or if
            the tokenizer has no padding token.
    """

    def __init__(
        self,
        *,
        rows: Rows,
        task: Task,
        tokenizer: PreTrainedTokenizerBase,
        tokenizer_key: str,
        max_length: int,
        batch_size: int,
        eval_batch_size: int = 64,
        seed: int,
        cache_dir: Path,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        _check_tokenizer(tokenizer, max_length, n_texts=len(task.text_columns))
        self._rows = rows
        self._task = task
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._batch_size = batch_size
        self._eval_batch_size = eval_batch_size
        self._seed = seed
        self._num_workers = num_workers
        # One key per split: other validation rows leave everything that is made of the training rows as it was.
        keys = {
            split: content_key(
                {
                    "format": FORMAT,
                    "rows": fingerprint,
                    "tokenizer": tokenizer_key,
                    "max_length": max_length,
                    "text_columns": task.text_columns,
                }
            )
            for split, fingerprint in rows.fingerprints.items()
        }
        self.key: str = keys["train"]
        self._folders = {split: cache_dir / "tokenised" / key for split, key in keys.items()}

    @property
    def n_train(self) -> int:
        """Count the training rows."""
        return len(self._rows.splits["train"])

    @cached_property
    def train_labels(self) -> Tensor:
        """Return the training labels, indexed by ``example_id``: int64 classes or float32 values."""
        return self._labels("train")

    def validation_labels(self, split: str) -> Tensor:
        """Return the labels of one validation split, indexed by ``example_id``.

        Args:
            split: One of the task's validation splits.
        """
        return self._labels(split)

    def setup(self, stage: str | None = None) -> None:  # noqa: D102 - Lightning's hook
        _ = self._tokens

    def train_dataloader(self) -> DataLoader:  # noqa: D102 - Lightning's hook
        trainer = self.trainer
        sampler = LengthGroupedBatchSampler(
            self._tokens["train"].lengths,
            self._batch_size,
            self._seed,
            shuffle=True,
            num_replicas=trainer.world_size if trainer else 1,
            rank=trainer.global_rank if trainer else 0,
        )
        return self._loader("train", sampler, _ResumableLoader)

    def val_dataloader(self) -> list[DataLoader]:  # noqa: D102 - Lightning's hook
        return list(self.eval_dataloaders().values())

    def eval_dataloaders(self) -> dict[str, DataLoader]:
        """Return a loader per validation split, in the task's order, longest rows first."""
        return {split: self._sorted_loader(split) for split in self._task.validation_splits}

    def encoding_dataloader(self) -> DataLoader:
        """Return a loader that gives every training row once, longest rows first, on every process."""
        return self._sorted_loader("train")

    def _sorted_loader(self, split: str) -> DataLoader:
        sampler = LengthGroupedBatchSampler(
            self._tokens[split].lengths, self._eval_batch_size, self._seed, shuffle=False
        )
        return self._loader(split, sampler, DataLoader)

    def _loader(self, split: str, sampler: LengthGroupedBatchSampler, kind: type[DataLoader]) -> DataLoader:
        return kind(
            self._tokens[split],
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=self._num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    def _labels(self, split: str) -> Tensor:
        values = self._rows.splits[split].data.column("label").to_numpy()
        return torch.from_numpy(np.array(values, dtype=np.float32 if self._task.kind == "number" else np.int64))

    @cached_property
    def _tokens(self) -> dict[str, TokenRows]:
        return {split: self._tokens_of(split, folder) for split, folder in self._folders.items()}

    def _tokens_of(self, split: str, folder: Path) -> TokenRows:
        with locked(folder):
            if not is_whole(folder):
                with atomic_folder(folder) as temporary:
                    tokenise(
                        self._rows.splits[split],
                        temporary / "tokens",
                        text_columns=self._task.text_columns,
                        tokenizer=self._tokenizer,
                        max_length=self._max_length,
                    )
                    seal(temporary)
        return TokenRows(folder / "tokens", self._labels(split), self._tokenizer)


class _ResumableLoader(DataLoader[dict[str, Tensor]]):
    """A loader that Lightning saves in a checkpoint and that continues in the middle of an epoch."""

    _n_taken = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        # A generator starts at the first batch: Lightning makes the iterator before it sets the sampler's epoch.
        sampler = self._length_sampler
        self._n_taken = sampler.n_skipped
        for batch in super().__iter__():
            self._n_taken += 1
            yield batch

    @property
    def _length_sampler(self) -> LengthGroupedBatchSampler:
        assert isinstance(self.batch_sampler, LengthGroupedBatchSampler)
        return self.batch_sampler

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._length_sampler.epoch, "n_batches": self._n_taken}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._n_taken = state_dict["n_batches"]
        self._length_sampler.resume(state_dict["epoch"], self._n_taken)


def _as_it_is(batch: Any) -> Any:
    return batch


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, max_length: int, *, n_texts: int) -> None:
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"batches need a padding token and the tokenizer {tokenizer.name_or_path!r} has none; choose another model"
        )
    shortest = tokenizer.num_special_tokens_to_add(pair=n_texts == 2) + n_texts
    if not shortest <= max_length <= tokenizer.model_max_length:
        raise InputError(
            f"max_length counts the tokens of one row and must lie between {shortest} and what the model reads "
            f"({tokenizer.model_max_length}), got {max_length}"
        )


__all__ = ["CapDataModule"]
