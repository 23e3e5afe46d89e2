"""Batches of rows of similar length, in an order that a seed and an epoch fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Sampler

from cap.base.errors import InputError

# Of 32 rows a batch, a hundred batches at once cost 9 % of padding on QQP and 8 % on SST-2, ten cost 24 % and 28 %.
_BATCHES_PER_CHUNK = 100


class LengthGroupedBatchSampler(Sampler[list[int]]):
    """Cut rows into batches of similar length, so that little of a batch is padding.

    Shuffled: the rows are permuted, chunks of 100 batches are sorted by length, and the batches are permuted. Where
    there are classes, a row is sorted by its rank in length among the rows of its class, so that every batch has the
    classes in the proportions of its chunk: QQP's long rows, for one, have fewer duplicates among them. Several
    processes share every batch, a block each, so that together they take the steps of one process whose batches are as
    large as theirs together. Of the one batch that is not full the blocks differ by one row at most, the first are the
    larger; a batch of fewer rows than processes repeats rows, so that nobody is left without.
    Not shuffled: all rows are sorted, the longest first, so that a batch too large for the memory fails at once.
    Several processes take turns, whole batches each, the very batches of one process: every row comes once over all of
    them, and some may have a batch less, or none.
    Every row comes exactly once per epoch but for those that are repeated; the one batch that is not full is kept.

    Args:
        lengths: Tokens of every row.
        batch_size: Rows per batch, and per process; >= 1.
        seed: With the epoch, fixes the order; >= 0.
        shuffle: Whether each epoch has an order of its own.
        num_replicas: Processes that share an epoch; >= 1.
        rank: Which of these processes this is, in [0, num_replicas).
        classes: The class of every row, by any numbers; None where rows have none.

    Raises:
        InputError: If ``batch_size`` is below 1 or ``seed`` below 0.
    """

    def __init__(
        self,
        lengths: Int[Tensor, " rows"] | Sequence[int],
        batch_size: int,
        seed: int,
        shuffle: bool,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        classes: Int[Tensor, " rows"] | None = None,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size counts the rows of one batch and must be at least 1, got {batch_size}")
        if seed < 0:
            raise InputError(f"seed must be 0 or more, got {seed}")
        self._lengths = np.asarray(lengths, dtype=np.int64)
        self._classes = np.zeros_like(self._lengths) if classes is None else np.unique(classes, return_inverse=True)[1]
        self._batch_size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._num_replicas = num_replicas
        self._rank = rank
        self.n_skipped = 0  # batches the next pass leaves out
        self.epoch = 0

    @property
    def sampler(self) -> LengthGroupedBatchSampler:
        """Return itself: Lightning looks for ``set_epoch`` at ``batch_sampler.sampler`` only."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass.

        Args:
            epoch: Zero-based; another one than ``resume`` was given forgets that resumption.
        """
        if epoch != self.epoch:
            self.n_skipped = 0
        self.epoch = epoch

    def resume(self, epoch: int, n_batches: int) -> None:
        """Leave out what an interrupted epoch has already seen, in the next pass only.

        Args:
            epoch: The epoch that was interrupted.
            n_batches: Batches of it that this process has already used.
        """
        self.epoch = epoch
        self.n_skipped = n_batches

    def __len__(self) -> int:
        # What `_n_batches` counts are batches of all processes together, or of one: see `_shared_size`.
        return self._n_batches if self._shuffle else len(range(self._rank, self._n_batches, self._num_replicas))

    def __iter__(self) -> Iterator[list[int]]:
        n_skipped, self.n_skipped = self.n_skipped, 0
        rows, batches = self._order()
        for batch in batches[n_skipped:]:
            yield self._block(rows[batch * self._shared_size : (batch + 1) * self._shared_size]).tolist()

    @property
    def _shared_size(self) -> int:
        """Count the rows of a full batch before it is shared out."""
        return self._batch_size * self._num_replicas if self._shuffle else self._batch_size

    @property
    def _n_batches(self) -> int:
        return -(-len(self._lengths) // self._shared_size)

    def _order(self) -> tuple[np.ndarray, np.ndarray]:
        """Arrange all rows, and list the batches of them that this process works on."""
        n_rows = len(self._lengths)
        if not self._shuffle:
            # Strided, not in blocks: processes then work on neighbours in length at the same time.
            batches = np.arange(self._rank, self._n_batches, self._num_replicas)
            return np.argsort(-self._lengths, kind="stable"), batches
        generator = np.random.default_rng([self._seed, self.epoch])
        rows = generator.permutation(n_rows)
        chunks = np.arange(n_rows) // (_BATCHES_PER_CHUNK * self._shared_size)
        by_length = np.lexsort((self._lengths[rows], self._classes[rows], chunks))
        rows = rows[by_length]
        # The rows of one class in one chunk are neighbours now, the shortest first.
        strata = chunks * (self._classes.max(initial=0) + 1) + self._classes[rows]
        _, first, n_in = np.unique(strata, return_index=True, return_counts=True)
        rank = (np.arange(n_rows) - np.repeat(first, n_in) + 0.5) / np.repeat(n_in, n_in)  # in (0, 1)
        rows = rows[np.lexsort((rank, chunks))]
        return rows, generator.permutation(self._n_batches)

    def _block(self, batch: np.ndarray) -> np.ndarray:
        """Take this process's rows of a batch."""
        if not self._shuffle:
            return batch
        if len(batch) < self._num_replicas:
            batch = np.resize(batch, self._num_replicas)  # starts again at the first row
        return np.array_split(batch, self._num_replicas)[self._rank]


def representative_rows(n_rows: int, n_chosen: int, groups: Tensor | None) -> Tensor:
    """Draw rows without looking at them, the same ones in every run: short and long ones, of every label.

    Args:
        n_rows: Rows there are.
        n_chosen: Rows to draw, at most.
        groups: The question that each row is a window of; a question comes whole, and one comes at least. None where
            rows stand alone.

    Returns:
        Row numbers, ascending.
    """
    if n_chosen >= n_rows:
        return torch.arange(n_rows)
    draw = np.random.default_rng(0)
    if groups is None:
        return torch.from_numpy(np.sort(draw.permutation(n_rows)[:n_chosen]))
    questions, n_windows = np.unique(groups.numpy(), return_counts=True)
    order = draw.permutation(len(questions))
    n_fitting = max(1, int((n_windows[order].cumsum() <= n_chosen).sum()))
    return torch.from_numpy(np.flatnonzero(np.isin(groups.numpy(), questions[order[:n_fitting]])))


__all__ = ["LengthGroupedBatchSampler", "representative_rows"]
