"""``python -m benchmarks.step model=minilm``: what a CAP step and a whole run cost beside plain fine-tuning.

Steps alternate inside one process, so that a noisy machine disturbs both sides alike. Whole runs go through the same
code as ``python -m cap.train``: encoding, snapshots and all.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from cap.base.files import read_json, write_json
from cap.base.kinds import Head
from cap.base.memory_budget import MemoryBudget
from cap.base.parts import PARTS, Part
from cap.config.check import check, contrast_weights
from cap.config.places import conf_dir
from cap.config.schema import register
from cap.launch.cli import door
from cap.models.encoders import load_model
from cap.models.families import parameters_of, prunable
from cap.models.pooled import PooledModel
from cap.models.pooling import resolve_pooling
from cap.models.sources import resolve_source
from cap.objectives.memory import Memory
from cap.pruning.pruner import Pruner
from cap.runs.environment import environment, peak_memory_gb
from cap.train import train
from cap.training.module import CapModule, Contrast, Distill, Optimisation
from cap.training.preparation import prepare
from cap.training.progress import tracked
from cap.training.ready import make_ready
from cap.training.trainer import build_trainer

BATCH, TOKENS = 32, 40
N_EXAMPLES = 8000
N_SNAPSHOTS = 9
N_STEPS = 60
MOVE_EVERY = 10
N_EPOCHS = 10
N_RUN_ROWS = 640

STEP_ROWS = {
    "step_masks_every_10": "step, masks moved every 10 steps",
    "step_masks_every_1": "step, masks moved every step",
    "step_beside_frozen": "step, plain fine-tuning with the same frozen",
}
"""What steps are called. CAP freezes what the pruning type's own file says; plain fine-tuning nothing if not said."""

Step = Callable[[int, dict[str, Tensor]], None]


def benchmark(cfg: DictConfig) -> float:
    """Time single steps and whole runs, print the ratios and keep them in outputs/benchmarks/step.json."""
    results = {"environment": environment(), **time_steps(cfg), **time_runs()}
    table = Table("", "plain fine-tuning", "CAP", "ratio")
    for name, words in STEP_ROWS.items():
        row = results[name]
        table.add_row(f"{words}, s (median)", *(f"{row[key]:.3f}" for key in ("plain", "cap", "ratio")))
    run = results["run"]
    table.add_row(f"{N_EPOCHS} epochs with all encoding, s", *(f"{run[key]:.2f}" for key in ("plain", "cap", "ratio")))
    memory = results["peak_memory_gb"]
    table.add_row("peak memory of a run, GB", f"{memory['plain']:.2f}", f"{memory['cap']:.2f}", "")
    Console().print(table)
    write_json(Path("outputs/benchmarks/step.json"), results)
    return float(results["step_masks_every_10"]["ratio"])


