"""Frozen outputs of every training example, by source and example_id."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeVar, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cap.base.memory_budget import MemoryBudget, as_tensor

T = TypeVar("T")

# Below so many times what is drawn, permuting all examples is faster than drawing until there are enough.
_FEW = 16

Source = Literal["pretrained", "finetuned", "snapshots"]


@dataclass(frozen=True)
class _Logits:
    """Hold the logits of all examples.

    Args:
        values: (examples, outputs), or of spans and tags (tokens of all examples, outputs).
        offsets: Of spans and tags: where each example's tokens begin in the values, and where the last one's end.
    """

    values: np.ndarray
    offsets: Int64[Tensor, " bounds"] | None

    @cached_property
    def _tensor(self) -> Tensor:
        return as_tensor(self.values)

    def gather(self, example_id: Int64[Tensor, " rows"]) -> Float[Tensor, "rows ..."]:
        values = self._tensor
        if self.offsets is None:
            return values.index_select(0, example_id)
        start = self.offsets[example_id]
        lengths = self.offsets[example_id + 1] - start
        position = torch.arange(int(lengths.max()) if len(lengths) else 0)
        is_token = position < lengths[:, None]  # (rows, tokens)
        padded = values.new_zeros(*is_token.shape, values.shape[1])
        padded[is_token] = values.index_select(0, (start[:, None] + position)[is_token])
        return padded


class Memory:
    """Keep, in float16, the encodings of all sources, the teacher's logits and hidden states, and a snapshot's logits.

    Rows are indexed by ``example_id``. Arrays that do not fit into the budget stay on disk and are memory-mapped: the
    first gather after a start without page cache reads them from there, later ones take little longer than from memory.

    Args:
        n_examples: Rows of the training set.
        budget: Decides what is read into memory; shared with the tokenised rows. None reads everything.

    Raises:
        ValueError: If there is no example.
    """

    def __init__(self, n_examples: int, *, budget: MemoryBudget | None = None) -> None:
        if n_examples < 1:
            raise ValueError(f"a memory needs at least one training example, got {n_examples}")
        self.n_examples = n_examples
        self._budget = budget if budget is not None else MemoryBudget(math.inf)
        self._encodings: dict[Source, list[Float[Tensor, "examples dim"]]] = {}
        self._teacher_logits: _Logits | None = None
        self._snapshot_logits: _Logits | None = None
        self._hidden: Float[Tensor, "examples layers dim"] | None = None

    def n_encodings(self, source: Source) -> int:
        """Count the encodings per example of a source; 0 if it is not filled."""
        return len(self._encodings.get(source, []))

    def add(self, source: Source, encodings: Float[Tensor, "examples dim"] | Path | str) -> None:
        """Take encodings of all examples, ordered by example_id.

        Args:
            source: ``pretrained`` and ``finetuned`` hold one encoding per example, ``snapshots`` a growing number.
            encodings: L2-normalised, of shape (examples, dim): a tensor, of which a float16 copy is kept on the CPU, or
                an ``.npy`` file of float16, which is mapped where it does not fit into the budget.

        Raises:
            ValueError: If the source is unknown, or the rows are not those of this training set.
        """
        if source not in get_args(Source):
            raise ValueError(f"a memory has the sources {', '.join(get_args(Source))}, got {source!r}")
        # First: what is refused must neither count against the budget nor leave an empty source behind.
        if isinstance(encodings, Path | str):
            path = Path(encodings)
            self._require_rows(path, self.n_examples, "training examples")
            bank = as_tensor(self._budget.open_array(path))
        else:
            if encodings.ndim != 2 or len(encodings) != self.n_examples:
                raise ValueError(
                    f"a bank needs one row for each of the {self.n_examples} training examples, "
                    f"got shape {tuple(encodings.shape)}"
                )
            bank = encodings.detach().to("cpu", torch.float16, copy=True)
            self._budget.hold(bank)
        self._encodings.setdefault(source, []).append(bank)

    def set_teacher_logits(self, path: Path, *, lengths: Path | None = None) -> None:
        """Take the teacher's logits from disk.

        Args:
            path: An ``.npy`` file of shape (examples, outputs), or (tokens of all examples, outputs) for spans and
                tags; float16, ordered by example_id.
            lengths: Of spans and tags: an ``.npy`` file with the number of tokens of each example, int64. They are held
                in memory whether they fit into the budget or not, 8 bytes an example.

        Raises:
            ValueError: If the rows are not those of this training set.
        """
        self._teacher_logits = self._open_logits(path, lengths)

    def set_snapshot_logits(self, path: Path, *, lengths: Path | None = None) -> None:
        """Take the logits of the newest snapshot from disk; those of the one before it are forgotten.

        Args:
            path: As of ``set_teacher_logits``.
            lengths: Likewise.

        Raises:
            ValueError: If the rows are not those of this training set.
        """
        self._snapshot_logits = self._open_logits(path, lengths, in_place_of=self._snapshot_logits)

    def set_hidden(self, path: Path) -> None:
        """Take the teacher's hidden states from disk.

        Args:
            path: An ``.npy`` file of shape (examples, layers, dim), float16, ordered by example_id: the mean over real
                tokens of what each encoder layer gives.

        Raises:
            ValueError: If the rows are not those of this training set.
        """
        self._require_rows(path, self.n_examples, "training examples", n_axes=3)
        self._hidden = as_tensor(self._budget.open_array(path))

    def gather(
        self, source: Source, example_id: Int64[Tensor, " rows"], *, pin: bool = False
    ) -> Float[Tensor, "rows snapshots dim"]:
        """Read the encodings of some examples, on the CPU.

        Args:
            source: Of the encodings.
            example_id: Of the examples.
            pin: Read them into pinned memory, from which CUDA copies while the host goes on.

        Raises:
            KeyError: If the source is not filled.
        """
        banks = self._encodings[source]
        rows = torch.empty(len(example_id), len(banks), banks[0].shape[1], dtype=torch.float16, pin_memory=pin)
        # Each bank into its place: stacking them afterwards would hold every row twice.
        for place, bank in enumerate(banks):
            torch.index_select(bank, 0, example_id, out=rows[:, place])
        return rows

    def teacher_logits(self, example_id: Int64[Tensor, " rows"]) -> Float[Tensor, "rows ..."]:
        """Read the teacher's logits of some examples, on the CPU.

        Returns:
            Of shape (rows, outputs); of spans and tags (rows, tokens, outputs), padded with zeros to the longest of
            these examples.

        Raises:
            KeyError: If there are none.
        """
        return _present(self._teacher_logits, "teacher logits").gather(example_id)

    @property
    def has_teacher_logits(self) -> bool:
        """Say whether the teacher's logits are there."""
        return self._teacher_logits is not None

    @property
    def has_snapshot_logits(self) -> bool:
        """Say whether a snapshot's logits are there."""
        return self._snapshot_logits is not None

    def snapshot_logits(self, example_id: Int64[Tensor, " rows"]) -> Float[Tensor, "rows ..."]:
        """Read the newest snapshot's logits of some examples, on the CPU.

        Returns:
            As ``teacher_logits``.

        Raises:
            KeyError: If there are none.
        """
        return _present(self._snapshot_logits, "snapshot's logits").gather(example_id)

    def hidden(self, example_id: Int64[Tensor, " rows"]) -> Float[Tensor, "rows layers dim"]:
        """Read the teacher's hidden states of some examples, on the CPU.

        Raises:
            KeyError: If there are none.
        """
        return _present(self._hidden, "hidden states").index_select(0, example_id)

    def draw_extras(
        self, n: int, *, exclude: Int64[Tensor, " batch"], generator: torch.Generator
    ) -> Int64[Tensor, " extras"]:
        """Draw training examples without replacement, none of them in the batch, in a random order.

        What it costs follows from ``n``, not from the size of the training set.

        Args:
            n: How many to draw; all that are left when there are fewer.
            exclude: Example ids of the batch.
            generator: The seeded source of randomness, on the CPU.

        Returns:
            Example ids, as many as ``n`` or fewer.
        """
        if n <= 0:
            return torch.empty(0, dtype=torch.int64)
        n_at_most = n + len(exclude)
        if self.n_examples <= _FEW * n_at_most:
            order = torch.randperm(self.n_examples, generator=generator)[:n_at_most]
            return order[~torch.isin(order, exclude)][:n]
        # Drawn with replacement, a few more than are needed: without those that come again it is a draw without.
        drawn = torch.empty(0, dtype=torch.int64)
        while len(drawn) < n:
            n_more = 9 * (n - len(drawn)) // 8 + len(exclude) + 1
            more = torch.randint(self.n_examples, (n_more,), generator=generator)
            candidates = torch.cat([drawn, more])
            first = np.unique(candidates.numpy(), return_index=True)[1]
            drawn = candidates[torch.from_numpy(np.sort(first))]
            drawn = drawn[~torch.isin(drawn, exclude)]
        return drawn[:n]

    def _open_logits(self, path: Path, lengths: Path | None, *, in_place_of: _Logits | None = None) -> _Logits:
        offsets = None if lengths is None else self._read_offsets(lengths)
        n_rows, what = self.n_examples, "training examples"
        if offsets is not None:
            n_rows, what = int(offsets[-1]), "tokens of the training examples"
        self._require_rows(path, n_rows, what)
        if in_place_of is not None:  # first, so that the new ones fit where the old ones did
            self._budget.release(in_place_of.values)
            if in_place_of.offsets is not None:
                self._budget.release(in_place_of.offsets)
        if offsets is not None:
            self._budget.hold(offsets)
        return _Logits(self._budget.open_array(path), offsets)

    def _read_offsets(self, path: Path) -> Tensor:
        lengths = np.load(path, allow_pickle=False)
        if lengths.shape != (self.n_examples,) or lengths.dtype != np.int64 or lengths.min() < 1:
            raise ValueError(
                f"lengths are how many tokens (int64, >= 1) each of the {self.n_examples} training examples has, "
                f"got {lengths.dtype} of shape {lengths.shape} from {lengths.min(initial=1)} up"
            )
        return torch.from_numpy(np.concatenate([[0], lengths.cumsum()]))

    def _require_rows(self, path: Path, n_rows: int, what: str, *, n_axes: int = 2) -> None:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.ndim != n_axes or len(array) != n_rows or array.dtype != np.float16:
            raise ValueError(
                f"a bank needs float16 rows for all {n_rows} {what}, got {array.dtype} of shape {array.shape}"
            )


def _present(value: T | None, what: str) -> T:
    if value is None:
        raise KeyError(f"the memory holds no {what}")
    return value


def moved(rows: Tensor, device: torch.device) -> Tensor:
    """Copy rows that were gathered on the CPU to a device; from pinned memory to CUDA, so that the host goes on."""
    # From any other memory CUDA copies at once, whatever non_blocking says.
    return (rows.pin_memory() if device.type == "cuda" else rows).to(device, non_blocking=True)


__all__ = ["Memory", "Source", "moved"]
