"""A batch on its way to the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_HOST_ID = "host_id"


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a batch, and leave a copy of its examples' numbers where they were.

    By these numbers the host looks up what is kept of the examples. To read them back from an accelerator it would have
    to wait for all that was given to it before.
    """
    moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
    return moved | {_HOST_ID: batch["example_id"]}


def host_ids(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the numbers of a batch's examples in the host's memory."""
    return batch.get(_HOST_ID, batch["example_id"]).cpu()


__all__ = ["host_ids", "on_device"]
