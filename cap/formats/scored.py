"""The model that ``cap.evaluate`` scores, whatever it was saved as."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PretrainedConfig

from cap.base.errors import InputError, some_of
from cap.base.files import file_sha256, read_json
from cap.base.kinds import KINDS, Head
from cap.formats.load import load
from cap.formats.masks import MASKS_FILE
from cap.formats.onnx import ONNX_FILE, OnnxModel, is_onnx_folder
from cap.formats.parity import LogitsModel
from cap.formats.sparse import ENCODER_FILE
from cap.models.encoders import load_model, other_problem, weights_key
from cap.models.layout import LAYOUT_KEY
from cap.models.pooled import PooledModel
from cap.models.pooling import resolve_encoding
from cap.models.sources import ModelSource, resolve_source


@dataclass(frozen=True)
class Scored:
    """Hold a model that gives an output with logits for a batch, and the name of its weights."""

    model: nn.Module
    weights: str


def saved_model(model_dir: str) -> ModelSource:
    """Turn ``model_dir`` into a source.

    Raises:
        InputError: If it is a file, or a run's folder and not the model in it.
    """
    folder = Path(model_dir)
    required = "model_dir must be a folder with a saved model (config.json and weights), or a Hub name"
    if folder.is_file():
        raise InputError(f"{required}, got the file {folder}; give the folder it lies in")
    inside = folder / "model"
    if folder.is_dir() and not (folder / "config.json").is_file() and (inside / "config.json").is_file():
        raise InputError(f"{required}, got {folder}, which is the folder of a run; give model_dir={inside}")
    return resolve_source(model_dir, package=None, sha256=None, revision=None)


def require_answers(config: PretrainedConfig, *, head: Head, name: str) -> None:
    """Refuse a model that was never trained to answer, or whose answers are of another kind.

    Args:
        config: The model's own.
        head: What the task asks of it.
        name: How to call the model.

    Raises:
        InputError: If its architecture is not that of such a model, or was trained for another problem; where it names
            none, its weights must decide.
    """
    if not KINDS[head.kind].learns_from_labels:
        return  # the layers below any head encode texts
    architectures, wanted = config.architectures or [], KINDS[head.kind].head
    if architectures and not any(architecture.endswith(wanted) for architecture in architectures):
        raise InputError(
            f"model_dir must hold a model that was fine-tuned on the task, with a head for it (...{wanted}), got "
            f"{name} with {', '.join(architectures)}; fine-tune it first (python -m cap.finetune), or give another"
        )
    problem = other_problem(config, head.kind)
    if problem is not None:
        raise InputError(
            f"model_dir must hold a model that was trained for {KINDS[head.kind].problem_type} as this task is, got "
            f"{name} for {problem}; give the task.label_type that it was trained with, another model, or the rows that "
            f"it was trained on"
        )


def load_scored(source: ModelSource, head: Head, *, base: str | None = None) -> Scored:
    """Load a model that was trained to answer, whether saved by transformers or as an export of any format.

    Args:
        source: Where it is.
        head: What it answers.
        base: The model that masks lie on, see ``cap.load``.

    Raises:
        InputError: If it cannot be loaded, or some of its weights, the head's say, are not in the checkpoint; if a base
            is named for anything but masks.
    """
    if base is not None and not (source.is_folder and (Path(source.name_or_path) / MASKS_FILE).is_file()):
        raise InputError(
            f"base belongs to an export with format=masks, got base={base} with {source.label}; leave it out"
        )
    folder, is_bare = Path(source.name_or_path), not KINDS[head.kind].learns_from_labels
    pooling = resolve_encoding("auto", source) if is_bare else "first_token"
    if source.is_folder and is_onnx_folder(folder):
        graph = folder / ONNX_FILE
        return Scored(LogitsModel(OnnxModel(graph)), file_sha256(graph)[:16])
    if _is_export(source):
        model = load(folder, base=base)
        return Scored(PooledModel(model, pooling), weights_key(model))
    loaded = load_model(source, head=head)
    # No vector is read from a pooler, and checkpoints of language models have none.
    drawn = [name for name in loaded.drawn if not (is_bare and "pooler" in name)]
    if drawn:
        raise InputError(
            f"model_dir must hold a model that was fine-tuned on the task, got {source.label} without "
            f"{some_of(drawn)}, so that its answers would be random; fine-tune it first (python -m cap.finetune), "
            f"or give another"
        )
    return Scored(PooledModel(loaded.model, pooling), weights_key(loaded.model))


def _is_export(source: ModelSource) -> bool:
    if not source.is_folder:
        return False
    folder = Path(source.name_or_path)
    is_packed = any((folder / name).is_file() for name in (ENCODER_FILE, MASKS_FILE))
    return is_packed or LAYOUT_KEY in read_json(folder / "config.json")


__all__ = ["Scored", "load_scored", "require_answers", "saved_model"]
