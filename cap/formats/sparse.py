"""Store a pruned model as one bit per prunable weight plus the weights that are left; loads back bit-identical.

A folder of this format holds:

- ``encoder.safetensors``, the prunable matrices and nothing else. Each matrix NAME, a parameter of the stock model such
  as ``bert.encoder.layer.0.attention.self.query.weight``, is three tensors:

  - ``NAME.shape``: int64 (2,), rows and columns;
  - ``NAME.bitmask``: uint8 (ceil(rows · columns / 8),), one bit per weight, row by row, the first of eight weights in
    the lowest bit, 1 = kept; bits after the last weight are 0;
  - ``NAME.values``: float32 (number of kept weights,), in the same order.

  A weight is kept unless all of its 32 bits are 0: of the two zeros, -0.0 is kept and 0.0 is not. The file's metadata
  is ``{"cap_sparse": "1"}``, the version.
- ``rest.safetensors``, all other weights, dense.
- ``config.json`` and the tokenizer, as ever; a compact model's keeps its layout.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cap.base.errors import InputError
from cap.formats.bits import pack_bits, unpack_bits
from cap.formats.folders import build, fill, read_config, read_tensors, write_folder, write_tensors
from cap.models.families import prunable_linears

ENCODER_FILE = "encoder.safetensors"
REST_FILE = "rest.safetensors"
_VERSION_KEY = "cap_sparse"
_VERSION = "1"
_PARTS = ("shape", "bitmask", "values")


def save_sparse(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model in the sparse format; load it with ``cap.load(folder)`` or ``load_sparse``.

    Args:
        model: A stock model in float32 or a compact one, its masks folded.
        tokenizer: The tokenizer that belongs to it.
        folder: Where to write; files of the same names are replaced.

    Raises:
        ValueError: If the model is not float32, or its masks have not been folded.
    """
    state = model.state_dict()
    names = [f"{name}.weight" for name in prunable_linears(model)]
    for name in names:
        if name not in state or state[name].dtype != torch.float32:
            found = state[name].dtype if name in state else "a mask on it"
            raise ValueError(f"{name} must be float32 with its mask folded to be stored as sparse, got {found}")
    packed: dict[str, Tensor] = {}
    for name in names:
        packed |= {f"{name}.{part}": tensor for part, tensor in zip(_PARTS, pack(state.pop(name)), strict=True)}
    write_tensors(folder / ENCODER_FILE, packed, {_VERSION_KEY: _VERSION})
    write_tensors(folder / REST_FILE, state, {"format": "pt"})
    write_folder(model, tokenizer, folder, extra={})


def load_sparse(folder: Path) -> PreTrainedModel:
    """Load what ``save_sparse`` wrote, bit by bit, into the stock transformers class.

    Returns:
        The model in eval mode; smaller where the configuration has a layout.

    Raises:
        InputError: If the folder holds no sparse model, one of another version, or files that are damaged or do not
            belong together.
    """
    config = read_config(folder)
    packed, metadata = read_tensors(folder / ENCODER_FILE)
    if metadata.get(_VERSION_KEY) != _VERSION:
        raise InputError(
            f"{ENCODER_FILE} must be of version {_VERSION} of the sparse format, got version "
            f"{metadata.get(_VERSION_KEY)!r} in {folder}; load it with the release of cap that wrote it, or export the "
            f"model again with this one"
        )
    names = sorted({name.rpartition(".")[0] for name in packed})
    tensors = {name: _unpack_named(packed, name, folder) for name in names}
    rest, _ = read_tensors(folder / REST_FILE)
    return fill(build(config), tensors | rest, folder)


def pack(
    weight: Float[Tensor, "rows columns"],
) -> tuple[Int64[Tensor, " 2"], UInt8[Tensor, " bytes"], Float[Tensor, " kept"]]:
    """Split a float32 matrix into its shape, one bit per weight, and the kept weights in order."""
    flat = weight.detach().cpu().flatten()
    is_kept = flat.view(torch.int32) != 0
    return torch.tensor(weight.shape), pack_bits(is_kept), flat[is_kept]


def unpack(
    shape: Int64[Tensor, " 2"], bitmask: UInt8[Tensor, " bytes"], values: Float[Tensor, " kept"]
) -> Float[Tensor, "rows columns"]:
    """Put a matrix together from what ``pack`` returned.

    Raises:
        ValueError: If the three do not belong together.
    """
    rows, columns = shape.tolist()
    try:
        is_kept = unpack_bits(bitmask, rows * columns)
    except ValueError as error:
        raise ValueError(f"a matrix of {rows} x {columns} has one bit for each weight: {error}") from error
    if min(rows, columns) < 0 or int(is_kept.sum()) != len(values):
        raise ValueError(
            f"a matrix of {rows} x {columns} has as many values as bits are set, got {int(is_kept.sum())} set bits "
            f"and {len(values)} values"
        )
    flat = torch.zeros(len(is_kept), dtype=values.dtype)
    flat[is_kept] = values
    return flat.view(rows, columns)


def _unpack_named(packed: dict[str, Tensor], name: str, folder: Path) -> Tensor:
    try:
        shape, bitmask, values = (packed[f"{name}.{part}"] for part in _PARTS)
        return unpack(shape, bitmask, values)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{ENCODER_FILE} must hold a shape, a bitmask and values that fit for every matrix, got others for {name} "
            f"in {folder} ({error}); export the model again"
        ) from error


__all__ = ["ENCODER_FILE", "REST_FILE", "load_sparse", "pack", "save_sparse", "unpack"]
