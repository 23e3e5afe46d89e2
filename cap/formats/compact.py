"""Take pruned heads and FFN units physically out of a model, and save and load what is left."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import ACT2FN

from cap.base.errors import InputError
from cap.formats.folders import WEIGHTS_FILE, build, fill, read_config, read_tensors, write_folder, write_tensors
from cap.models.families import Units, family_of, prunable
from cap.models.layout import LAYOUT_KEY, Layout, keep_units, read_layout


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """Hold a smaller model and what was taken out of it.

    Args:
        model: A stock model with smaller linear layers, in eval mode; its ``config.cap_layout`` is the layout.
        layout: The heads and FFN units left in each layer.
        removed_heads: By layer name, the numbers of the heads that went, counted in the model that was given.
        removed_ffn: The same for FFN units.
        note: Why heads were left although they could have gone; None where nothing was left.
    """

    model: PreTrainedModel
    layout: Layout
    removed_heads: dict[str, list[int]]
    removed_ffn: dict[str, list[int]]
    note: str | None

    def for_record(self) -> dict[str, Any]:
        """Return counts and numbers as plain JSON values."""
        return {
            "heads": _summary(self.layout.heads, self.removed_heads),
            "ffn": _summary(self.layout.ffn, self.removed_ffn),
            "note": self.note,
        }


def compact(model: PreTrainedModel) -> Compacted:
    """Copy a model without the heads and FFN units that its zeros have killed.

    A unit goes if each of its dimensions either has no outgoing weight, or holds a constant, which is then added to the
    outgoing bias, or is 0 where there is none: an FFN unit without incoming weights holds the activation of its bias,
    in a gated FFN times that of its gate, and a dimension of a head without value weights its value bias, because
    attention weights add up to 1 over the real tokens (there must be one). A head without query or key weights attends
    to all tokens alike, so it stays. Every layer keeps at least one head and one FFN unit. It makes no difference which
    pruning type left the zeros.

    Args:
        model: A stock model of a known family, its masks folded; it is not changed.

    Returns:
        The smaller model, whose logits in eval mode are those of ``model`` up to rounding (1e-5 in float32).

    Raises:
        InputError: If the family is not known.
        ValueError: If the masks have not been folded.
    """
    if any(parametrize.is_parametrized(module) for module in model.modules()):
        raise ValueError("the masks must be folded into the weights before a model is compacted; call pruner.fold()")
    family = family_of(model.config.model_type)
    smaller = copy.deepcopy(model).eval()
    found = prunable(smaller)
    activation = _activation(getattr(smaller.config, family.activation))
    note = None
    with torch.no_grad():
        removed_ffn = {name: _remove(units, _ffn_constants(units, activation)) for name, units in found.ffn.items()}
        if family.has_removable_heads:
            removed_heads = {name: _remove(units, _head_constants(units)) for name, units in found.heads.items()}
        else:
            removed_heads = {name: [] for name in found.heads}
            n_dead = sum(int(_is_removable(units, _head_constants(units)).sum()) for units in found.heads.values())
            note = (
                f"the attention of {model.config.model_type} cannot run with fewer heads: {n_dead} dead heads stay, "
                f"and only FFN units were removed"
            )
    layout = Layout.of(smaller)
    setattr(smaller.config, LAYOUT_KEY, layout.to_config())
    return Compacted(model=smaller, layout=layout, removed_heads=removed_heads, removed_ffn=removed_ffn, note=note)


def save_compact(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a smaller model: ``model.safetensors``, ``config.json`` with its layout, and the tokenizer.

    ``config.json`` is the dense model's with the key ``cap_layout`` (see ``Layout``). Load the folder with
    ``cap.load(folder)`` or ``load_compact``: transformers' own ``AutoModelFor….from_pretrained`` builds the dense
    shapes and stops because the weights have others.

    Args:
        model: What ``compact`` gave, trained further or not.
        tokenizer: The tokenizer that belongs to it.
        folder: Where to write; files of the same names are replaced.
    """
    write_tensors(folder / WEIGHTS_FILE, model.state_dict(), {"format": "pt"})
    write_folder(model, tokenizer, folder, extra={LAYOUT_KEY: Layout.of(model).to_config()})


def load_compact(folder: Path) -> PreTrainedModel:
    """Load what ``save_compact`` wrote, bit by bit, into the stock transformers class with smaller linear layers.

    Returns:
        The model in float32 and eval mode.

    Raises:
        InputError: If the folder holds no compact model, one of another version, or files that are damaged or do not
            belong together.
    """
    config = read_config(folder)
    if read_layout(config) is None:
        raise InputError(
            f"a compact model's config.json must have the key {LAYOUT_KEY}, got {folder} without it; "
            f"load another folder with cap.load(FOLDER), or export one with format=compact"
        )
    return fill(build(config), read_tensors(folder / WEIGHTS_FILE)[0], folder)


def _remove(units: Units, constants: Float[Tensor, " columns"]) -> list[int]:
    """Take out what is removable, fold constants into the outgoing bias, and return the numbers that went."""
    is_removed = _is_removable(units, constants)
    if is_removed.all():
        is_removed[0] = False
    if units.outgoing.bias is not None:
        removed = units.columns(is_removed)
        # A sum over thousands of units: in float64, so that it rounds once. A silent unit, constant or not, adds zero.
        held = constants[removed].nan_to_num(0.0).double()
        units.outgoing.bias.copy_(units.outgoing.bias.double() + units.outgoing.weight[:, removed].double() @ held)
    keep_units(units, ~is_removed)
    return [int(number) for number in is_removed.nonzero().flatten()]


def _is_removable(units: Units, constants: Float[Tensor, " columns"]) -> Bool[Tensor, " units"]:
    is_silent = (units.outgoing.weight == 0).all(dim=0)  # (columns,)
    # Without a bias there is no place for a constant but 0.
    is_foldable = constants == 0 if units.outgoing.bias is None else ~constants.isnan()
    return (is_silent | is_foldable).view(units.n, units.size).all(dim=1)


def _head_constants(units: Units) -> Float[Tensor, " columns"]:
    """Return what each dimension of the heads holds whatever the inputs are; NaN where it depends on them."""
    _, _, value = _row_constants(units)
    return value


def _ffn_constants(units: Units, activation: Callable[[Tensor], Tensor]) -> Float[Tensor, " columns"]:
    """Return what each FFN unit holds whatever the inputs are; NaN where it depends on them."""
    activated, *factors = _row_constants(units)
    held = activation(activated)
    for factor in factors:
        # Times 0 all is 0, what depends on the inputs, too.
        held = (held * factor).masked_fill((held == 0) | (factor == 0), 0.0)
    return held


def _row_constants(units: Units) -> list[Float[Tensor, " columns"]]:
    """Return what the rows of each incoming matrix give whatever the inputs are; NaN where it depends on them."""
    found: list[Tensor] = []
    for linear in units.incoming:
        bias = linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
        constants = bias.masked_fill((linear.weight != 0).any(dim=1), math.nan)
        found += constants.split(units.n * units.size)
    return found


def _activation(chosen: str | Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    function: Callable[[Tensor], Tensor] = ACT2FN[chosen] if isinstance(chosen, str) else chosen
    return function


def _summary(left: tuple[int, ...], removed: dict[str, list[int]]) -> dict[str, Any]:
    n_removed = sum(len(numbers) for numbers in removed.values())
    return {"before": sum(left) + n_removed, "after": sum(left), "left_by_layer": list(left), "removed": removed}


__all__ = ["Compacted", "compact", "load_compact", "save_compact"]
