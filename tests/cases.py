"""Cases of one test: those of all that a developer's run takes, and pairs of choices that do not act on each other."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import pytest


def cases(of: Mapping[str, Any] | Iterable[str], *, daily: Collection[str]) -> list[Any]:
    """Make pytest parameters; those that are not named in ``daily`` are marked ``ends``.

    Args:
        of: Values by the names of their cases; a tuple is several values. Names alone are their own values.
        daily: Cases that every run takes: one of each kind.

    Raises:
        ValueError: If a daily case is none.
    """
    named = of if isinstance(of, Mapping) else {name: name for name in of}
    if not set(daily) <= set(named):
        raise ValueError(f"daily cases must be among {list(named)}, but {sorted(set(daily) - set(named))} are not")
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            id=name,
            marks=[] if name in daily else [pytest.mark.ends],
        )
        for name, value in named.items()
    ]


def each_with_the_first(rows: Sequence[Any], columns: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Pair every row with the first column, and the first row with every column: for choices that are independent."""
    return [*((row, columns[0]) for row in rows), *((rows[0], column) for column in columns[1:])]
