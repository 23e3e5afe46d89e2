"""The processes of one run, and the few ways they talk."""

from __future__ import annotations

import atexit
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Num, Shaped
from lightning.pytorch import Trainer
from torch import Tensor

from cap.base.errors import RunError, first_line

T = TypeVar("T")

# The first process may train a teacher for hours while the others wait. One that died is noticed at once all the same:
# its sockets close.
_PATIENCE = timedelta(days=30)
# What gloo, nccl and the rendezvous store say when a process is gone; torch does not give all of it a type.
_SIGNS_OF_LOSS = (
    "gloo",
    "nccl",
    "connection",
    "broken pipe",
    "socket",
    "recv",
    "timed out",
    "timeout",
    "communicator",
    "peer",
)
# How messages without a type begin that come from nowhere else: gloo's with the place in its source.
_ONLY_LOSS = re.compile(r"(\[enforce fail at |\[)[^\]\s]*\bgloo/|nccl|tcpstore", re.IGNORECASE)


@dataclass
class _Failure:
    """Hold the exit code of a process that has failed."""

    code: int | None = None


_failure = _Failure()


@dataclass(frozen=True)
class Share:
    """Say which part of a batch that all processes share this one has.

    Args:
        rank: Of this process, from 0.
        counts: Rows of every process, in their order.
    """

    rank: int
    counts: tuple[int, ...]

    @property
    def first(self) -> int:
        """Return the place of this process's first row among all rows."""
        return sum(self.counts[: self.rank])

    @property
    def weight(self) -> float:
        """Return the factor that makes the mean over processes of means over their rows the mean over all rows."""
        return self.counts[self.rank] * len(self.counts) / max(1, sum(self.counts))


@dataclass(frozen=True)
class Ranks:
    """Describe the processes of a run; every method is called by all of them, in the same order.

    Args:
        rank: Of this process, from 0.
        size: Processes of the run.
        control: What small values travel over, on the CPU and without hurry; None in a run of one process.
    """

    rank: int
    size: int
    control: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Say whether this is the process that writes what is written once."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            with naming_lost_peers(self.rank):
                dist.barrier(group=self.control)

    def broadcast(self, value: T) -> T:
        """Give every process the first one's value.

        Args:
            value: Small and picklable; only the first process's matters.
        """
        if self.size == 1:
            return value
        box = [value]
        with naming_lost_peers(self.rank):
            dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Give every process the values of all.

        Args:
            value: Small and picklable.

        Returns:
            One value per process, in their order.
        """
        if self.size == 1:
            return [value]
        values: list[T] = [value] * self.size
        with naming_lost_peers(self.rank):
            dist.all_gather_object(values, value, group=self.control)
        return values

    def share(self, n_rows: int) -> Share:
        """Say which part of all processes' rows this one has.

        Args:
            n_rows: How many rows it has.
        """
        return Share(self.rank, tuple(self._counts(n_rows)))

    def gather_rows(
        self, rows: Shaped[Tensor, "rows ..."], *, counts: Sequence[int] | None = None
    ) -> Shaped[Tensor, "all ..."]:
        """Give every process the rows of all.

        Args:
            rows: Any number of rows; gets no gradient.
            counts: Rows of every process where that is known already, which saves asking.

        Returns:
            Detached rows in the order of the processes, on the device of ``rows``.
        """
        if self.size == 1:
            return rows.detach()
        counts = self._counts(len(rows)) if counts is None else counts
        most = max(counts)
        # Every process must send equally much; what is padded is cut off again.
        sent = rows.new_zeros((most, *rows.shape[1:]))
        sent[: len(rows)] = rows.detach()
        received = [torch.empty_like(sent) for _ in counts]
        with naming_lost_peers(self.rank):
            dist.all_gather(received, sent, group=self._group_of(rows))
        return torch.cat([part[:n] for part, n in zip(received, counts, strict=True)])

    def total(self, values: Num[Tensor, "*shape"]) -> Num[Tensor, "*shape"]:
        """Add up every process's values, element by element; gets no gradient."""
        if self.size == 1:
            return values.detach()
        result = values.detach().clone(memory_format=torch.contiguous_format)
        with naming_lost_peers(self.rank):
            dist.all_reduce(result, group=self._group_of(values))
        return result

    def mean(self, values: Num[Tensor, "*shape"]) -> Num[Tensor, "*shape"]:
        """Average every process's values, element by element; gets no gradient."""
        return values.detach() if self.size == 1 else self.total(values) / self.size

    def highest(self, values: Sequence[int]) -> list[int]:
        """Find the largest of every process's values, element by element."""
        if self.size == 1:
            return list(values)
        sent = torch.tensor(values)  # on the host, as the counts below
        with naming_lost_peers(self.rank):
            dist.all_reduce(sent, dist.ReduceOp.MAX, group=self._group_of(sent))
        return [int(value) for value in sent.tolist()]

    def _counts(self, n_rows: int) -> list[int]:
        if self.size == 1:
            return [n_rows]
        sent = torch.tensor([n_rows])  # on the host, which would wait for all that its device has to do
        received = sent.new_empty(self.size, 1)
        with naming_lost_peers(self.rank):
            dist.all_gather(list(received), sent, group=self._group_of(sent))
        return [int(n) for n in received.flatten().tolist()]

    def _group_of(self, values: Tensor) -> dist.ProcessGroup | None:
        # nccl moves nothing that is on the CPU. None is the default group.
        return self.control if values.device.type == "cpu" and "gloo" not in dist.get_backend() else None


