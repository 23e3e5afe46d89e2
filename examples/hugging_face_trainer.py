"""Prune within transformers' Trainer: `python examples/hugging_face_trainer.py`; it needs `pip install accelerate`.

A run is pruned to 90 % and leaves a checkpoint half-way; another one goes on from there and ends in the same model.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
)

import cap

SPARSITY = 0.9


def new_model() -> BertForSequenceClassification:
    """Make a tiny model: yours would come from ``AutoModelForSequenceClassification.from_pretrained``."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    return BertForSequenceClassification(config)


def rows() -> list[dict[str, Tensor]]:
    """Make 160 rows whose label is whether they begin with an even number."""
    input_ids = torch.randint(5, 30, (160, 6), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": ids, "labels": 1 - ids[0] % 2} for ids in input_ids]


def train(
    folder: Path, checkpoint: Path | None = None
) -> tuple[BertForSequenceClassification, cap.PruningTrainerCallback]:
    """Train two epochs, or go on from a checkpoint."""
    model = new_model()
    pruner = cap.attach(model, cap.SoftMovement(final_sparsity=SPARSITY))
    pruning = cap.PruningTrainerCallback(pruner, cap.Cubic(sparsity=SPARSITY))
    optimizer = torch.optim.AdamW(cap.parameter_groups(model, pruner, learning_rate=1e-3))
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=8,
        save_steps=20,
        logging_steps=20,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows(),  # type: ignore[arg-type] - a list serves
        optimizers=(optimizer, None),
        callbacks=[pruning],
    )
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return model, pruning


def main(folder: Path) -> dict[str, object]:
    """Train, resume, fold, save and load with stock transformers."""
    model, pruning = train(folder / "whole")
    resumed, other = train(folder / "resumed", folder / "whole" / "checkpoint-20")
    masks, again = pruning.pruner.masks, other.pruner.masks
    equal_masks = all(torch.equal(masks[name], again[name]) for name in masks)
    equal_weights = all(torch.equal(value, resumed.state_dict()[name]) for name, value in model.state_dict().items())

    names = list(masks)
    pruning.pruner.fold()
    model.save_pretrained(folder / "pruned")
    loaded = AutoModelForSequenceClassification.from_pretrained(folder / "pruned")
    weights = [loaded.get_submodule(name).weight for name in names]
    n_zero = sum(int((weight == 0).sum()) for weight in weights)
    return {
        "reached": pruning.reached,
        "saved": n_zero / sum(weight.numel() for weight in weights),
        "equal_masks": equal_masks,
        "equal_weights": equal_weights,
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        shown = main(Path(name))
    print(f"transformers' Trainer, soft movement, asked for sparsity {SPARSITY}: reached {shown['reached']:.4f}")
    print(f"zeros in the folder that save_pretrained wrote: {shown['saved']:.4f}")
    print(f"resumed from its checkpoint: equal masks {shown['equal_masks']}, weights {shown['equal_weights']}")
