"""Prune within a LightningModule of one's own: `python examples/lightning_module.py`.

A run is pruned to 90 % and leaves a checkpoint half-way; another one goes on from there and ends in the same model.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

import cap

SPARSITY = 0.9


class Classifier(LightningModule):
    """Tell whether a sequence begins with an even number: yours would load a checkpoint instead."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=30,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.model = BertForSequenceClassification(config)
        self.pruner = cap.attach(self.model, cap.Movement(scope="matrix"))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        input_ids, labels = batch
        loss: Tensor = self.model(input_ids=input_ids, labels=labels).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Give the scores their own learning rate."""
        return torch.optim.AdamW(cap.parameter_groups(self.model, self.pruner, learning_rate=1e-3))


def rows() -> DataLoader:
    """Make 160 rows in batches of 8."""
    input_ids = torch.randint(5, 30, (160, 6), generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(input_ids, 1 - input_ids[:, 0] % 2), batch_size=8)


def train(folder: Path, checkpoint: Path | None = None) -> tuple[Classifier, cap.PruningCallback]:
    """Train two epochs, or go on from a checkpoint."""
    module = Classifier()
    pruning = cap.PruningCallback(module.pruner, cap.Cubic(sparsity=SPARSITY))
    saving = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[pruning, saving],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, rows(), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return module, pruning


def main(folder: Path) -> dict[str, object]:
    """Train, resume, fold, save and load with stock transformers."""
    module, pruning = train(folder / "whole")
    resumed, _ = train(folder / "resumed", folder / "whole" / "epoch=0.ckpt")
    masks, again = module.pruner.masks, resumed.pruner.masks
    equal_masks = all(torch.equal(masks[name], again[name]) for name in masks)
    equal_weights = all(torch.equal(value, resumed.state_dict()[name]) for name, value in module.state_dict().items())

    names = list(masks)
    module.pruner.fold()
    module.model.save_pretrained(folder / "pruned")
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
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as name:
        shown = main(Path(name))
    print(f"Lightning, movement, asked for sparsity {SPARSITY}: reached {shown['reached']:.4f}")
    print(f"zeros in the folder that save_pretrained wrote: {shown['saved']:.4f}")
    print(f"resumed from Lightning's checkpoint: equal masks {shown['equal_masks']}, weights {shown['equal_weights']}")