def time_steps(cfg: DictConfig) -> dict[str, dict[str, float]]:
    """Alternate plain steps of all parameters and of those that CAP trains with CAP steps."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "plain": plain_step(new_model(cfg)),
            "plain_frozen": plain_step(new_model(cfg), freeze=frozen_parts(cfg)),
            "every_10": cap_step(cfg, new_model(cfg), Path(folder), every_n_steps=MOVE_EVERY),
            "every_1": cap_step(cfg, new_model(cfg), Path(folder), every_n_steps=1),
        }
        median = alternate(sides)
    sides_of = dict(
        zip(STEP_ROWS, [("plain", "every_10"), ("plain", "every_1"), ("plain_frozen", "every_10")], strict=True)
    )
    return {
        name: {"plain": median[plain], "cap": median[cap], "ratio": median[cap] / median[plain]}
        for name, (plain, cap) in sides_of.items()
    }


def frozen_parts(cfg: DictConfig) -> list[Part]:
    """Name the parts of the model that a run of this configuration would freeze."""
    freeze = check(cfg).config.freeze or []
    return [part for part in PARTS if part in freeze]


def alternate(sides: Mapping[str, Step]) -> dict[str, float]:
    """Take the steps of all sides in turns, each on the same made-up batch, and return the seconds of a step of each.

    They are the median of the steps that move masks every ten steps, and that of the others, as often as either comes.
    """
    seconds: dict[str, list[list[float]]] = {name: [[], []] for name in sides}
    for step in tracked(range(N_STEPS), description="steps"):
        batch = made_up_batch(step)
        for name, take_step in sides.items():
            started = time.perf_counter()
            take_step(step, batch)
            if step >= 3:  # the first ones allocate
                seconds[name][step % MOVE_EVERY == 0].append(time.perf_counter() - started)
    share = 1 / MOVE_EVERY
    return {
        name: (1 - share) * statistics.median(resting) + share * statistics.median(moving)
        for name, (resting, moving) in seconds.items()
    }


def new_model(cfg: DictConfig) -> PooledModel:
    """Load the pre-trained model with a fresh head of two classes."""
    model = cfg.model
    source = resolve_source(model.name_or_path, package=model.package, sha256=model.sha256, revision=model.revision)
    loaded = load_model(source, head=Head("classes", ("no", "yes")))
    pooling = resolve_pooling("auto", source, has_trained_pooler=loaded.has_trained_pooler)
    return PooledModel(loaded.model, pooling).train()


def made_up_batch(seed: int) -> dict[str, Tensor]:
    """Draw a batch of random tokens, none of it padding."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(1000, 30000, (BATCH, TOKENS), generator=generator),
        "attention_mask": torch.ones(BATCH, TOKENS, dtype=torch.int64),
        "labels": torch.randint(0, 2, (BATCH,), generator=generator),
        "example_id": torch.randperm(N_EXAMPLES, generator=generator)[:BATCH],
    }


def plain_step(model: PooledModel, *, freeze: Sequence[Part] = ()) -> Step:
    """Make the floor: stock model, cross-entropy, fused AdamW, clipping, linear schedule."""
    stock = model.model
    for name in parameters_of(stock, freeze):
        stock.get_parameter(name).requires_grad_(False)
    parameters = [parameter for parameter in stock.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-5, fused=True)
    scheduler = get_linear_schedule_with_warmup(optimizer, 3, N_STEPS)

    def step(index: int, batch: dict[str, Tensor]) -> None:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        loss = nn.functional.cross_entropy(stock(**inputs).logits, batch["labels"])
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    return step


def cap_module(cfg: DictConfig, model: PooledModel, folder: Path) -> tuple[CapModule, Pruner]:
    """Make a module with all three banks, nine snapshots, distillation and the pruner that ``cfg`` names."""
    settings: Any = OmegaConf.to_object(cfg.contrast)
    unsupervised_weight, supervised_weight = contrast_weights(settings)
    pruner = make_ready(check(cfg)).pruner
    pruner.attach(prunable(model.model), seed=0)
    return CapModule(
        model,
        distill=Distill(weight=0.9, ce_weight=0.1, temperature=2.0),
        optimisation=Optimisation(learning_rate=3e-5, weight_decay=0.0, warmup=0.1),
        metrics={},
        contrast=Contrast(
            sources=("pretrained", "snapshots", "finetuned"),
            unsupervised_weight=unsupervised_weight,
            supervised_weight=supervised_weight,
            temperature=settings.temperature,
            extra_examples=settings.extra_examples,
            reduction=settings.reduction,
            ignore_same_label=settings.ignore_same_label,
            anchor_dropout=0.0,
            seed=0,
        ),
        memory=made_up_memory(folder, dim=model.model.config.hidden_size),
        train_labels=torch.arange(N_EXAMPLES) % 2,
        pruner=pruner,
        freeze=parameters_of(model.model, frozen_parts(cfg)),
    ), pruner


def cap_step(cfg: DictConfig, model: PooledModel, folder: Path, *, every_n_steps: int) -> Step:
    """Make a full CAP step: loss, pruning, masks on schedule."""
    module, pruner = cap_module(cfg, model, folder)
    return training_step(module, pruner, cfg.sparsity, every_n_steps=every_n_steps)


