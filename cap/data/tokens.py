"""Tokens of a split's rows, end to end in files of numbers, and padded batches of them."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from cap.storage import file_sha256, read_json, write_json

_log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every cache key: raise it when the files change their meaning."""
_ROWS_PER_CALL = 2000
# Below this a bar would be gone before it was seen.
_ROWS_WORTH_A_BAR = 20_000


def tokenise(
    rows: datasets.Dataset,
    folder: Path,
    *,
    text_columns: tuple[str, ...],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> None:
    """Write the tokens of every row: one flat int32 array per tokenizer output, and the rows' lengths.

    Args:
        rows: Rows with the text columns.
        folder: New folder for the arrays.
        text_columns: One column of single texts, or two of pairs.
        tokenizer: What turns them into tokens.
        max_length: Longest row in tokens; of a pair the longer text is cut first.
    """
    _log.info("tokenising %s rows", f"{rows.num_rows:,}")
    started = time.perf_counter()
    parts: dict[str, list[np.ndarray]] = {}
    is_quiet = rows.num_rows < _ROWS_WORTH_A_BAR or not sys.stderr.isatty()
    starts = range(0, rows.num_rows, _ROWS_PER_CALL)
    bar = track(starts, "tokenising", console=Console(stderr=True), transient=True, disable=is_quiet)
    for start in bar:
        texts = rows[start : start + _ROWS_PER_CALL]
        encoded = tokenizer(
            *(list(texts[column]) for column in text_columns),
            truncation="longest_first",
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
        )
        lengths = np.fromiter(map(len, encoded["input_ids"]), dtype=np.int64)
        parts.setdefault("lengths", []).append(lengths)
        for name, lists in encoded.items():
            parts.setdefault(name, []).append(np.concatenate([np.asarray(ids, dtype=np.int32) for ids in lists]))
    folder.mkdir()
    for name, arrays in parts.items():
        np.save(folder / f"{name}.npy", np.concatenate(arrays), allow_pickle=False)
    _log.info("tokenised in %.1f s", time.perf_counter() - started)


class TokenRows(Dataset[dict[str, Tensor]]):
    """Gather padded batches of one split from memory-mapped arrays.

    Args:
        folder: What ``tokenise`` wrote.
        labels: The rows' labels, indexed by row number.
        tokenizer: Says what padding is.
    """

    def __init__(self, folder: Path, labels: Tensor, tokenizer: PreTrainedTokenizerBase) -> None:
        lengths = np.load(folder / "lengths.npy", allow_pickle=False)
        self.lengths = torch.from_numpy(lengths)
        self._lengths = lengths
        self._starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self._labels = labels
        padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        self._columns = {
            name: (np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False), value)
            for name, value in padding.items()
            if (folder / f"{name}.npy").is_file()
        }

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return self.__getitems__([row])

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        """Gather a batch; a loader calls this with all row numbers of it at once."""
        example_id = np.asarray(rows, dtype=np.int64)
        lengths = self._lengths[example_id]
        columns = np.arange(lengths.max())
        is_token = columns < lengths[:, None]  # (batch, longest)
        # Positions behind a row's end would lie in the next row, or behind the last: point them at the row's start.
        positions = self._starts[example_id][:, None] + np.where(is_token, columns, 0)
        batch = {
            name: torch.from_numpy(np.where(is_token, tokens[positions], padding).astype(np.int64))
            for name, (tokens, padding) in self._columns.items()
        }
        batch["attention_mask"] = torch.from_numpy(is_token.astype(np.int64))
        batch["example_id"] = torch.from_numpy(example_id)
        batch["labels"] = self._labels[batch["example_id"]]
        return batch


def seal(folder: Path) -> None:
    """List the hashes of a folder's arrays in it.

    Args:
        folder: With one folder of arrays per split.
    """
    files = sorted(path for path in folder.rglob("*.npy"))
    write_json(folder / "files.json", {path.relative_to(folder).as_posix(): file_sha256(path) for path in files})


def is_whole(folder: Path) -> bool:
    """Say whether a cache entry exists and every file in it is what was written; damage is logged.

    Args:
        folder: What ``seal`` was called on.
    """
    if not folder.exists():
        return False
    try:
        files = read_json(folder / "files.json")
        whole = bool(files) and all(file_sha256(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError, AttributeError):
        whole = False
    if not whole:
        _log.warning("tokenised rows %s in the cache are damaged and are made again", folder.name)
    return whole


__all__ = ["FORMAT", "TokenRows", "is_whole", "seal", "tokenise"]
