"""Several processes of a run made up as threads of one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

from cap.training.parallel.ranks import Ranks

_SECONDS = 60
_GONE = object()


class ThreadRanks(Ranks):
    """Talk through queues; who waits for a thread that failed gets a ``ConnectionError``.

    ``mail[i][j]`` holds what rank i sends to rank j.
    """

    def __init__(self, rank: int, mail: list[list[Queue[Any]]]) -> None:
        super().__init__(rank, len(mail))
        object.__setattr__(self, "mail", mail)

    def barrier(self) -> None:
        self.gather(None)

    def gather(self, value):
        for box in self.mail[self.rank]:
            box.put(pickle.dumps(value))
        received = [boxes[self.rank].get(timeout=_SECONDS) for boxes in self.mail]
        if _GONE in received:
            raise ConnectionError(f"rank {received.index(_GONE)} is gone")
        return [pickle.loads(sent) for sent in received]

    def broadcast(self, value):
        return self.gather(value)[0]


def run_ranks(size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """Run ``work`` once for every rank; return what came out, an exception where one was raised."""
    mail: list[list[Queue[Any]]] = [[Queue() for _ in range(size)] for _ in range(size)]

    def run(rank: int) -> Any:
        try:
            return work(ThreadRanks(rank, mail))
        except Exception as error:
            for box in mail[rank]:
                box.put(_GONE)
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))
