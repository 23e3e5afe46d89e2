"""``python -m benchmarks.peers task=sst2 data_dir=DIR model=minilm pruning=magnitude contrast=none``: other tools.

Every side starts from the same weights and learns from the same teacher, on the same rows in the same order, for as
many steps, with the same learning rates; what prunes is the only difference. All run in one process, seed by seed.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelPruning
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from cap.base.errors import InputError
from cap.base.files import read_json, write_json
from cap.config.check import check
from cap.formats.latency import paired_latency
from cap.formats.load import load
from cap.launch.cli import door
from cap.models.encoders import load_saved_model, save_model
from cap.models.families import Prunable, prunable_linears
from cap.models.pooled import PooledModel
from cap.pruning.masks import sparsity_fractions
from cap.pruning.pruner import MaskCounts, Pruner
from cap.runs.environment import environment
from cap.runs.folder import MODEL
from cap.train import train
from cap.training.assembly import filled_memory, new_module
from cap.training.callbacks.timer import StepTimer
from cap.training.evaluation import evaluate
from cap.training.parts import Ready, make_ready
from cap.training.planning import require_possible
from cap.training.preparation import Prepared, prepare
from cap.training.teacher import get_teacher
from cap.training.trainer import build_trainer, fit

N_SEEDS = 3
OUTPUTS = Path("outputs/benchmarks/peers")
ROWS, TOKENS = 32, 128  # of the batch that latency is measured on


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Hold what came out of a side.

    Args:
        score: Of the saved model, on the task's first metric.
        seconds_per_step: Median of an optimizer step.
        sparsity: Fraction of the prunable weights that are zero or gone.
        n_bytes: Size of the saved weights.
    """

    score: float
    seconds_per_step: float
    sparsity: float
    n_bytes: int


class NoMasks(Pruner):
    """Leave a student as it is: another tool prunes it."""

    def attach(self, prunable: Prunable, *, seed: int) -> None:
        """Put nothing on."""

    @property
    def masks(self) -> dict[str, Tensor]:
        """There are none."""
        return {}

    def update_masks(self, sparsity: float) -> MaskCounts:
        """Move nothing: there are no masks."""
        return MaskCounts(n_weights=0, n_pruned_before=0, n_pruned=0)

    def fold(self) -> None:
        """Take nothing off."""


def benchmark(cfg: DictConfig) -> float:
    """Run all sides with every seed, print what came out and keep it in outputs/benchmarks/peers/results.json.

    Returns:
        The mean score of cap's side minus that of ModelPruning's.

    Raises:
        InputError: If the sides would learn from more than labels and a teacher, or a rule of ``cap.train`` is broken.
    """
    contrast = cfg.contrast
    if contrast.pretrained or contrast.snapshots or contrast.finetuned or cfg.distill.snapshot_weight > 0:
        raise InputError(
            "other tools learn from labels and a teacher alone, got contrast or distill.snapshot_weight; set "
            "contrast=none distill.snapshot_weight=0"
        )
    root = Path(cfg.output_dir or OUTPUTS)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in SIDES}
    for seed in range(cfg.seed, cfg.seed + N_SEEDS):
        for name, run in SIDES.items():
            own = cfg.copy()
            own.seed, own.output_dir, own.overwrite = seed, str(root / f"{name.replace(' ', '_')}-{seed}"), True
            outcomes[name].append(run(own))
    milliseconds = latency({name: root / f"{name.replace(' ', '_')}-{cfg.seed}" / MODEL for name in SIDES}, cfg)
    show(outcomes, milliseconds)
    results = {
        name: {"seeds": [asdict(one) for one in found], "milliseconds": milliseconds[name]}
        for name, found in outcomes.items()
    }
    write_json(root / "results.json", {"environment": environment(), "sides": results})
    first, second = (statistics.mean(one.score for one in found) for found in outcomes.values())
    return first - second


def run_cap(cfg: DictConfig) -> Outcome:
    """Make a run of ``cap.train`` as it is configured."""
    train(cfg)
    record = read_json(Path(cfg.output_dir) / "record.json")
    return Outcome(
        score=record["scores"]["pruned"][record["metric"]],
        seconds_per_step=record["seconds_per_step"],
        sparsity=record["sparsity"]["prunable"],
        n_bytes=weights_size(Path(cfg.output_dir) / MODEL),
    )


