"""``python -m benchmarks.importance model=minilm pruning=structured``: what ranking units costs.

A pass over training rows that measures importance is compared, batch by batch and alternating in one process, with a
training step on the same batch: a ratio of at most 1 says that a pass costs no more than an epoch over the same rows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.step import BATCH, N_STEPS, Step, alternate, cap_module, new_model, plain_step, training_step
from cap.base.files import write_json
from cap.launch.cli import door
from cap.runs.environment import environment
from cap.training.importance import measure_importance
from cap.training.trainer import build_trainer


def benchmark(cfg: DictConfig) -> float:
    """Time the three sides, print the ratios and keep them in outputs/benchmarks/importance.json."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        module, pruner = cap_module(cfg, new_model(cfg), Path(folder))
        wanted = pruner.importance_pass
        if wanted is None:
            raise ValueError("this benchmark times an importance pass: give pruning=structured")
        trainer = build_trainer(
            {"enable_progress_bar": False, "accelerator": "cpu"}, run_dir=Path(folder), callbacks=[]
        )

        def importance_batch(index: int, batch: dict[str, Tensor]) -> None:
            measure_importance(module, DataLoader([batch], batch_size=None), wanted, batch_size=BATCH, trainer=trainer)

        sides: dict[str, Step] = {
            "plain": plain_step(new_model(cfg)),
            # Units move at levels, not while these steps are timed.
            "structured": training_step(module, pruner, 0.0, every_n_steps=N_STEPS),
            "importance": importance_batch,
        }
        median = alternate(sides)
    ratios = {
        "structured step / plain step": median["structured"] / median["plain"],
        "importance / structured step": median["importance"] / median["structured"],
    }
    table = Table("32 rows of 40 tokens", "")
    for name, value in {**{f"{name}, s": value for name, value in median.items()}, **ratios}.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)
    results = {"environment": environment(), "seconds": median, "ratios": ratios}
    write_json(Path("outputs/benchmarks/importance.json"), results)
    return ratios["importance / structured step"]


main = door(benchmark)

if __name__ == "__main__":
    main()