ALONE = Ranks(rank=0, size=1)


def join(rank: int, size: int) -> Ranks:
    """Meet the other processes of a run, which know of each other already; all of them call this.

    Args:
        rank: Of this process, from 0.
        size: Processes of the run.
    """
    if size == 1:
        return ALONE
    with naming_lost_peers(rank):
        control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    _failure.code = None
    # Lightning does so for nccl alone. Threads of gloo that still run while Python ends can abort the process
    # (exit code -6) after all its work is done.
    atexit.register(leave)
    return Ranks(rank=rank, size=size, control=control)


def note_failure(error: BaseException) -> None:
    """Remember that this process ends by an error, which the others may not share."""
    _failure.code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)


def leave() -> None:
    """Close the connections to the other processes; once they are closed this does nothing.

    nccl waits for the others in that, who may wait for this one in the middle of a step. A process that has failed ends
    at once there: what has started the processes then ends the others.
    """
    if not dist.is_initialized():
        return
    if _failure.code is not None and dist.get_backend() == dist.Backend.NCCL:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(_failure.code)
    dist.destroy_process_group()


def ranks_of(trainer: Trainer) -> Ranks:
    """Name the processes that a trainer trains in: its strategy has them.

    Args:
        trainer: One of several processes has set up its environment, so that they know of each other.

    Raises:
        ValueError: If it has not.
    """
    if trainer.world_size == 1:
        return ALONE
    ranks: Ranks | None = getattr(trainer.strategy, "ranks", None)
    if ranks is None:
        raise ValueError(
            f"{trainer.world_size} processes must know of each other before they can talk: "
            f"call trainer.strategy.setup_environment() first"
        )
    return ranks


@contextmanager
def naming_lost_peers(rank: int, *, is_certain: bool = False) -> Iterator[None]:
    """Turn the errors of a connection that broke into one that says what to do.

    Args:
        rank: Of this process.
        is_certain: Whether only what can mean nothing else counts. Required where more than talk happens in the block:
            a data loader times out and other connections break too.

    Raises:
        RunError: If another process is gone.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_loss(error, is_certain=is_certain):
            raise
        raise RunError(
            f"rank {rank}: another process of this run ended or cannot be reached, so this one stops "
            f"({first_line(error)}). See the output of the other process for the reason. "
            f"Repeat the command with resume=true to continue from the last checkpoint"
        ) from error


def _is_loss(error: RuntimeError, *, is_certain: bool) -> bool:
    if isinstance(error, torch.OutOfMemoryError | RunError):
        return False
    if isinstance(error, dist.DistError) or _ONLY_LOSS.match(str(error).lstrip()):
        return True
    return not is_certain and any(sign in str(error).lower() for sign in _SIGNS_OF_LOSS)


__all__ = ["ALONE", "Ranks", "Share", "join", "leave", "naming_lost_peers", "ranks_of"]
