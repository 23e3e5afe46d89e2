"""Torch-Pruning: attention heads and FFN units, ranked and taken out by the tool while the student learns."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.peers.student import Outcome, begin, train_student
from cap.base.errors import InputError, RunError
from cap.formats.compact import save_compact
from cap.models.families import Units, encoder_layers, family_of, prunable
from cap.training.module import CapModule, cap_module
from cap.training.preparation import Prepared
from cap.training.ready import Ready

N_BATCHES = 10  # what the tool's example sums gradients over


def run_torch_pruning(cfg: DictConfig) -> Outcome:
    """Train the student while Torch-Pruning takes units out, at the steps and to the levels of cap's schedule."""
    start = begin(cfg)
    schedule = start.ready.plan.over(start.n_steps)
    levels = {step: schedule(step) for step in start.ready.plan.jumps(start.n_steps)}
    loader = start.prepared.datamodule.train_dataloader()
    return train_student(start, TorchPruningCallback(start.model, levels, loader), save=save_compact)


def require_separate_heads(ready: Ready, prepared: Prepared) -> None:
    """Refuse a model whose heads the tool cannot take out here.

    Raises:
        InputError: If query, key and value are one layer, or the attention cannot run with fewer heads.
    """
    model_type = prepared.pretrained.model.config.model_type
    family = family_of(model_type)
    if not family.has_removable_heads or len(family.attention_in) != 3:
        raise InputError(
            f"Torch-Pruning takes heads out of query, key and value that are layers of their own, in an attention that "
            f"runs with fewer heads, got a {model_type} model; choose a BERT, RoBERTa, ELECTRA or DistilBERT"
        )


class TorchPruningCallback(Callback):
    """Let Torch-Pruning take units out of a model before some optimizer steps.

    As its guide advises for transformers: first-order Taylor importance, every layer pruned alike, only within
    attention and FFN. Each level is a pruner of its own, because within one of several ``iterative_steps`` the tool
    takes the whole ratio so far from the heads that are left.

    Args:
        model: The student's.
        levels: Sparsity by optimizer step.
        batches: Training batches, iterated once for each level.
    """

    def __init__(self, model: PreTrainedModel, levels: Mapping[int, float], batches: Iterable[dict[str, Tensor]]):
        self.model = model
        self.levels = dict(levels)
        self.batches = batches
        self.n_heads, self.n_ffn = (units[0].n for units in units_of(model))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Prune if this step is due, and give the optimizer the smaller weights, without averages of the larger."""
        level = self.levels.pop(trainer.global_step, None)
        if level is None:
            return
        module = cap_module(pl_module)
        sum_gradients(module, itertools.islice(self.batches, N_BATCHES))
        n_heads, n_ffn = (max(1, round((1 - level) * n)) for n in (self.n_heads, self.n_ffn))
        prune_to(self.model, n_heads=n_heads, n_ffn=n_ffn)
        module.zero_grad(set_to_none=True)
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
            for group, renewed in zip(optimizer.param_groups, module.parameter_groups(), strict=True):
                group["params"] = renewed["params"]


def sum_gradients(module: CapModule, batches: Iterable[dict[str, Tensor]]) -> None:
    """Add up the gradients of what the student trains on, in eval mode, so that dropout does not blur them."""
    module.zero_grad(set_to_none=True)
    module.eval()
    for batch in batches:
        on_device = {name: values.to(module.device) for name, values in batch.items()}
        torch.stack(list(module.loss_terms(module(on_device), on_device).values())).sum().backward()
    module.train()


def prune_to(model: PreTrainedModel, *, n_heads: int, n_ffn: int) -> None:
    """Take heads and FFN units out of every layer until so many are left in each.

    Args:
        model: With a gradient on its weights.
        n_heads: At most as many as there are.
        n_ffn: Likewise.

    Raises:
        RunError: If the tool leaves another number.
    """
    import torch_pruning as tp

    heads, ffn = units_of(model)
    roots = {linear for units in (*heads, *ffn) for linear in units.incoming}
    ids = torch.ones(2, 8, dtype=torch.int64, device=model.device)
    pruner = tp.pruner.BasePruner(
        model,
        {"input_ids": ids, "attention_mask": ids},
        importance=tp.importance.GroupTaylorImportance(),
        pruning_ratio=share_to_go(ffn[0].n, n_ffn),
        prune_num_heads=True,
        prune_head_dims=False,
        head_pruning_ratio=share_to_go(heads[0].n, n_heads),
        num_heads={linear: units.n for units in heads for linear in units.incoming},
        # What is not named here would be pruned, too: the width of the whole encoder.
        ignored_layers=[part for part in model.modules() if isinstance(part, nn.Linear) and part not in roots],
        output_transform=lambda output: output[0].sum(),
        # Its defaults are dictionaries that all pruners of a process share.
        in_channel_groups={},
        out_channel_groups={},
    )
    for group in pruner.step(interactive=True):
        group.prune()
    note_heads(model)
    for kind, wanted, found in zip(("heads", "FFN units"), (n_heads, n_ffn), units_of(model), strict=True):
        left = [units.n for units in found]
        if set(left) != {wanted}:
            raise RunError(f"Torch-Pruning must leave {wanted} {kind} in every layer, but it left {left}")


def share_to_go(n: int, n_left: int) -> float:
    """Return a ratio that the tool turns into this many units: it rounds heads up and FFN units, kept ones, down."""
    return max(0.0, (n - n_left - 0.5) / n)


def note_heads(model: PreTrainedModel) -> None:
    """Tell every attention how many heads it has, as the tool's example does."""
    for layer, units in zip(encoder_layers(model).values(), units_of(model)[0], strict=True):
        for part in layer.modules():
            for name, value in (("num_attention_heads", units.n), ("all_head_size", units.n * units.size)):
                if hasattr(part, name):
                    setattr(part, name, value)


def units_of(model: PreTrainedModel) -> tuple[Sequence[Units], Sequence[Units]]:
    """List the heads and the FFN units of each layer."""
    found = prunable(model)
    return list(found.heads.values()), list(found.ffn.values())
