"""What test_several_processes trains, in one process or in two; it leaves its findings in files."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForQuestionAnswering, BertForSequenceClassification

from cap.base.errors import RunError
from cap.base.memory_budget import MemoryBudget
from cap.models.families import prunable
from cap.models.pooled import PooledModel
from cap.objectives.memory import Memory
from cap.pruning.admm import Admm
from cap.pruning.first_order import FirstOrder
from cap.pruning.layers import Layers
from cap.pruning.magnitude import Magnitude
from cap.pruning.movement import Movement
from cap.pruning.parameters import kept_parameters
from cap.pruning.platon import Platon
from cap.pruning.pruner import Pruner
from cap.pruning.schedule import SchedulePlan
from cap.pruning.second_order import SecondOrder
from cap.pruning.soft_movement import SoftMovement
from cap.pruning.static_scores import StaticScores
from cap.pruning.structured import Structured
from cap.training.callbacks.agreement import MaskAgreement, hash_masks
from cap.training.callbacks.gradient_shares import GradientShares
from cap.training.callbacks.importance import ImportanceCallback
from cap.training.callbacks.pruning import PruningCallback
from cap.training.module import CapModule, Contrast, Distill, Optimisation
from cap.training.parallel.ranks import ALONE, Ranks, ranks_of
from cap.training.parallel.strategy import make_strategy

N_EXAMPLES, DIM, N_LAYERS, N_OUTPUTS = 40, 32, 2, 3
N_TOKENS = np.random.default_rng(0).integers(3, 13, N_EXAMPLES)
ANSWERS = np.random.default_rng(2).integers(0, N_TOKENS[:, None], (N_EXAMPLES, 2))
LABELS: dict[str, Tensor] = {
    "classes": torch.arange(N_EXAMPLES) % N_OUTPUTS,
    "number": torch.linspace(0, 5, N_EXAMPLES),
    "span": torch.from_numpy(np.sort(ANSWERS, axis=1)),
}
N_STEPS, BATCH_SIZE = 10, 4
# Five steps an epoch; the last batch has five rows, which two processes cannot share evenly.
ROWS = [list(range(i, i + 8)) for i in range(0, 32, 8)] + [list(range(32, 37))]
VALIDATION = [[0, 1, 2, 3, 4], [5, 6], [7]]


@dataclass(frozen=True)
class Case:
    """One kind of run."""

    kind: str
    pruner: Callable[[], Pruner]
    contrast: Mapping[str, Any] | None = field(default_factory=dict)
    distill: Distill = Distill(weight=0.9, ce_weight=0.1, temperature=2.0)  # noqa: RUF009 - frozen
    accumulate: int = 1
    n_labelled: int | None = None  # the examples from this one on have no label
    precision: str = "32-true"


def structured(loss: str) -> Structured:
    return Structured(importance="gradient", importance_rows=24, importance_loss=loss, final_sparsity=0.5)


PLAIN = Distill(weight=0.0, ce_weight=1.0, temperature=1.0)
HIDDEN = {
    form: Distill(weight=0.0, ce_weight=0.1, temperature=1.0, hidden_weight=1.0, hidden=form, snapshot_weight=0.5)
    for form in ("pooled", "tokens")
}
CASES: dict[str, Case] = {
    "soft movement": Case(
        "classes",
        lambda: SoftMovement(
            score_learning_rate=1e-2,
            threshold="target",
            regularizer_weight=1.0,
            final_sparsity=0.5,
            score_init="magnitude",
        ),
    ),
    "movement, reduction anchors, micro-batches": Case(
        "classes",
        lambda: Movement(score_learning_rate=1e-2, score_init="magnitude"),
        contrast={"reduction": "anchors", "supervised_weight": 0.3},
        accumulate=2,
    ),
    # Batches with a label in every row, on one process alone, and in none.
    "movement, rows without a label": Case(
        "classes", lambda: Movement(score_learning_rate=1e-2, score_init="magnitude"), n_labelled=11
    ),
    "first order, spans": Case("span", lambda: FirstOrder(scope="matrix")),
    "magnitude, numbers, labels alone": Case("number", Magnitude, contrast=None, distill=PLAIN),
    "hidden states, snapshot's logits": Case("classes", Magnitude, contrast=None, distill=HIDDEN["pooled"]),
    "the same of tokens and spans": Case("span", Magnitude, contrast=None, distill=HIDDEN["tokens"], accumulate=2),
    "structured, total": Case("classes", lambda: structured("total")),
    "structured, task": Case("span", lambda: structured("task"), contrast=None, distill=PLAIN),
    "platon": Case("classes", lambda: Platon(window=2), contrast=None, distill=PLAIN),
    "admm": Case("classes", lambda: Admm(final_sparsity=0.5, interval=2)),
    "static scores": Case("classes", lambda: StaticScores(final_sparsity=0.5, regularizer_weight=1.0)),
    # A pass before the seventh step, when one of the two layers goes.
    "layers": Case(
        "classes",
        lambda: Layers(final_sparsity=0.5, importance="loss", importance_rows=24),
        contrast=None,
    ),
    # A pass in every step, of five batches: the second process has one less. Two processes add in another order, and in
    # float32 the rounding of that moves weights across the threshold after some steps, which ones depends on the CPU.
    "second order": Case("classes", lambda: SecondOrder(n_gradients=5, gradient_rows=8), precision="64-true"),
}


class Plan(SchedulePlan):
    """Raise sparsity in every step, or in the middle of the run where there are levels."""

    sparsity = 0.5
    warmup = 0.0

    def __init__(self, *, has_levels: bool) -> None:
        self.has_levels = has_levels

    def over(self, n_steps: int) -> Callable[[int], float]:
        return lambda step: 0.5 * (step >= n_steps // 2 if self.has_levels else step / n_steps)

    def level_starts(self, n_steps: int) -> list[int] | None:
        return [n_steps // 2] if self.has_levels else None

    def jumps(self, n_steps: int) -> list[int]:
        return [n_steps // 2 if self.has_levels else n_steps - 1]


class Answers:
    """Average the labels and the largest outputs of all rows."""

    is_constant = False

    def __init__(self) -> None:
        self.reset()

    def update(self, logits: Tensor, batch: Mapping[str, Tensor]) -> None:
        self.values += [*zip(batch["example_id"].tolist(), logits.flatten(1).amax(dim=1).tolist(), strict=True)]

    def state(self) -> list[tuple[int, float]]:
        return self.values

    def merge(self, states: Sequence[list[tuple[int, float]]]) -> None:
        self.values = [value for state in states for value in state]

    def compute(self) -> dict[str, float]:
        return {"n_rows": float(len(self.values)), "mean": sum(value for _, value in self.values) / len(self.values)}

    def reset(self) -> None:
        self.values: list[tuple[int, float]] = []


class Recorder(Callback):
    """Write down what happens in every step."""

    def __init__(self) -> None:
        self.losses: list[dict[str, float]] = []
        self.masks: list[list[int]] = []
        self.gradients: dict[str, Tensor] = {}
        self.scores: dict[str, float] = {}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if not self.gradients:
            parameters = pl_module.named_parameters()
            self.gradients = {name: p.grad.clone() for name, p in parameters if p.grad is not None}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        metrics = trainer.callback_metrics.items()
        self.losses.append({name: float(value) for name, value in metrics if name.startswith("loss/")})
        self.masks.append(hash_masks(pl_module.pruner.masks).tolist())

    def on_validation_end(self, trainer, pl_module) -> None:
        metrics = trainer.callback_metrics.items()
        self.scores = {name: float(value) for name, value in metrics if name.startswith("val/")}


def make_memory(folder: Path, kind: str) -> Memory:
    draw = np.random.default_rng(5)
    memory = Memory(n_examples=N_EXAMPLES, budget=MemoryBudget(1.0))
    for number, source in enumerate(["pretrained", "snapshots", "snapshots", "finetuned"]):
        rows = draw.standard_normal((N_EXAMPLES, DIM))
        np.save(folder / f"{number}.npy", (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16))
        memory.add(source, folder / f"{number}.npy")
    shape = (int(N_TOKENS.sum()), 2) if kind == "span" else (N_EXAMPLES, N_OUTPUTS)
    np.save(folder / "logits.npy", draw.standard_normal(shape).astype(np.float16))
    np.save(folder / "lengths.npy", N_TOKENS)
    memory.set_teacher_logits(folder / "logits.npy", lengths=folder / "lengths.npy" if kind == "span" else None)
    np.save(folder / "snapshot.npy", draw.standard_normal(shape).astype(np.float16))
    memory.set_snapshot_logits(folder / "snapshot.npy", lengths=folder / "lengths.npy" if kind == "span" else None)
    np.save(folder / "hidden.npy", draw.standard_normal((N_EXAMPLES, N_LAYERS, DIM)).astype(np.float16))
    memory.set_hidden(folder / "hidden.npy")
    return memory


def make_module(case: Case, folder: Path) -> CapModule:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20,
        hidden_size=DIM,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels={"classes": N_OUTPUTS, "number": 1, "span": 2}[case.kind],
    )
    is_span = case.kind == "span"
    model = BertForQuestionAnswering(config) if is_span else BertForSequenceClassification(config)
    teacher = type(model)(config)
    with torch.no_grad():  # LayerNorm as it starts gives every token the same size
        for parameter in teacher.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    pruner = case.pruner()
    pruner.attach(prunable(model), seed=0)
    contrast = {
        "sources": ("pretrained", "snapshots", "finetuned"),
        "unsupervised_weight": 0.5,
        "supervised_weight": 3.0,
        "temperature": 0.1,
        "extra_examples": 12,
        "reduction": "pairs",
        "anchor_dropout": 0.0,
        "seed": 0,
    }
    return CapModule(
        PooledModel(model, "first_token" if is_span else "pooler"),
        distill=case.distill,
        optimisation=Optimisation(learning_rate=1e-3, weight_decay=0.01, warmup=0.1),
        metrics={"validation": Answers()},
        contrast=None if case.contrast is None else Contrast(**(contrast | dict(case.contrast))),
        memory=make_memory(folder, case.kind),
        train_labels=labels_of(case),
        train_groups=torch.arange(N_EXAMPLES) // 3 if is_span else None,
        pruner=pruner,
        freeze=kept_parameters(model, pruner),
        teacher=PooledModel(teacher, "first_token"),
    )


def labels_of(case: Case) -> Tensor:
    labels = LABELS[case.kind].clone()
    labels[N_EXAMPLES if case.n_labelled is None else case.n_labelled :] = -100
    return labels


def make_batch(ids: list[int], kind: str, n_labelled: int | None = None) -> dict[str, Tensor]:
    """Pad a batch to its own longest row, as a process does with its share."""
    n_tokens = torch.from_numpy(N_TOKENS)[ids]
    tokens = torch.randint(5, 20, (N_EXAMPLES, 16), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(int(n_tokens.max())) < n_tokens[:, None]).long()
    batch = {
        "input_ids": tokens[ids, : mask.shape[1]] * mask,
        "attention_mask": mask,
        "labels": LABELS[kind][ids],
        "example_id": torch.tensor(ids),
    }
    return batch if n_labelled is None else batch | {"is_labelled": batch["example_id"] < n_labelled}


def loader_of(rows: list[list[int]], kind: str, n_labelled: int | None = None) -> DataLoader:
    return DataLoader([make_batch(ids, kind, n_labelled) for ids in rows], batch_size=None)


def share_of(rows: list[list[int]], ranks: Ranks) -> list[list[int]]:
    return [np.array_split(ids, ranks.size)[ranks.rank].tolist() for ids in rows]


def make_trainer(folder: Path, n_processes: int, callbacks: list[Callback], **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=n_processes,
        strategy=make_strategy("auto", n_processes=n_processes),
        max_steps=N_STEPS,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        **options,
    )


def train(case: Case, folder: Path, ranks: Ranks) -> dict[str, Any]:
    """Train ten steps and say what happened."""
    module = make_module(case, folder)
    train_rows = share_of(ROWS, ranks)
    plan = Plan(has_levels=module.pruner.needs_levels or module.pruner.prunes_at_once)
    pruning = PruningCallback(module.pruner, plan, adds_regularizer=False)
    wanted = module.pruner.importance_pass
    has_own = wanted is not None and wanted.batch_rows is not None
    pass_rows = ROWS[ranks.rank :: ranks.size] if has_own else train_rows
    importance = ImportanceCallback(
        pruning,
        loader=lambda step: loader_of(pass_rows, case.kind),
        batch_size=8 // ranks.size,
        n_examples=N_EXAMPLES,
    )
    recorder = Recorder()
    shares: dict[str, float] = {}
    gradients = GradientShares(pruning, from_sparsity=0.0, note=shares.update)
    callbacks = [importance, gradients, pruning, MaskAgreement(), recorder]
    options = {"accumulate_grad_batches": case.accumulate, "precision": case.precision}
    trainer = make_trainer(folder, ranks.size, callbacks, **options)
    trainer.fit(
        module,
        train_dataloaders=loader_of(train_rows, case.kind, case.n_labelled),
        # Whole batches in turn: one process has two of the three.
        val_dataloaders=loader_of(VALIDATION[ranks.rank :: ranks.size], case.kind),
    )
    return {
        "losses": recorder.losses,
        "masks": recorder.masks,
        "gradients": recorder.gradients,
        "scores": recorder.scores,
        "shares": shares,
        "extras": torch.randint(1000, (3,), generator=module._extras).tolist(),
    }


def fail(folder: Path, ranks: Ranks, *callbacks: Callback, change: Callable[[CapModule], None]) -> str:
    """Train with something wrong on the second process and return the error."""
    case = CASES["magnitude, numbers, labels alone"]
    module = make_module(case, folder)
    if ranks.rank == 1:
        change(module)
    loader = loader_of(share_of(ROWS, ranks), case.kind)
    trainer = make_trainer(folder, ranks.size, list(callbacks), limit_val_batches=0)
    try:
        trainer.fit(module, train_dataloaders=loader, val_dataloaders=loader)
    except RunError as error:
        return str(error)
    return "no error"


def break_weights(module: CapModule) -> None:
    def update(*_: Any) -> None:
        with torch.no_grad():
            module.student.model.classifier.bias.fill_(torch.nan)

    module.on_train_batch_start = update


def flip_one_entry(module: CapModule) -> None:
    def flip(*_: Any) -> None:
        list(module.pruner.masks.values())[3][1, 2] = False

    # After the first step's comparison: before the run begins, masks are those of rank 0 everywhere.
    module.on_train_batch_start = flip


def die_in_backward(module: CapModule) -> None:
    def kill(loss: Tensor) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    module.on_before_backward = kill


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    trainer = make_trainer(folder, 2, [])
    trainer.strategy.setup_environment()
    ranks = ranks_of(trainer)
    own = folder / f"rank-{ranks.rank}"
    own.mkdir()
    found = {name: train(case, own, ranks) for name, case in CASES.items()}
    torch.save(found, own / "found.pt")
    errors = {
        "loss": fail(own, ranks, change=break_weights),
        "masks": fail(own, ranks, MaskAgreement(), change=flip_one_entry),
    }
    (own / "errors.json").write_text(json.dumps(errors), encoding="utf-8")
    errors["peer"] = fail(own, ranks, change=die_in_backward)
    (own / "errors.json").write_text(json.dumps(errors), encoding="utf-8")


def alone(case: str, folder: Path) -> dict[str, Any]:
    """Train with the whole batches in one process."""
    return train(CASES[case], folder, ALONE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
