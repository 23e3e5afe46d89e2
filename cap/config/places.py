"""Where conf/ lies."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """Find conf/: beside the package in a checkout, inside it in an installed wheel."""
    package = Path(__file__).resolve().parents[1]
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


__all__ = ["conf_dir"]
