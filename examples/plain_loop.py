"""Prune by contrast in a loop of one's own: `python examples/plain_loop.py`.

A bare encoder with a head of one's own is pruned to 90 % by magnitude, while it is contrasted with what it was before.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, BertConfig, BertModel

import cap

SPARSITY, N_EXAMPLES, N_STEPS, BATCH = 0.9, 160, 40, 8


class Classifier(nn.Module):
    """Hold a bare encoder and a linear head."""

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
        self.encoder = BertModel(config, add_pooling_layer=False)  # yours: AutoModel.from_pretrained
        self.head = nn.Linear(32, 2)

    def encode(self, input_ids: Tensor) -> Tensor:
        """Return the encoding: the mean of the last hidden states, of length 1."""
        hidden: Tensor = self.encoder(input_ids).last_hidden_state
        return functional.normalize(hidden.mean(dim=1), dim=-1)


def rows() -> tuple[Tensor, Tensor]:
    """Make rows whose label is whether they begin with an even number."""
    input_ids = torch.randint(5, 30, (N_EXAMPLES, 6), generator=torch.Generator().manual_seed(1))
    return input_ids, 1 - input_ids[:, 0] % 2


def train(checkpoint: Path, *, start: int = 0) -> tuple[Classifier, cap.Magnitude, list[float]]:
    """Train to the end; write a checkpoint half-way, or go on from it."""
    input_ids, labels = rows()
    model = Classifier()
    memory = cap.Memory(N_EXAMPLES)
    with torch.no_grad():
        memory.add("pretrained", model.encode(input_ids))

    pruner = cap.attach(model.encoder, cap.Magnitude(scope="global"))
    optimizer = torch.optim.AdamW(cap.parameter_groups(model, pruner, learning_rate=1e-3, weight_decay=0.01))
    schedule = cap.Cubic(sparsity=SPARSITY).over(N_STEPS)
    if start:
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])  # masks and scores are part of it
        optimizer.load_state_dict(saved["optimizer"])
        pruner.load_state_dict(saved["pruner"])

    contrasts = []
    for step in range(start, N_STEPS):
        if step == N_STEPS // 2 and not start:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "pruner": pruner.state_dict()}
            torch.save(state, checkpoint)
        pruner.update_masks(schedule(step))
        example_id = torch.arange(BATCH) + step * BATCH % N_EXAMPLES
        anchors = model.encode(input_ids[example_id])
        candidates = torch.cat([anchors.detach(), memory.gather("pretrained", example_id)[:, 0].float()])
        candidate_id = torch.cat([example_id, example_id])
        is_self = torch.eye(BATCH, 2 * BATCH, dtype=torch.bool)
        is_positive = (example_id[:, None] == candidate_id) & ~is_self
        contrast = cap.contrastive_loss(
            anchors, candidates, is_positive, is_self=is_self, temperature=0.1, reduction="anchors"
        )
        loss = functional.cross_entropy(model.head(anchors), labels[example_id]) + 0.1 * contrast
        loss.backward()
        pruner.observe_gradients(scale=None)  # what cap.FirstOrder ranks by; others pass over it
        pruner.adjust_gradients(scale=None)  # what cap.Admm trains by; others leave the gradients alone
        optimizer.step()
        optimizer.zero_grad()
        contrasts.append(contrast.item())
    return model, pruner, contrasts


def main(folder: Path) -> dict[str, object]:
    """Train, resume, fold, save and load with stock transformers."""
    model, pruner, contrasts = train(folder / "half.pt")
    resumed, other, _ = train(folder / "half.pt", start=N_STEPS // 2)
    masks, again = pruner.masks, other.masks
    equal_masks = all(torch.equal(masks[name], again[name]) for name in masks)
    equal_weights = all(torch.equal(value, resumed.state_dict()[name]) for name, value in model.state_dict().items())

    names = list(masks)
    pruner.fold()
    model.encoder.save_pretrained(folder / "pruned")
    loaded = AutoModel.from_pretrained(folder / "pruned", add_pooling_layer=False)
    weights = [loaded.get_submodule(name).weight for name in names]
    n_zero = sum(int((weight == 0).sum()) for weight in weights)
    return {
        "contrast": contrasts[-1],
        "saved": n_zero / sum(weight.numel() for weight in weights),
        "equal_masks": equal_masks,
        "equal_weights": equal_weights,
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        shown = main(Path(name))
    print(f"a loop of one's own, magnitude, asked for sparsity {SPARSITY}: saved {shown['saved']:.4f}")
    print(f"contrastive loss at the end: {shown['contrast']:.3f} nats")
    print(f"resumed from its checkpoint: equal masks {shown['equal_masks']}, weights {shown['equal_weights']}")
