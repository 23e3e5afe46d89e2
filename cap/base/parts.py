"""What surrounds the encoder layers of a model, by the names that ``freeze`` takes."""

from __future__ import annotations

from typing import Literal, get_args

Part = Literal["embeddings", "pooler", "head"]
PARTS: tuple[Part, ...] = get_args(Part)

__all__ = ["PARTS", "Part"]
