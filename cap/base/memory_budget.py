"""What a run may hold in memory of the arrays that lie in its files. Any room may import this."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

log = logging.getLogger(__name__)

BYTES_PER_GIB = 1024**3
"""In which ``memory.budget_gb`` and what is announced are counted."""


def as_tensor(array: np.ndarray) -> Tensor:
    """Share the memory of an array with a tensor, which must not be written to if the array was opened.

    Args:
        array: In memory or mapped.
    """
    with warnings.catch_warnings():  # torch has no read-only tensors, and says so of a read-only array
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


class MemoryBudget:
    """Read arrays into memory as long as they fit together, and map the others from disk.

    One object serves a whole run, so that tokens, logits, hidden states and banks share one limit. They are taken in
    the order they come: an array that does not fit is mapped whole, a smaller one after it may still be read.

    Counted are the arrays that are read (banks, logits, hidden states, columns of tokens), and those that are held
    because they are needed as a whole (labels, groups, and where each example's tokens lie), whether they fit or not.
    Not counted are the models, optimizer and activations; a gathered batch; the texts of the rows; a bank while it is
    made; copies in loader workers that are not forked; and mapped pages, which the operating system keeps in its page
    cache while it has room and drops when it has none.

    Args:
        gb: Most that all processes of this machine may hold together, in GiB, >= 0; 0 maps all that can be.
        n_processes: How many of them share it, each its part, >= 1.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, gb: float, *, n_processes: int = 1) -> None:
        if not gb >= 0:
            raise ValueError(
                f"memory.budget_gb is what tokens, teacher logits and banks may hold in memory and must be >= 0, "
                f"got {gb}"
            )
        if n_processes < 1:
            raise ValueError(f"a memory budget is shared by at least one process, got n_processes={n_processes}")
        self._limit = gb * BYTES_PER_GIB / n_processes
        self._bytes_in_memory = 0
        self._bytes_mapped = 0

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of the arrays that were read or held; more than the budget only if what is held is."""
        return self._bytes_in_memory

    @property
    def bytes_mapped(self) -> int:
        """Bytes of the arrays that were mapped."""
        return self._bytes_mapped

    def open_array(self, path: Path) -> np.ndarray:
        """Open an array that nobody is going to change: in memory if it still fits, else mapped.

        Args:
            path: An ``.npy`` file. It must not be rewritten in place while it is mapped; replacing it is harmless.

        Returns:
            The array. A mapped one cannot be written; to write to one in memory would not reach the file.

        Raises:
            ValueError: If the file is no array, or one of Python objects.
        """
        # Read-only: the system counts a private mapping that can be written as memory, and refuses one beyond it.
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        if self._bytes_in_memory + mapped.nbytes <= self._limit:
            self._bytes_in_memory += mapped.nbytes
            array: np.ndarray = np.load(path, allow_pickle=False)
            return array
        if self._limit > 0 and self._bytes_mapped == 0:
            log.info(
                "memory.budget_gb: %.2f of this process's %.2f GiB are used; what does not fit is memory-mapped",
                self._bytes_in_memory / BYTES_PER_GIB,
                self._limit / BYTES_PER_GIB,
            )
        self._bytes_mapped += mapped.nbytes
        # As a plain array over the same pages: numpy's own class for mapped files is slow to index.
        return np.asarray(mapped)

    def release(self, *arrays: np.ndarray | Tensor) -> None:
        """Count arrays no more that ``open_array`` or ``hold`` counted: nobody is going to use them again.

        Args:
            arrays: As they were given out, not views of them.
        """
        for array in arrays:
            if isinstance(array, np.ndarray) and isinstance(array.base, np.memmap):
                self._bytes_mapped -= array.nbytes
            else:
                self._bytes_in_memory -= array.nbytes

    def bytes_to_read(self, sizes: Iterable[int]) -> int:
        """Count what would be read into memory of further arrays, without opening them.

        Args:
            sizes: Bytes of each of them, in the order they come.
        """
        n_bytes = 0
        for size in sizes:
            if self._bytes_in_memory + n_bytes + size <= self._limit:
                n_bytes += size
        return n_bytes

    def hold(self, *arrays: np.ndarray | Tensor) -> None:
        """Count arrays that are in memory already, whether they fit or not.

        Args:
            arrays: Each with memory of its own.
        """
        self._bytes_in_memory += sum(array.nbytes for array in arrays)


__all__ = ["BYTES_PER_GIB", "MemoryBudget", "as_tensor"]
