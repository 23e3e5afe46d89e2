"""Lists of words, as tokenizers that keep the space before a word want them."""

from __future__ import annotations


def spaced(words: list[str], between: str) -> list[str]:
    """Put something before every word but the first."""
    return [words[0], *(between + word for word in words[1:])] if between else words


__all__ = ["spaced"]
