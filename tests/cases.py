"""Cases of one test, of which a developer's run takes a few and CI takes all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
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
