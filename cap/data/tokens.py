"""Tokens of a split's examples, end to end in files of numbers, and padded batches of them."""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from cap.base.errors import InputError
from cap.base.files import GrowingArray
from cap.base.memory_budget import MemoryBudget

log = logging.getLogger(__name__)

NO_LABEL = -100
"""Stands in place of a missing label: what torch's cross-entropy ignores, and no class."""
FORMAT = 1
"""Part of every cache key: raise it when the files change their meaning."""
_NUMBERED = ("input_ids", "token_type_ids")
_ROWS_PER_CALL = 2000
# Below this a bar would be gone before it was seen.
_ROWS_WORTH_A_BAR = 20_000


def check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, max_length: int, *, shortest: int, room_for: str = "a row"
) -> None:
    """Check that padded batches of a length can be made.

    Args:
        tokenizer: The one that will make them.
        max_length: Longest example in tokens, special ones included.
        shortest: The least length that leaves room for anything.
        room_for: What needs that room, for the message.

    Raises:
        InputError: If the tokenizer has no padding token, or the length is too short or more than its model reads.
    """
    if tokenizer.pad_token_id is None:
        raise InputError(
            f"batches need a padding token and the tokenizer {tokenizer.name_or_path!r} has none; choose another model"
        )
    if not shortest <= max_length <= tokenizer.model_max_length:
        raise InputError(
            f"max_length counts the tokens of one example, which must hold {room_for}, and must lie between "
            f"{shortest} and what the model reads ({tokenizer.model_max_length}), got {max_length}"
        )


def require_embedded(splits: Iterable[TokenRows], tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Check that a model has an embedding for every number that its tokenizer has given.

    Args:
        splits: The tokens of all rows.
        tokenizer: What made them.
        config: The model's.

    Raises:
        InputError: If it lacks one: the first batch with such a token would fail, in the middle of a run.
    """
    found, n_types = [*splits], getattr(config, "type_vocab_size", None) or 0
    highest, of_type = (max((split.highest(name) for split in found), default=-1) for name in _NUMBERED)
    if highest >= config.vocab_size:
        raise InputError(
            f"the model must have an embedding for every token, got {config.vocab_size:,} and the token "
            f"{tokenizer.convert_ids_to_tokens(highest)!r} with the number {highest:,}: tokens were added to the "
            f"tokenizer alone; call model.resize_token_embeddings(len(tokenizer)) and save both again"
        )
    if 0 < n_types <= of_type:
        raise InputError(
            f"the model must have an embedding for every token type, got {n_types} and the type {of_type} from its "
            f"tokenizer; take token_type_ids out of model_input_names in tokenizer_config.json"
        )


_Encode = Callable[[dict[str, list[Any]], int], dict[str, np.ndarray]]


def write_arrays(rows: datasets.Dataset, folder: Path, encode: _Encode) -> dict[str, np.ndarray]:
    """Encode rows part by part, and write the parts of every array end to end; one part is in memory at a time.

    Args:
        rows: What to encode.
        folder: New folder for the arrays.
        encode: Makes arrays of the columns of some rows and the number of the first of them.

    Returns:
        The arrays that were written, by name, memory-mapped.
    """
    log.info("tokenising %s rows", f"{rows.num_rows:,}")
    started = time.perf_counter()
    is_quiet = rows.num_rows < _ROWS_WORTH_A_BAR or not sys.stderr.isatty()
    starts = range(0, rows.num_rows, _ROWS_PER_CALL)
    bar = track(starts, "tokenising", console=Console(stderr=True), transient=True, disable=is_quiet)
    folder.mkdir()
    growing: dict[str, GrowingArray] = {}
    with ExitStack() as files:
        for start in bar:
            for name, array in encode(rows[start : start + _ROWS_PER_CALL], start).items():
                if name not in growing:
                    growing[name] = files.enter_context(GrowingArray(folder / f"{name}.npy"))
                growing[name].append(array)
    log.info("tokenised in %.1f s", time.perf_counter() - started)
    return {name: read_array(folder, name) for name in growing}


def flatten(encoded: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Lay a tokenizer's lists end to end, int32, and add their ``lengths``, int64."""
    lengths = np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64)
    flat = {name: np.concatenate([np.asarray(ids, dtype=np.int32) for ids in lists]) for name, lists in encoded.items()}
    return {"lengths": lengths, **flat}


