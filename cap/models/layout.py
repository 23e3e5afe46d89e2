"""How many heads and FFN units every layer of a smaller model has, and how its config.json says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from cap.base.errors import InputError
from cap.models.families import Units, family_of, prunable

LAYOUT_KEY = "cap_layout"
_VERSION = 1


@dataclass(frozen=True)
class Layout:
    """Hold how many units every encoder layer has, in order of depth.

    In ``config.json`` it is ``"cap_layout": {"version": 1, "heads": [4, 2], "ffn": [64, 17]}``, a number per layer; all
    other keys stay those of the dense model, which give the size of a head.

    Args:
        heads: Attention heads per layer, at least 1 each.
        ffn: FFN units per layer, at least 1 each.
    """

    heads: tuple[int, ...]
    ffn: tuple[int, ...]

    @classmethod
    def of(cls, model: PreTrainedModel) -> Layout:
        """Read the layout off the shapes of a model's matrices."""
        found = prunable(model)
        return cls(tuple(units.n for units in found.heads.values()), tuple(units.n for units in found.ffn.values()))

    def to_config(self) -> dict[str, Any]:
        """Return what ``config.json`` holds under ``cap_layout``."""
        return {"version": _VERSION, "heads": list(self.heads), "ffn": list(self.ffn)}


def read_layout(config: PretrainedConfig) -> Layout | None:
    """Read the layout from a configuration.

    Returns:
        The layout; None if the configuration has none, as that of a dense model.

    Raises:
        InputError: If it has another version, or is not two lists of whole numbers.
    """
    found = getattr(config, LAYOUT_KEY, None)
    if found is None:
        return None
    version = found.get("version") if isinstance(found, dict) else None
    if version != _VERSION:
        raise InputError(
            f"{LAYOUT_KEY} in config.json must have version {_VERSION}, got version {version!r}; load the folder with "
            f"the release of cap that wrote it, or export the model again with this one"
        )
    return Layout(_counts(found, "heads"), _counts(found, "ffn"))


def shrink(model: PreTrainedModel, layout: Layout) -> None:
    """Give a dense model's linear layers the shapes of a layout, in place; which of the weights stay is undefined.

    Args:
        model: A model whose weights are loaded afterwards.
        layout: What it will have.

    Raises:
        InputError: If the model has other layers, fewer units, or an attention that cannot run with fewer heads.
    """
    found = prunable(model)
    kinds = (("heads", layout.heads, found.heads.values()), ("ffn", layout.ffn, found.ffn.values()))
    for kind, counts, dense in kinds:
        available = [units.n for units in dense]
        if len(counts) != len(available) or any(n > most for n, most in zip(counts, available, strict=True)):
            raise InputError(
                f"{LAYOUT_KEY}.{kind} must hold one number for each of the {len(available)} layers, none larger than "
                f"{max(available, default=0)}, got {list(counts)}; config.json was changed: export the model again"
            )
    model_type = model.config.model_type
    if layout.heads != Layout.of(model).heads and not family_of(model_type).has_removable_heads:
        raise InputError(
            f"{LAYOUT_KEY}.heads must be that of the dense model for {model_type}, whose attention cannot run with "
            f"fewer heads, got {list(layout.heads)}; export the model again"
        )
    for _, counts, dense in kinds:
        for n, units in zip(counts, dense, strict=True):
            keep_units(units, torch.arange(units.n) < n)


def keep_units(units: Units, is_kept: Bool[Tensor, " units"]) -> None:
    """Take the rows and columns of all other units out of the matrices, in place.

    Args:
        units: The units of one kind in one layer; its counts are those of before.
        is_kept: True for a unit that stays.
    """
    for linear in units.incoming:
        kept = units.rows(is_kept, linear)
        bias = None if linear.bias is None else linear.bias[kept]
        _replace(linear, linear.weight[kept], bias)
    _replace(units.outgoing, units.outgoing.weight[:, units.columns(is_kept)], units.outgoing.bias)


def _replace(linear: nn.Linear, weight: Float[Tensor, "rows columns"], bias: Float[Tensor, " rows"] | None) -> None:
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.detach().contiguous(), requires_grad=linear.weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=linear.bias.requires_grad)


def _counts(found: dict[str, Any], kind: str) -> tuple[int, ...]:
    counts = found.get(kind)
    if not isinstance(counts, list) or any(type(count) is not int or count < 1 for count in counts):
        raise InputError(
            f"{LAYOUT_KEY}.{kind} in config.json must be a list of whole numbers from 1 on, one per layer, "
            f"got {counts!r}; config.json was changed: export the model again"
        )
    return tuple(counts)


__all__ = ["LAYOUT_KEY", "Layout", "keep_units", "read_layout", "shrink"]
