"""Tables in markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_BAR = re.compile(r"(?<!\\)\|")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table whose cells are markdown already; a bar does not end one."""
    return "\n".join([_line(header), _line(["---"] * len(header)), *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    found = (_BAR.sub(r"\\|", cell) for cell in cells)
    return "".join(f"| {cell} " if cell else "| " for cell in found) + "|"


__all__ = ["table"]
