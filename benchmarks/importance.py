"""``python -m benchmarks.importance model=minilm pruning=structured|second_order``: what a pass for importance costs.

A pass over training rows that measures importance is compared, batch by batch and alternating in one process, with a
training step on the same batch, and with it the ranking that follows: a ratio of at most 1 says that a move of the
masks costs no more than an epoch over the rows that it looks at.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.step import BATCH, N_STEPS, Step, cap_module, made_up_batch, new_model, plain_step, training_step
from cap.base.files import write_json
from cap.launch.cli import door
from cap.runs.environment import environment
from cap.training.importance import measure_importance
from cap.training.trainer import build_trainer


class Alternating(DataLoader[dict[str, Tensor]]):
    """Give an importance pass its batches, and time it; between two of them take the steps of the other sides.

    Args:
        sides: What else is timed, on the same batches of 32 rows.
        batch_rows: Rows of a batch of the pass, a divisor of 32.
    """

    def __init__(self, sides: Mapping[str, Step], batch_rows: int) -> None:
        super().__init__(range(N_STEPS * BATCH // batch_rows), batch_size=None)
        self._sides = sides
        self._batch_rows = batch_rows
        self.seconds: dict[str, list[float]] = {name: [] for name in (*sides, "importance")}

    def __iter__(self) -> Iterator[dict[str, Tensor]]:  # type: ignore[override]
        for index in range(N_STEPS):
            batch = made_up_batch(index)
            for name, take_step in self._sides.items():
                started = time.perf_counter()
                take_step(index, batch)
                self.seconds[name].append(time.perf_counter() - started)
            started = time.perf_counter()
            for first in range(0, BATCH, self._batch_rows):
                yield {name: values[first : first + self._batch_rows] for name, values in batch.items()}
            self.seconds["importance"].append(time.perf_counter() - started)

    def medians(self) -> dict[str, float]:
        """Return the median seconds of each side on 32 rows; the first three batches allocate."""
        return {name: statistics.median(values[3:]) for name, values in self.seconds.items()}


def benchmark(cfg: DictConfig) -> float:
    """Time all sides, print the ratios and keep them in outputs/benchmarks/importance.json."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        measured, pruner = cap_module(cfg, new_model(cfg), Path(folder))
        name, step = (
            str(cfg.pruning.name),
            training_step(*cap_module(cfg, new_model(cfg), Path(folder)), 0.0, every_n_steps=N_STEPS + 1),
        )
        wanted = pruner.importance_pass
        if wanted is None:
            raise ValueError("this benchmark times an importance pass: give pruning=structured, or second_order")
        trainer = build_trainer(
            {"enable_progress_bar": False, "accelerator": "cpu"}, run_dir=Path(folder), callbacks=[]
        )
        sides: dict[str, Step] = {
            "plain": plain_step(new_model(cfg)),
            # Counted from 1: masks move at levels, not while these steps are timed.
            name: lambda index, batch: step(index + 1, batch),
        }
        batches = Alternating(sides, wanted.batch_rows or BATCH)
        measure_importance(measured, batches, wanted, batch_size=BATCH, trainer=trainer)
        started = time.perf_counter()
        pruner.update_masks(cfg.sparsity)
        ranking = time.perf_counter() - started
    median = batches.medians()
    n_batches = N_STEPS if wanted.rows is None else wanted.rows / BATCH
    whole = median["importance"] + ranking / n_batches
    ratios = {
        f"{name} step / plain step": median[name] / median["plain"],
        f"importance / {name} step": median["importance"] / median[name],
        f"importance and ranking / {name} step": whole / median[name],
    }
    table = Table("32 rows of 40 tokens", "")
    for row, value in {**{f"{side}, s": value for side, value in median.items()}, "ranking, s": ranking}.items():
        table.add_row(row, f"{value:.3f}")
    for row, value in ratios.items():
        table.add_row(row, f"{value:.3f}")
    Console().print(table)
    results = {"environment": environment(), "seconds": {**median, "ranking": ranking}, "ratios": ratios}
    write_json(Path("outputs/benchmarks/importance.json"), results)
    return whole / median[name]


main = door(benchmark)

if __name__ == "__main__":
    main()
