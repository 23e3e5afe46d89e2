"""Fewer encoder layers: those that ``pruning=layers`` keeps, and those that sentence-transformers' example keeps.

Both take them out before the first step, so that every step is as cheap as it can be.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from omegaconf import DictConfig
from torch import nn
from transformers import PreTrainedModel

from benchmarks.peers.student import Outcome, Start, begin, train_student
from cap.base.errors import InputError
from cap.models.encoders import quiet_transformers, save_model
from cap.models.families import encoder_stack, prunable
from cap.pruning.layers import Layers
from cap.pruning.masks import n_to_prune
from cap.pruning.parameters import kept_parameters
from cap.training.preparation import Prepared
from cap.training.ready import Ready


def run_layers(cfg: DictConfig) -> Outcome:
    """Train the student with the layers that ``pruning=layers`` keeps by default, evenly spaced from first to last."""
    start = begin(cfg)
    pruner = Layers(final_sparsity=start.ready.config.sparsity)
    pruner.attach(prunable(start.model), seed=cfg.seed)
    pruner.update_masks(pruner.final_sparsity)
    pruner.fold()
    return train_student(start)


def run_sentence_transformers(cfg: DictConfig) -> Outcome:
    """Train the student with the layers that sentence-transformers' example of layer reduction keeps.

    As in ``model_distillation_layer_reduction.py``, the list of layers of a model that the library has loaded is
    replaced; the class is its CrossEncoder, which has a task head. The example then distils embeddings with a trainer
    of its own. Here rows, steps and loss are those of the other sides, so that the layers are the only difference.
    """
    start = begin(cfg)
    model = in_cross_encoder(start)
    n = len(encoder_stack(model).layers)
    keep_layers(model, every_nth(n, n - n_to_prune(start.ready.config.sparsity, n)))
    for name in kept_parameters(model, start.module.pruner, start.ready.config.freeze or []):
        model.get_parameter(name).requires_grad_(False)
    start.module.student.model = model.train()
    return train_student(start)


def require_whole_layers(ready: Ready, prepared: Prepared) -> None:
    """Refuse a sparsity that is no share of the layers, and a loss that needs them all.

    Raises:
        InputError: If it is none, or the teacher's hidden states are learned from.
    """
    if ready.config.distill.hidden_weight > 0:
        raise InputError(
            f"sides with fewer layers cannot learn from the hidden states of each, got distill.hidden_weight="
            f"{ready.config.distill.hidden_weight:g}; set it to 0"
        )
    try:
        Layers(final_sparsity=ready.config.sparsity).check(prunable(prepared.pretrained.model))
    except ValueError as error:
        raise InputError(f"structured pruning is compared with as many layers removed, and {error}") from error


def in_cross_encoder(start: Start) -> PreTrainedModel:
    """Load the student into sentence-transformers' CrossEncoder, and return its model."""
    from sentence_transformers import CrossEncoder

    with tempfile.TemporaryDirectory() as folder, quiet_transformers():
        save_model(start.model, start.prepared.tokenizer, Path(folder))
        encoder = CrossEncoder(folder, device="cpu", local_files_only=True)
    model: PreTrainedModel = encoder.model
    return model


def keep_layers(model: PreTrainedModel, kept: list[int]) -> None:
    """Leave some layers, by their numbers, in a model's list, and say so in its configuration."""
    stack = encoder_stack(model)
    parent, _, name = stack.path.rpartition(".")
    setattr(model.get_submodule(parent), name, nn.ModuleList([stack.layers[number] for number in kept]))
    model.config.num_hidden_layers = len(kept)


def every_nth(n: int, n_kept: int) -> list[int]:
    """Choose layers as the example does, every third of 24: from the first on, at equal distances, rounded down.

    Args:
        n: How many there are.
        n_kept: How many are chosen, 1 to ``n``.
    """
    return [number * n // n_kept for number in range(n_kept)]
