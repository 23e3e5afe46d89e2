from __future__ import annotations

import pytest
import torch
from torch import nn

# Multiples of 200, so that 0.5 % of each is a whole number.
SHAPES = {"query": (20, 30), "wide": (40, 50), "small": (10, 20)}


@pytest.fixture
def linears() -> dict[str, nn.Linear]:
    """Make three matrices of 600, 2000 and 200 weights."""
    torch.manual_seed(0)
    return {name: nn.Linear(columns, rows) for name, (rows, columns) in SHAPES.items()}


@pytest.fixture
def randomise():
    """Draw all scores and averages of matrices that carry masks."""

    def draw(linears: dict[str, nn.Linear], seed: int = 1) -> None:
        generator = torch.Generator().manual_seed(seed)
        for linear in linears.values():
            for values in linear.parametrizations.weight[0].state_dict().values():
                # state_dict shares memory; masks are the only values that are not floating point.
                values.copy_(torch.randn(values.shape, generator=generator) if values.is_floating_point() else values)

    return draw
