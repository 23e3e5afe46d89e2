"""Masks as one bit per weight, in the order of the weights: the first of eight in the lowest bit, 1 = kept."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor


def pack_bits(is_set: Bool[Tensor, "*shape"]) -> UInt8[Tensor, " bytes"]:
    """Put eight entries into each byte, row by row; bits after the last entry are 0."""
    return torch.from_numpy(np.packbits(is_set.cpu().flatten().numpy(), bitorder="little"))


def unpack_bits(packed: UInt8[Tensor, " bytes"], n: int) -> Bool[Tensor, " n"]:
    """Take the entries out of the bytes that ``pack_bits`` returned.

    Args:
        packed: The bytes.
        n: How many entries there are.

    Raises:
        ValueError: If so many entries take another number of bytes, or a bit after the last one is set.
    """
    bits = np.unpackbits(packed.numpy(), bitorder="little")
    if n < 0 or len(packed) != -(-n // 8) or bits[n:].any():
        raise ValueError(f"{n} bits take {-(-n // 8)} bytes that end with 0, got {len(packed)} bytes or another end")
    return torch.from_numpy(bits[:n].astype(bool))


__all__ = ["pack_bits", "unpack_bits"]
