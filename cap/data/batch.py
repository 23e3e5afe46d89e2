"""A batch on its way to the device, with what the host will want to know of it.

To read something back from an accelerator the host would have to wait for all that it was given before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

_HOST_ID = "host_id"
_PLACES = "places_of_"


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Any]:
    """Move a batch; leave a copy of its examples' numbers where they were, and find the places of boolean columns.

    By these numbers the host looks up what is kept of the examples. They are an array, because DDP moves every tensor
    that it finds in a batch.
    """
    found = {f"{_PLACES}{name}": _places(value) for name, value in batch.items() if value.dtype == torch.bool}
    moved = {name: value.to(device, non_blocking=True) for name, value in {**batch, **found}.items()}
    return {**moved, _HOST_ID: batch["example_id"].cpu().numpy()}


def host_ids(batch: Mapping[str, Any]) -> Int64[Tensor, " batch"]:
    """Return the numbers of a batch's examples in the host's memory."""
    kept: np.ndarray | None = batch.get(_HOST_ID)
    return batch["example_id"].cpu() if kept is None else torch.from_numpy(kept)


def places(batch: Mapping[str, Tensor], name: str) -> Int64[Tensor, " places"]:
    """Say where a boolean column of a batch is true, counted through all its entries, on the batch's device."""
    found = batch.get(f"{_PLACES}{name}")
    return _places(batch[name]) if found is None else found


def _places(column: Tensor) -> Tensor:
    return column.flatten().nonzero().squeeze(1)


__all__ = ["host_ids", "on_device", "places"]