def run_model_pruning(cfg: DictConfig) -> Outcome:
    """Train the same student with Lightning's ModelPruning, which moves its masks at the end of epochs."""
    ready = make_ready(check(cfg))
    if ready.n_processes > 1:
        raise InputError(f"all sides run in one process, got trainer.devices={ready.n_processes}; set it to 1")
    if ready.config.trainer.max_steps > 0 or ready.config.trainer.max_epochs < 2:
        raise InputError(
            f"ModelPruning prunes at the end of epochs, so that trainer.max_epochs must be at least 2 and "
            f"trainer.max_steps -1, got {ready.config.trainer.max_epochs} and {ready.config.trainer.max_steps}; "
            f"set both"
        )
    folder = Path(cfg.output_dir)
    prepared = prepare(ready)
    require_possible(ready, prepared)
    encoding = new_trainer(ready, folder)
    teacher = get_teacher(ready, prepared, encoding)
    memory, _ = filled_memory(ready, prepared, teacher, encoding)
    without_masks = dataclasses.replace(ready, pruner=NoMasks())
    module = new_module(without_masks, prepared, teacher, memory, warn=lambda message: None)
    timer = StepTimer()
    linears = prunable_linears(module.student.model)
    amounts = amounts_by_epoch(ready.config.sparsity, ready.config.trainer.max_epochs)
    trainer = new_trainer(ready, folder, timer, model_pruning(list(linears.values()), amounts))
    fit(trainer, module, prepared.datamodule, None)
    save_model(module.student.model.cpu(), prepared.tokenizer, folder / MODEL)
    return scored(prepared, folder, timer, trainer.strategy.root_device)


def new_trainer(ready: Ready, folder: Path, *callbacks: Callback) -> Trainer:
    """Make a trainer of one process as it is configured, with other callbacks than a run's."""
    options = {**dataclasses.asdict(ready.config.trainer), "devices": 1, "strategy": "auto"}
    return build_trainer(options, run_dir=folder, callbacks=callbacks)


def model_pruning(linears: Sequence[nn.Linear], amounts: Sequence[float]) -> ModelPruning:
    """Set Lightning's callback up to prune the weights of some layers by magnitude, all ranked together.

    By default it would prune biases and embeddings, too, and put weights back to where they began at each pruning.

    Args:
        linears: Their biases are left alone.
        amounts: By epoch, the fraction of the weights that are left which goes at its end; of later ones 0.
    """
    return ModelPruning(
        "l1_unstructured",
        parameters_to_prune=[(linear, "weight") for linear in linears],
        use_global_unstructured=True,
        amount=lambda epoch: amounts[epoch] if epoch < len(amounts) else 0.0,
        use_lottery_ticket_hypothesis=False,
        make_pruning_permanent=True,
    )


def amounts_by_epoch(sparsity: float, n_epochs: int) -> list[float]:
    """Spread a sparsity over the ends of the first half of the epochs, as a cubic schedule rises.

    Args:
        sparsity: Where it ends, in [0, 1).
        n_epochs: At least 2; after the last pruning one epoch is left at least.

    Returns:
        By epoch, the fraction of what is left that goes: torch counts what is pruned in what is left.
    """
    n = math.ceil((n_epochs - 1) / 2)
    levels = [sparsity * (1 - (1 - (k + 1) / n) ** 3) for k in range(n)]
    return [(level - before) / (1 - before) for before, level in zip([0.0, *levels], levels, strict=False)]


def scored(prepared: Prepared, folder: Path, timer: StepTimer, device: torch.device) -> Outcome:
    """Load what was saved with stock transformers, and score it."""
    saved = load_saved_model(folder / MODEL, prepared.task.kind)
    scores, _ = evaluate(
        PooledModel(saved, prepared.pooling),
        prepared.datamodule.eval_dataloaders(),
        prepared.metrics(),
        device=device,
        description="the peer's score",
    )
    return Outcome(
        score=scores[prepared.task.monitored],
        seconds_per_step=timer.median() or math.nan,
        sparsity=sparsity_fractions(saved.cpu())["prunable"],
        n_bytes=weights_size(folder / MODEL),
    )


def weights_size(folder: Path) -> int:
    """Count the bytes of saved weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def latency(folders: dict[str, Path], cfg: DictConfig) -> dict[str, float]:
    """Measure the saved models in turns; return the median milliseconds of a batch, by side."""
    models = {name: load(folder) for name, folder in folders.items()}
    reference = next(iter(models))
    (found,) = paired_latency(
        models,
        reference=reference,
        vocabulary_size=models[reference].config.vocab_size,
        batch_sizes=[ROWS],
        lengths=[min(TOKENS, cfg.max_length)],
    )
    return {name: one.milliseconds.median for name, one in found.models.items()}


def show(outcomes: dict[str, list[Outcome]], milliseconds: dict[str, float]) -> None:
    """Print a line a side: means over the seeds."""
    table = Table("", "score", "s/step", "sparsity", "MB", f"ms, {ROWS} rows")
    for name, found in outcomes.items():
        means = (
            statistics.mean(one.score for one in found),
            statistics.mean(one.seconds_per_step for one in found),
            statistics.mean(one.sparsity for one in found),
            found[0].n_bytes / 1e6,
            milliseconds[name],
        )
        table.add_row(name, *(f"{value:.4g}" for value in means))
    Console().print(table)


SIDES: dict[str, Callable[[DictConfig], Outcome]] = {"cap": run_cap, "ModelPruning": run_model_pruning}

main = door(benchmark)

if __name__ == "__main__":
    main()
