"""What the processes of a run encoded, each its share of the rows, put together in the order of example_id."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from cap.base.errors import RunError
from cap.base.files import GrowingArray
from cap.training.parallel.ranks import Ranks

T = TypeVar("T")

ENCODINGS = "encodings.npy"
LOGITS = "logits.npy"
LENGTHS = "lengths.npy"
HIDDEN = "hidden.npy"
_EXAMPLE_ID = "example_id.npy"
# Rows that are put together at a time: a few MB.
_CHUNK = 4096


class ShareWriter:
    """Write down what one process encodes, batch by batch.

    Args:
        folder: A new folder for the share.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._files = ExitStack()
        self._encodings = self._files.enter_context(GrowingArray(folder / ENCODINGS))
        self._logits = self._files.enter_context(GrowingArray(folder / LOGITS))
        self._hidden = self._files.enter_context(GrowingArray(folder / HIDDEN))
        self._example_id: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []

    def __enter__(self) -> ShareWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._files.__exit__(kind, error, trace)
        if error is None:
            np.save(self._folder / _EXAMPLE_ID, np.concatenate([np.empty(0, dtype=np.int64), *self._example_id]))
            if self._lengths:
                np.save(self._folder / LENGTHS, np.concatenate(self._lengths))

    def append(
        self,
        example_id: np.ndarray,
        encodings: np.ndarray,
        *,
        logits: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
        hidden: np.ndarray | None = None,
    ) -> None:
        """Write one batch.

        Args:
            example_id: Which examples they are, int64.
            encodings: One row each.
            logits: One row each, or of spans and tags one row for each of their tokens; None if they are not read.
            lengths: Of spans and tags: the tokens of each example, int64.
            hidden: One row of all layers each; None if they are not read.
        """
        self._example_id.append(example_id)
        self._encodings.append(encodings)
        if logits is not None:
            self._logits.append(logits)
        if lengths is not None:
            self._lengths.append(lengths)
        if hidden is not None:
            self._hidden.append(hidden)


class Shares:
    """Read the shares of all processes as one set of rows, in the order of example_id.

    Args:
        folders: What a ``ShareWriter`` of each process wrote.

    Raises:
        ValueError: If they do not hold every row exactly once.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        ids = [np.load(folder / _EXAMPLE_ID, allow_pickle=False) for folder in folders]
        # Shares without rows have no other files either.
        self._folders = [folder for folder, own in zip(folders, ids, strict=True) if len(own)]
        ids = [own for own in ids if len(own)]
        example_id = np.concatenate([np.empty(0, dtype=np.int64), *ids])
        self._order = example_id.argsort(kind="stable")
        if not ids or not np.array_equal(example_id[self._order], np.arange(len(example_id))):
            raise ValueError("encoding needs every training row exactly once, numbered from 0")
        self._share = np.repeat(np.arange(len(ids)), [len(own) for own in ids])[self._order]
        self._n_rows = [len(own) for own in ids]

    @property
    def names(self) -> list[str]:
        """List the files that the shares hold parts of."""
        return [name for name in (ENCODINGS, LOGITS, LENGTHS, HIDDEN) if (self._folders[0] / name).exists()]

    def write(self, name: str, path: Path) -> None:
        """Put the parts of one file together.

        Args:
            name: One of ``names``.
            path: The ``.npy`` file to write; of spans and tags the logits of all tokens, example by example.
        """
        parts = [np.load(folder / name, mmap_mode="r", allow_pickle=False) for folder in self._folders]
        starts, lengths = self._extents(by_token=name == LOGITS and LENGTHS in self.names)
        with GrowingArray(path) as out:
            for first in range(0, len(self._order), _CHUNK):
                chunk = slice(first, first + _CHUNK)
                out.append(_gathered(parts, self._share[chunk], starts[chunk], lengths[chunk]))

    def _extents(self, *, by_token: bool) -> tuple[np.ndarray, np.ndarray]:
        """Say where in its share each example's rows begin, and how many they are, both by example_id."""
        own = [np.ones(n_rows, dtype=np.int64) for n_rows in self._n_rows]
        if by_token:
            own = [np.load(folder / LENGTHS, allow_pickle=False) for folder in self._folders]
        starts = np.concatenate([lengths.cumsum() - lengths for lengths in own])
        return starts[self._order], np.concatenate(own)[self._order]


def _gathered(parts: list[np.ndarray], share: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Copy some examples' rows, each example's from the part it lies in."""
    before = lengths.cumsum() - lengths  # rows of the examples before, in what is returned
    position = np.repeat(starts - before, lengths) + np.arange(lengths.sum())
    source = np.repeat(share, lengths)
    rows = np.empty((len(position), *parts[0].shape[1:]), dtype=parts[0].dtype)
    for number, part in enumerate(parts):
        is_here = source == number
        rows[is_here] = part[position[is_here]]
    return rows


@contextmanager
def share_folder(path: Path, ranks: Ranks) -> Iterator[Path]:
    """Make a folder for shares beside the file or folder that they will become, and remove it afterwards.

    Args:
        path: What the shares will become. No other run makes it meanwhile, so that what such a folder still holds
            is left over from one that was killed; it is removed.
        ranks: The processes, all of which see the folder.

    Yields:
        The folder, the same on every process.
    """
    prefix = f".{path.name}.shares."

    def make() -> str:
        if not ranks.is_first:
            return ""
        path.parent.mkdir(parents=True, exist_ok=True)
        for left_over in [found for found in path.parent.iterdir() if found.name.startswith(prefix)]:
            shutil.rmtree(left_over, ignore_errors=True)
        return tempfile.mkdtemp(dir=path.parent, prefix=prefix)

    folder = Path(together(ranks, make, what="making room for encodings")[0])
    try:
        yield folder
    finally:
        if ranks.is_first:
            shutil.rmtree(folder, ignore_errors=True)


def together(ranks: Ranks, work: Callable[[], T], *, what: str) -> list[T]:
    """Do a piece of work on every process and wait for all; where it fails on one, it fails on all.

    Args:
        ranks: The processes.
        work: What this process does; talks to no other.
        what: The work in words, for the message.

    Returns:
        What came out on every process, in their order; small and picklable.

    Raises:
        RunError: If it failed on another process; what fails on this one is raised as it is.
    """
    try:
        result = work()
    except Exception as error:
        ranks.gather((f"{type(error).__name__}: {error}", None))
        raise
    outcomes: list[tuple[str | None, T]] = ranks.gather((None, result))
    failed = [f"rank {rank} failed ({error})" for rank, (error, _) in enumerate(outcomes) if error is not None]
    if failed:
        raise RunError(f"{what} needs every process of the run, but {', '.join(failed)}; mend that and repeat")
    return [value for _, value in outcomes]


__all__ = ["ENCODINGS", "HIDDEN", "LENGTHS", "LOGITS", "ShareWriter", "Shares", "share_folder", "together"]
