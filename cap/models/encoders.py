"""Load encoders with a task head, save them, and name them by what they compute."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)
from transformers.utils import logging as transformers_logging

from cap.base.errors import InputError, some_of
from cap.base.files import content_key
from cap.base.kinds import KINDS, Head, Kind
from cap.models.depth import forget_removed
from cap.models.families import base_path
from cap.models.layout import LAYOUT_KEY
from cap.models.outputs import are_no_names, are_same, names_of_outputs, order_by_name
from cap.models.sources import ModelSource, errors_of, load_config, where_from

# What a configuration says about names, versions and the task head's labels, and not about what is computed.
_ONLY_NAMES = {
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "transformers_version",
}
_AUTO_CLASSES: dict[Kind, Any] = {
    "classes": AutoModelForSequenceClassification,
    "label_sets": AutoModelForSequenceClassification,
    "number": AutoModelForSequenceClassification,
    "span": AutoModelForQuestionAnswering,
    "tags": AutoModelForTokenClassification,
    "encoding": AutoModel,
}
# By family.
_HEADS: dict[Kind, Collection[str]] = {
    "classes": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "label_sets": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "number": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "span": MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "tags": MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "encoding": MODEL_MAPPING_NAMES,
}
AUTO_CLASS: dict[Kind, str] = {kind: chosen.__name__ for kind, chosen in _AUTO_CLASSES.items()}
"""Name of the transformers class that loads a saved model, by what it answers."""


@dataclass(frozen=True)
class LoadedModel:
    """Hold a model, whether its pooler was trained, and which weights are not from the checkpoint but drawn.

    A pooler was trained if its weights came from the checkpoint and its bias is not all zero, as where it begins.
    """

    model: PreTrainedModel
    has_trained_pooler: bool
    drawn: tuple[str, ...]


def require_head(model_type: str, kind: Kind) -> None:
    """Check that transformers has a task head for a family.

    Args:
        model_type: The family, as in ``config.model_type``.
        kind: What the task asks for.

    Raises:
        InputError: If it has none.
    """
    if model_type not in _HEADS[kind]:
        raise InputError(
            f"this task needs {AUTO_CLASS[kind]}, which transformers does not have for {model_type} models; choose "
            f"another task, or a model of another family"
        )


def other_problem(config: PretrainedConfig, kind: Kind) -> str | None:
    """Return what a model's configuration calls its problem where that is another one than a task's.

    One label a text and any number of them have the same head, and the same number of outputs.

    Args:
        config: The model's own.
        kind: What the task asks for.

    Returns:
        None where the problem is the same, or one of the two does not say.
    """
    found, wanted = getattr(config, "problem_type", None), KINDS[kind].problem_type
    return str(found) if found and wanted and found != wanted else None


def load_model(source: ModelSource, *, head: Head) -> LoadedModel:
    """Load a model with a task head in float32; head and pooler that the checkpoint lacks come from the global seed.

    Args:
        source: Where from.
        head: What the task asks of it.

    Raises:
        InputError: If the model is neither a folder nor on the Hub or in its cache, takes no such head, or lacks
            weights of its encoder.
    """
    options: dict[str, Any] = {"num_labels": head.n_outputs} if head.n_outputs else {}
    problem_type = KINDS[head.kind].problem_type
    if problem_type is not None:
        options["problem_type"] = problem_type
    if head.labels:
        options["id2label"] = dict(enumerate(head.labels))
        options["label2id"] = {label: i for i, label in enumerate(head.labels)}
    with errors_of(source), quiet_transformers():
        model, info = _AUTO_CLASSES[head.kind].from_pretrained(
            source.name_or_path,
            **where_from(source),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    forget_removed(model.config)
    # A head of another width is replaced by a fresh one; anything else that does not fit is a broken folder.
    mismatches = [key for key in info["mismatched_keys"] if key[0].startswith(base_path(model))]
    if mismatches:
        shapes = [f"{name} {tuple(found)} for {tuple(wanted)}" for name, found, wanted in mismatches]
        is_compact = hasattr(model.config, LAYOUT_KEY)
        raise InputError(
            f"the weights of {source.label} must have the shapes that its config.json says, got "
            f"{some_of(shapes, separator='; ')}"
            + ("; it is an export that cap.load opens: give the model/ of its run" if is_compact else "")
        )
    _require_encoder(model, source, info)
    missing = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    is_drawn = any("pooler" in key for key in missing)
    has_learned = any(
        "pooler" in name and name.endswith("bias") and bool(parameter.any())
        for name, parameter in model.base_model.named_parameters()
    )
    return LoadedModel(model, has_learned and not is_drawn, tuple(sorted(missing)))


def load_in_order(source: ModelSource, *, head: Head) -> tuple[LoadedModel, list[str]]:
    """Load a model as ``load_model`` does, with a trained head's outputs in the order of the task's labels.

    transformers keeps a head by its shape, whatever its outputs are called.

    Args:
        source: Where from.
        head: What the task asks of it.

    Returns:
        The model, and what a reader must know of its head.

    Raises:
        InputError: As ``load_model``.
    """
    loaded = load_model(source, head=head)
    is_trained = all(name.startswith(base_path(loaded.model)) for name in loaded.drawn)
    if not head.labels or not is_trained:
        return loaded, []
    found, wanted = names_of_outputs(load_config(source)), list(head.labels)
    order = order_by_name(found, wanted)
    if order is not None:
        _reorder(loaded.model, order)
        return loaded, [f"{source.label} has its labels in the order {found}; its outputs are matched by name."]
    if are_same(found, wanted) or are_no_names(found):
        return loaded, []
    return loaded, [f"The head of {source.label} was trained for {found}; this task begins with it for {wanted}."]


def _reorder(model: PreTrainedModel, order: Sequence[int]) -> None:
    """Put the outputs of a head into another order: those of its last layer of as many."""
    base = base_path(model)
    layers = [
        layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == len(order) and not name.startswith(base)
    ]
    with torch.no_grad():
        for parameter in layers[-1].parameters():
            parameter.copy_(parameter[list(order)])


def _require_encoder(model: PreTrainedModel, source: ModelSource, info: Mapping[str, Collection[str]]) -> None:
    """Refuse a checkpoint without the weights below head and pooler, in whose place transformers draws random ones."""
    absent = sorted(name for name in info["missing_keys"] if name.startswith(base_path(model)) and "pooler" not in name)
    if not absent:
        return
    others = sorted(info["unexpected_keys"])
    if any(".parametrizations." in name for name in others):
        hint = "it was saved with its masks on: call pruner.fold() before save_pretrained"
    elif others:
        hint = f"it has {some_of(others)} instead: save it with save_pretrained, whose names transformers knows"
    else:
        hint = "save it again, whole"
    raise InputError(
        f"the {source.role} must have all weights of its encoder, got {source.label} without {some_of(absent)}, so "
        f"that those would be random; {hint}"
    )


def load_saved_model(folder: Path, kind: Kind) -> PreTrainedModel:
    """Load a saved model with its head in float32, with stock transformers."""
    with quiet_transformers():
        model: PreTrainedModel = _AUTO_CLASSES[kind].from_pretrained(folder, dtype=torch.float32)
    return model


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that stock transformers loads: configuration, safetensors, tokenizer."""
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def weights_key(model: nn.Module) -> str:
    """Name a model by its weights: the same for the same bits, whatever file they came from."""
    return tensors_key(model.state_dict())


def tensors_key(tensors: Mapping[str, Tensor]) -> str:
    """Name some tensors by their names and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def model_key(model: nn.Module) -> str:
    """Name a model by what it computes: its weights, and what its configuration says about them.

    The same weights give other outputs with another activation, number of heads or epsilon, and learn otherwise with
    another dropout.
    """
    described: Any = model.config  # of any stock model, with its task head or without
    config = json.loads(described.to_json_string(use_diff=False))
    return content_key([weights_key(model), {name: value for name, value in config.items() if name not in _ONLY_NAMES}])


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and reports of weights off the screen for the block.

    A fresh task head is what this program wants: a report of "newly initialized" weights would alarm.
    """
    verbosity, has_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if has_bars:
            transformers_logging.enable_progress_bar()


__all__ = [
    "AUTO_CLASS",
    "LoadedModel",
    "load_in_order",
    "load_model",
    "load_saved_model",
    "model_key",
    "other_problem",
    "quiet_transformers",
    "require_head",
    "save_model",
    "tensors_key",
    "weights_key",
]
