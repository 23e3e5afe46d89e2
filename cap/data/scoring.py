"""Validation rows alone, for a model that is scored and not trained."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cap.data.datamodule import CapDataModule
from cap.data.sources import Rows
from cap.data.tasks import Task


def scoring_rows(
    task: Task,
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    tokenizer_key: str,
    max_length: int,
    stride: int | None,
    eval_batch_size: int,
    cache_dir: Path,
) -> CapDataModule:
    """Tokenise the validation rows alone, for a model that is scored and not trained.

    Raises:
        InputError: If ``max_length`` does not fit the tokenizer or the rows.
    """
    # Rows that are tokenised anyway stand in for those that the data module would train on.
    origin = {**{split: split for split in task.validation_splits}, "train": task.validation_splits[0]}
    scored = Rows(
        {split: rows.splits[source] for split, source in origin.items()},
        rows.source,
        {split: rows.fingerprints[source] for split, source in origin.items()},
    )
    module = CapDataModule(
        rows=scored,
        task=task,
        tokenizer=tokenizer,
        tokenizer_key=tokenizer_key,
        max_length=max_length,
        stride=stride,
        batch_size=eval_batch_size,
        eval_batch_size=eval_batch_size,
        seed=0,
        cache_dir=cache_dir,
    )
    module.setup()
    return module


__all__ = ["scoring_rows"]
