"""Contrastive pruning of pre-trained language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cap.formats.load import load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: transformers takes seconds, and every command line imports this package first.
    if name == "load":
        from cap.formats.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
