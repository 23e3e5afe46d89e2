"""The state of every random generator of a process, in the types that ``torch.load(weights_only=True)`` reads.

And the switches of a process that make its algorithms deterministic.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def keeping_determinism() -> Iterator[None]:
    """Put back afterwards what ``trainer.deterministic`` switches for the whole process: another job may follow."""
    is_on = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmarks, workspace = torch.backends.cudnn.benchmark, os.environ.get(_WORKSPACE)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_on, warn_only=warns_only)
        torch.backends.cudnn.benchmark = benchmarks
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
        else:
            os.environ[_WORKSPACE] = workspace


def random_state(device: torch.device) -> dict[str, Any]:
    """Write down where Python's, numpy's and PyTorch's generators stand.

    Args:
        device: Where the run computes; a CUDA device has a generator of its own.
    """
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put the generators where ``random_state`` found them.

    Args:
        state: What it returned.
        device: Where the run computes.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


__all__ = ["keeping_determinism", "random_state", "set_random_state"]
