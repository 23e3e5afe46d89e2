"""How every picture looks: letters, colours, size, and how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cap.base.files import atomic_file

DPI = 160
WIDTH = 5.6
"""Inches of a picture of one column: 896 pixels."""
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine draws the same letters
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "axes.titlesize": 9.0,
    "legend.fontsize": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}
# Okabe and Ito's palette without its yellow, which white paper swallows: told apart with every common form of colour
# blindness.
BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
COLOURS = (BLUE, VERMILLION, GREEN, PINK, ORANGE, SKY, "#000000")
GREY = "#555555"


def save(figure: Figure, path: Path) -> Path:
    """Write a picture whole or not at all."""
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return path


__all__ = ["BLUE", "COLOURS", "DPI", "GREEN", "GREY", "ORANGE", "PINK", "SKY", "STYLE", "VERMILLION", "WIDTH", "save"]
