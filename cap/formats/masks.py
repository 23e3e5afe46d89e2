"""Store what was learned on weights that were never trained: one bit per prunable weight, and the rest that was.

The weights themselves stay with their base, the pre-trained model, which any number of tasks share. A folder of this
format holds:

- ``masks.safetensors``. Each prunable matrix, a parameter of the stock model such as
  ``bert.encoder.layer.0.attention.self.query.weight``, is one tensor of its name: uint8 (ceil(rows · columns / 8),),
  one bit per weight, row by row, the first of eight weights in the lowest bit, 1 = kept; bits after the last weight
  are 0. The file's metadata is

  - ``cap_masks``: ``"1"``, the version;
  - ``base_key``: names the weights that are taken from the base by their content, see
    ``cap.models.encoders.tensors_key``;
  - ``base_name_or_path``, ``base_package``, ``base_revision``: where the base was, as ``model.*`` of the run said;
    what was null is absent.
- ``trained.safetensors``, all weights that the base lacks or has with other bits, dense: the head, say.
- ``config.json`` and the tokenizer, as transformers writes them.

A pruned weight is 0.0, and a kept one that of the base, in float32.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cap.base.errors import InputError
from cap.formats.bits import pack_bits, unpack_bits
from cap.formats.folders import build, fill, read_config, read_tensors, write_folder, write_tensors
from cap.models.encoders import quiet_transformers, tensors_key
from cap.models.families import prunable_linears
from cap.models.sources import ModelSource, errors_of, where_from
from cap.training.recorded_model import PLACE, recorded_model

MASKS_FILE = "masks.safetensors"
TRAINED_FILE = "trained.safetensors"
_VERSION_KEY = "cap_masks"
_VERSION = "1"
_KEY = "base_key"


def base_of(settings: Mapping[str, Any], *, named_in: str) -> ModelSource:
    """Find the base of a run.

    Args:
        settings: What the run's configuration holds under ``model``.
        named_in: What a message calls the file that holds them.

    Raises:
        InputError: If it is nowhere, or comes with a package that conf/model does not name.
    """
    return dataclasses.replace(recorded_model(settings, named_in=named_in), role="base model")


def save_masks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, settings: Mapping[str, Any]
) -> None:
    """Write a model as masks on its base; load it with ``cap.load(folder)`` or ``load_masks``.

    Args:
        model: A stock model in float32, its masks folded.
        tokenizer: The tokenizer that belongs to it.
        folder: Where to write; files of the same names are replaced.
        settings: Says where the base is, see ``base_of``.

    Raises:
        InputError: If a kept weight of a prunable matrix is not that of the base, or the base cannot be loaded.
    """
    source = base_of(settings, named_in="the run's record")
    base, state = _read_base(model.config, type(model), source), model.state_dict()
    masks = {f"{name}.weight": state[f"{name}.weight"] != 0 for name in prunable_linears(model)}
    trained = {
        name: tensor
        for name, tensor in state.items()
        if name not in base or not _has_same_bits(tensor, _masked(base[name], masks.get(name)))
    }
    moved = [name for name in masks if name in trained]
    if moved:
        raise InputError(
            f"format=masks stores masks on weights that were never trained, but {len(moved)} of the {len(masks)} "
            f"matrices of the run are not those of {source.label}, {moved[0]} first; prune with "
            f"pruning=static_scores student_init=pretrained, or export with format=sparse"
        )
    place = {f"base_{key}": str(settings[key]) for key in PLACE if settings.get(key) is not None}
    key = tensors_key({name: base[name] for name in state if name not in trained})
    packed = {name: pack_bits(mask) for name, mask in masks.items()}
    write_tensors(folder / MASKS_FILE, packed, {_VERSION_KEY: _VERSION, _KEY: key, **place})
    write_tensors(folder / TRAINED_FILE, trained, {"format": "pt"})
    write_folder(model, tokenizer, folder, extra={})


def load_masks(folder: Path, *, base: str | Path | None = None) -> PreTrainedModel:
    """Put what ``save_masks`` wrote on its base again, bit by bit, in the stock transformers class.

    Args:
        folder: The export.
        base: Where the base is now, a folder or a Hub name; None looks where it was when the run was made.

    Returns:
        The model in eval mode.

    Raises:
        InputError: If the folder holds no masks, those of another version, or files that are damaged or do not belong
            together; or if the base cannot be found, or is another one.
    """
    config = read_config(folder)
    packed, metadata = read_tensors(folder / MASKS_FILE)
    if metadata.get(_VERSION_KEY) != _VERSION:
        raise InputError(
            f"{MASKS_FILE} must be of version {_VERSION} of the format of masks, got version "
            f"{metadata.get(_VERSION_KEY)!r} in {folder}; load it with the release of cap that wrote it, or export the "
            f"model again with this one"
        )
    trained, _ = read_tensors(folder / TRAINED_FILE)
    model = build(config)
    found, label = _find_base(config, type(model), metadata, base, folder)
    taken = {name: found[name] for name in model.state_dict() if name not in trained and name in found}
    key = tensors_key(taken)
    if key != metadata.get(_KEY):
        raise InputError(
            f"masks must be put on the base that they were learned on, whose weights have the key "
            f"{metadata.get(_KEY)}, but those of {label} have {key}; name the right one: "
            f'cap.load("{folder}", base=FOLDER), or base=FOLDER of cap.evaluate'
        )
    names = [f"{name}.weight" for name in prunable_linears(model)]
    masks = {name: _unpack_named(packed.get(name), taken.get(name), name, folder) for name in names}
    weights = {name: _masked(tensor, masks.get(name)) for name, tensor in taken.items()}
    return fill(model, weights | trained, folder)


def _find_base(
    config: PretrainedConfig,
    chosen: type[PreTrainedModel],
    metadata: Mapping[str, str],
    base: str | Path | None,
    folder: Path,
) -> tuple[dict[str, Tensor], str]:
    """Return the weights of the base and what a message calls it."""
    place: dict[str, str | None] = {key: metadata.get(f"base_{key}") for key in PLACE}
    try:
        source = base_of(place if base is None else {"name_or_path": str(base)}, named_in=f"{MASKS_FILE} in {folder}")
        return _read_base(config, chosen, source), source.label
    except InputError as error:
        raise InputError(
            f'{error}. If the base of {folder} lies elsewhere, name it: cap.load("{folder}", base=FOLDER), or '
            f"base=FOLDER of cap.evaluate"
        ) from error


def _read_base(config: PretrainedConfig, chosen: type[PreTrainedModel], source: ModelSource) -> dict[str, Tensor]:
    """Read the weights of a base, by the names that they have in a model with a head; what it lacks is left out."""
    # What is missing is drawn at random: the random state stays as it was.
    with errors_of(source), quiet_transformers(), torch.random.fork_rng(devices=[]):
        loaded: Any = chosen.from_pretrained(
            source.name_or_path,
            **where_from(source),
            config=copy.deepcopy(config),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    model, info = loaded
    absent = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in absent}


def _masked(weight: Tensor, mask: Tensor | None) -> Tensor:
    # Adding zero turns a masked negative weight, -0.0, into 0.0, as folding does.
    return weight if mask is None else weight * mask + 0.0


def _has_same_bits(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(*(tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)))


def _unpack_named(packed: Tensor | None, weight: Tensor | None, name: str, folder: Path) -> Tensor:
    try:
        if packed is None or weight is None:
            raise ValueError("there is none in the file, or no such matrix in the base")
        return unpack_bits(packed, weight.numel()).view(weight.shape)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{MASKS_FILE} must hold one bit for each weight of a matrix, got something else for {name} in {folder} "
            f"({error}); export the model again"
        ) from error


__all__ = ["MASKS_FILE", "TRAINED_FILE", "base_of", "load_masks", "save_masks"]
