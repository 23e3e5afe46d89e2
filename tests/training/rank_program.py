"""What test_ranks runs in each of two processes; it leaves its findings as JSON."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from cap.base.errors import RunError
from cap.training.parallel.ranks import Ranks, join


def talk(ranks: Ranks) -> dict[str, object]:
    rank = ranks.rank
    rows = torch.arange(6.0).view(3, 2)[: 1 + 2 * rank] + 10 * rank  # one row, then three
    leaf = torch.ones(1, 2, requires_grad=True)
    ranks.barrier()
    return {
        "broadcast": ranks.broadcast({"rank": rank}),
        "gather": ranks.gather(f"rank {rank}"),
        "rows": ranks.gather_rows(rows).tolist(),
        "rows with counts": ranks.gather_rows(rows, counts=[1, 3]).tolist(),
        "rows of nobody on one rank": ranks.gather_rows(rows[: 2 * rank]).tolist(),
        "flags": ranks.gather_rows(torch.tensor([rank == 0])).tolist(),
        "ids": ranks.gather_rows(torch.tensor([2**40 + rank])).tolist(),
        "rows have a gradient": ranks.gather_rows(leaf * 2).requires_grad,
        "mean": ranks.mean(torch.tensor([1.0 + rank, 5.0])).tolist(),
        "total": ranks.total(torch.tensor([1 + rank, 5])).tolist(),
        "highest": ranks.highest([rank, 5 - rank]),
        "share": [*ranks.share(1 + 2 * rank).counts],
    }


def main(folder: Path) -> None:
    # What is registered first runs last, when the connections have to be closed.
    atexit.register(lambda: (folder / f"connected-{os.environ['RANK']}").write_text(str(dist.is_initialized())))
    dist.init_process_group("gloo")
    ranks = join(int(os.environ["RANK"]), 2)
    found = talk(ranks)
    path = folder / f"rank-{ranks.rank}.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    if ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        ranks.gather("is anybody there?")
    except RunError as error:
        path.write_text(json.dumps({**found, "error": str(error)}), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
