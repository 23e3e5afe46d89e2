"""Read and write the folders of models that transformers alone cannot rebuild, and say what is wrong with one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.initialization import no_init_weights

from cap.base.errors import InputError, first_line, some_of
from cap.base.files import atomic_file
from cap.models.layout import read_layout, shrink

WEIGHTS_FILE = "model.safetensors"


def read_config(folder: Path) -> PretrainedConfig:
    """Read a saved model's configuration; no code of the folder is run.

    Raises:
        InputError: If the folder holds no configuration, or one that transformers cannot read.
    """
    if not (folder / "config.json").is_file():
        # A run's folder is the likely mistake.
        hint = f"give {folder / 'model'}" if (folder / "model" / "config.json").is_file() else "give another folder"
        raise InputError(f"a saved model must be a folder with a config.json, got {folder} without one; {hint}")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise InputError(
            f"config.json must be one that transformers reads, got that of {folder} ({first_line(error)}); "
            f"export or save the model again"
        ) from error
    return config


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Find the stock class that a configuration names in ``architectures``.

    Raises:
        InputError: If it names none, or one that is not transformers' own class for this kind of configuration.
    """
    names = config.architectures or ["nothing"]
    found = getattr(transformers, names[0], None)
    if isinstance(found, type) and issubclass(found, PreTrainedModel) and found.config_class is type(config):
        return found
    raise InputError(
        f"architectures in config.json must name a class of transformers for {config.model_type} models, "
        f"got {names[0]}; save the model again with a release of transformers that has it"
    )


def build(config: PretrainedConfig) -> PreTrainedModel:
    """Build the stock model of a configuration, smaller where that has a layout; its weights are not initialised.

    Raises:
        InputError: If the configuration names no stock class, or its sizes or layout cannot be.
    """
    chosen = model_class(config)
    layout = read_layout(config)
    try:
        with no_init_weights():
            model = chosen(config)
    except (ValueError, TypeError) as error:
        raise InputError(
            f"config.json must describe a model that transformers can build, got one that it cannot "
            f"({first_line(error)}); export or save the model again"
        ) from error
    if layout is not None:
        shrink(model, layout)
    return model


def fill(model: PreTrainedModel, tensors: Mapping[str, Tensor], folder: Path) -> PreTrainedModel:
    """Put weights into a model that ``build`` made: all of them, and nothing else.

    Args:
        model: The model; it is changed.
        tensors: The weights by their names in ``model.state_dict()``.
        folder: Where they came from, for the message.

    Returns:
        The same model in eval mode.

    Raises:
        InputError: If a weight is missing, superfluous or of another shape.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [
        f"{name} {found.get(name, 'missing')} for {wanted.get(name, 'nothing')}"
        for name in sorted(wanted | found)
        if wanted.get(name) != found.get(name)
    ]
    if wrong:
        raise InputError(
            f"the weights in {folder} must have the names and shapes that its config.json says, "
            f"got {some_of(wrong, separator='; ')}: its files do not belong together; export the model again"
        )
    model.load_state_dict(dict(tensors))
    model.eval()
    return model


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        The tensors by name, and the file's metadata.

    Raises:
        InputError: If the file is missing or damaged.
    """
    if not path.is_file():
        raise InputError(
            f"{path.parent} must hold the weights in {path.name}, got no such file; export the model again"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path.name} must be a whole safetensors file, got one that is damaged or cut off in {path.parent} "
            f"({first_line(error)}); copy it again or export the model again"
        ) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file that is whole or absent."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(stored, temporary, metadata=metadata)


def write_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, extra: Mapping[str, Any]
) -> None:
    """Write what stands beside the weights: the tokenizer and the configuration.

    Args:
        model: The model whose configuration it is.
        tokenizer: The tokenizer that belongs to it.
        folder: Where to write.
        extra: Keys of our own that ``config.json`` gets.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(model.dtype).removeprefix("torch.")
    for key, value in extra.items():
        setattr(config, key, value)
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


__all__ = [
    "WEIGHTS_FILE",
    "build",
    "fill",
    "model_class",
    "read_config",
    "read_tensors",
    "write_folder",
    "write_tensors",
]
