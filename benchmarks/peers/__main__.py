"""``python -m benchmarks.peers task=sst2 data_dir=DIR model=minilm contrast=none pruning=magnitude``: other tools.

Every side starts from the same weights and learns from the same teacher, on the same rows in the same order, for as
many steps, with the same learning rates; what prunes is the only difference. All run in one process, seed by seed.
``pruning=structured`` compares what removes whole parts, any other type what zeroes single weights. The same command
goes on with the seeds that are not there.
"""

from __future__ import annotations

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from benchmarks.peers.comparison import compare
from benchmarks.peers.table import HEADER, best, between, rows_of, sentence
from cap.launch.cli import door


def benchmark(cfg: DictConfig) -> float:
    """Run all sides with every seed, print what came out and keep it in outputs/benchmarks/peers/.

    Returns:
        The mean score of the best of cap's sides minus that of the best of the others.

    Raises:
        InputError: If a side cannot run, or a rule of ``cap.train`` is broken.
        RunError: If a side had to stop.
    """
    results = compare(cfg)
    table = Table(*HEADER)
    for row in rows_of(results):
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(sentence(results))
    return between(results, *best(results)).mean


main = door(
    benchmark,
    opening="python -m benchmarks.peers task=sst2 data_dir=DIR model=minilm\n\nCompare with other tools.",
)

if __name__ == "__main__":
    main()