def training_step(module: CapModule, pruner: Pruner, sparsity: float, *, every_n_steps: int) -> Step:
    """Make the step of a module: masks if they are due, loss, clipping, optimizer, schedule."""
    groups = module.parameter_groups()
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=3e-5, fused=True)
    scheduler = get_linear_schedule_with_warmup(optimizer, 3, N_STEPS)

    def step(index: int, batch: dict[str, Tensor]) -> None:
        if index % every_n_steps == 0:
            pruner.update_masks(sparsity * (index + 1) / N_STEPS)
        loss = torch.stack(list(module.loss_terms(module(batch), batch).values())).sum()
        loss.backward()
        pruner.observe_gradients(scale=None)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

    return step


def made_up_memory(folder: Path, *, dim: int) -> Memory:
    """Fill every bank with random directions."""
    memory = Memory(n_examples=N_EXAMPLES, budget=MemoryBudget(4.0))
    generator = np.random.default_rng(0)
    path = folder / "encodings.npy"
    rows = generator.standard_normal((N_EXAMPLES, dim))
    np.save(path, (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16))
    memory.add("pretrained", path)
    memory.add("finetuned", path)
    for _ in range(N_SNAPSHOTS):
        memory.add("snapshots", path)
    np.save(folder / "logits.npy", generator.standard_normal((N_EXAMPLES, 2)).astype(np.float16))
    memory.set_teacher_logits(folder / "logits.npy")
    return memory


def time_runs() -> dict[str, dict[str, float]]:
    """Time a whole CAP run, and plain fine-tuning of as many epochs on the same rows, each in a process of its own."""
    overrides = [
        *HydraConfig.get().overrides.task,
        "task=docstrings",
        f"data.max_train_rows={N_RUN_ROWS}",
        "data.max_eval_rows=64",
        "finetune.max_steps=1",
        f"trainer.max_epochs={N_EPOCHS}",
        "trainer.limit_val_batches=0",
        f"contrast.snapshot_count={N_SNAPSHOTS}",
    ]
    context = multiprocessing.get_context("spawn")
    measured: dict[str, dict[str, float]] = {}
    for side in ("plain", "cap"):
        with tempfile.TemporaryDirectory() as folder, context.Pool(1) as pool:
            folders = [f"output_dir={folder}/run", f"cache_dir={folder}/cache"]
            measured[side] = pool.apply(_run_cap if side == "cap" else _run_plain, ([*overrides, *folders],))
    seconds = {side: values["seconds"] for side, values in measured.items()}
    return {
        "run": {**seconds, "ratio": seconds["cap"] / seconds["plain"]},
        "peak_memory_gb": {side: values["memory_gb"] for side, values in measured.items()},
    }


def _run_cap(overrides: list[str]) -> dict[str, float]:
    # The teacher costs one step and is not counted: a grid trains it once.
    cfg = _compose(overrides)
    train(cfg)
    seconds = read_json(Path(cfg.output_dir) / "record.json")["seconds"]
    whole = sum(seconds.get(phase, 0.0) for phase in ("encode", "fit", "snapshots", "importance", "gradients"))
    return {"seconds": whole, "memory_gb": peak_memory_gb()["host"] or 0.0}


def _run_plain(overrides: list[str]) -> dict[str, float]:
    checked = check(_compose(overrides))
    prepared = prepare(checked)
    module = CapModule(
        prepared.pretrained,
        distill=Distill(weight=0.0, ce_weight=1.0, temperature=1.0),
        optimisation=Optimisation(learning_rate=3e-5, weight_decay=0.0, warmup=0.1),
        metrics=prepared.metrics(),
    )
    options = dataclasses.asdict(checked.config.trainer)
    trainer = build_trainer(options, run_dir=Path(checked.config.output_dir or ""), callbacks=[])
    started = time.perf_counter()
    trainer.fit(module, datamodule=prepared.datamodule)
    return {"seconds": time.perf_counter() - started, "memory_gb": peak_memory_gb()["host"] or 0.0}


def _compose(overrides: list[str]) -> DictConfig:
    register()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=overrides)


main = door(
    benchmark,
    opening="python -m benchmarks.step model=minilm\n\nTime a CAP step and a whole run beside plain fine-tuning.",
)

if __name__ == "__main__":
    main()