def read_array(folder: Path, name: str) -> np.ndarray:
    """Map one of a folder's arrays into memory, read-only."""
    array: np.ndarray = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    return array


class Layout:
    """Say where the tokens of each example lie in a flat array.

    Args:
        lengths: Tokens of every example.
    """

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths = lengths
        self.starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])

    def places(self, example_id: np.ndarray, *, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Find the tokens of some examples, as a rectangle.

        Args:
            example_id: Their numbers.
            width: Columns of the rectangle; None takes the longest of the examples.

        Returns:
            Positions in the flat array and where they are tokens, not padding; both ``(examples, width)``.
        """
        lengths = self.lengths[example_id]
        columns = np.arange(lengths.max() if width is None else width)
        is_token = columns < lengths[:, None]
        # Positions behind a row's end would lie in the next row, or behind the last: point them at the row's start.
        return self.starts[example_id][:, None] + np.where(is_token, columns, 0), is_token


class TokenRows(Dataset[dict[str, Tensor]]):
    """Gather padded batches of one split from arrays in memory or on disk.

    Args:
        folder: What ``write_arrays`` wrote.
        labels: The examples' labels, indexed by example number; None where there are none, or where every word has one,
            which lie beside the tokens: batches then say in ``is_word`` which tokens have a label.
        tokenizer: Says what padding is.
        budget: Decides which columns of tokens are read into memory; what is needed whole is counted in it.
        n_labelled: The examples before this number have a label, the others none: batches then say which in
            ``is_labelled``. None where all have one.
        groups: What the examples belong to, indexed by example number; None where examples stand alone.
    """

    def __init__(
        self,
        folder: Path,
        labels: Tensor | None,
        tokenizer: PreTrainedTokenizerBase,
        *,
        budget: MemoryBudget,
        n_labelled: int | None = None,
        groups: Tensor | None = None,
    ) -> None:
        self._layout = Layout(np.load(folder / "lengths.npy", allow_pickle=False))
        self.lengths = torch.from_numpy(self._layout.lengths)
        self.labels = labels
        self.n_labelled = n_labelled
        self.groups = groups
        given = [each for each in (labels, groups) if each is not None]
        budget.hold(self._layout.lengths, self._layout.starts, *given)
        padding = {
            "input_ids": tokenizer.pad_token_id,
            "token_type_ids": tokenizer.pad_token_type_id,
            "labels": NO_LABEL,
        }
        self._columns = {
            name: (budget.open_array(folder / f"{name}.npy"), value)
            for name, value in padding.items()
            if (folder / f"{name}.npy").is_file()
        }

    def labelled(self) -> TokenRows:
        """Return the examples that have a label, from the same arrays."""
        part = copy.copy(self)
        part.lengths = self.lengths[: self.n_labelled]
        part.labels = None if self.labels is None else self.labels[: self.n_labelled]
        part.n_labelled = None
        return part

    def highest(self, name: str) -> int:
        """Return the largest number in a column of tokens; -1 where there is none."""
        column = self._columns.get(name)
        return -1 if column is None or len(column[0]) == 0 else int(column[0].max())

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return self.__getitems__([row])

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        """Gather a batch; a loader calls this with all row numbers of it at once."""
        example_id = np.asarray(rows, dtype=np.int64)
        positions, is_token = self._layout.places(example_id)
        batch = {
            name: torch.from_numpy(np.where(is_token, tokens[positions], padding).astype(np.int64))
            for name, (tokens, padding) in self._columns.items()
        }
        batch["attention_mask"] = torch.from_numpy(is_token.astype(np.int64))
        batch["example_id"] = torch.from_numpy(example_id)
        if self.labels is not None:
            batch["labels"] = self.labels[batch["example_id"]]
        elif "labels" in batch:
            batch["is_word"] = batch["labels"] != NO_LABEL
        if self.n_labelled is not None:
            batch["is_labelled"] = batch["example_id"] < self.n_labelled
        return batch


__all__ = [
    "FORMAT",
    "NO_LABEL",
    "Layout",
    "TokenRows",
    "check_tokenizer",
    "flatten",
    "read_array",
    "require_embedded",
    "write_arrays",
]
