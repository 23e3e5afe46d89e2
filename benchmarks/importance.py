"""``python -m benchmarks.importance model=minilm pruning=structured|second_order``: what a pass for importance costs.

A pass over training rows that measures importance is compared, batch by batch and alternating in one process, with a
training step on the same batch, and with it the ranking that follows: a ratio of at most 1 says that a move of the
masks costs no more than an epoch over the rows that it looks at. Of second order the peak memory is set beside what the
pass announces (Linux alone, where a process can forget its peak).
"""

from __future__ import annotations

import ctypes
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.step import BATCH, N_STEPS, Step, cap_module, made_up_batch, new_model, plain_step, training_step
from cap.base.files import write_json
from cap.launch.cli import door
from cap.pruning.fisher import bytes_of_pass
from cap.pruning.importance import gates_alone
from cap.pruning.second_order import SecondOrder
from cap.runs.environment import environment, forget_peak_memory, peak_memory_gb
from cap.training.importance import measure_importance
from cap.training.trainer import build_trainer

MEASURED_AT = (0.0, 0.9)
"""Sparsities before the passes whose memory is measured."""


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
    results: dict[str, Any] = {
        "environment": environment(),
        "seconds": {**median, "ranking": ranking},
        "ratios": ratios,
    }
    if isinstance(pruner, SecondOrder):
        results["peak_gb"] = {f"{sparsity:g}": peak_of_pass(cfg, sparsity) for sparsity in MEASURED_AT}
        for sparsity, peak in results["peak_gb"].items():
            Console().print(f"a pass at sparsity {sparsity}: {peak}")
    write_json(Path("outputs/benchmarks/importance.json"), results)
    return whole / median[name]


def peak_of_pass(cfg: DictConfig, sparsity: float) -> dict[str, float]:
    """Measure what a pass and the ranking take beside the model and the activations of a batch, in GB.

    Args:
        cfg: Of second order.
        sparsity: Of the student before the pass.
    """
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        module, pruner = cap_module(cfg, new_model(cfg), Path(folder))
        wanted = pruner.importance_pass
        if wanted is None or wanted.batch_rows is None:
            raise ValueError("the memory of a pass is measured with batches of its own size: give second_order")
        trainer = build_trainer(
            {"enable_progress_bar": False, "accelerator": "cpu"}, run_dir=Path(folder), callbacks=[]
        )
        batches = Alternating({}, wanted.batch_rows)
        if sparsity > 0:
            measure_importance(module, batches, wanted, batch_size=BATCH, trainer=trainer)
            pruner.update_masks(sparsity)
        weights = pruner.gate_parameters()
        gradients = sum(weight.nbytes for weight in weights)  # are part of what is announced
        ctypes.CDLL(None).malloc_trim(0)  # what was freed would be taken for what the batch needs
        forget_peak_memory()
        with gates_alone(pruner, module):
            for batch in islice(batches, 2):
                torch.autograd.grad(sum(module.loss_terms(module(batch), batch, with_contrast=False).values()), weights)
        plain = peak_memory_gb()["host"] or 0.0
        n_kept = [int(mask.sum()) for mask in pruner.masks.values()]
        announced = bytes_of_pass([weight.numel() for weight in weights], n_kept, cfg.pruning.block_size)
        forget_peak_memory()
        measure_importance(module, batches, wanted, batch_size=BATCH, trainer=trainer)
        pruner.update_masks(max(sparsity + 0.01, cfg.sparsity))
        found = (peak_memory_gb()["host"] or 0.0) - plain + gradients / 1e9
    return {"announced": announced / 1e9, "measured": found, "ratio": found / (announced / 1e9)}


main = door(
    benchmark,
    opening="python -m benchmarks.importance model=minilm\n\nTime a pass for importance beside a training step.",
)

if __name__ == "__main__":
    main()
