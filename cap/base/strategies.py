"""Which of Lightning's strategies and accelerators a run can have, by name; known without Lightning."""

from __future__ import annotations

FIND_UNUSED = {
    "auto": False,
    "ddp": False,
    "ddp_find_unused_parameters_false": False,
    "ddp_find_unused_parameters_true": True,
}
"""Whether parameters may stay without a gradient, at the price of a search in every step."""

ON_GPUS = ("auto", "gpu", "cuda")
"""Its accelerators that take CUDA's devices where there are some."""


def problem_of_strategy(name: str) -> str | None:
    """Say why a strategy cannot work here: it splits the model, or starts its processes by itself."""
    if name in FIND_UNUSED:
        return None
    return (
        f"trainer.strategy must be auto, ddp or ddp_find_unused_parameters_true, got {name!r}: masks and scores "
        f"lie on whole matrices, which every process must hold complete, and a process must be a command of its "
        f"own. Use trainer.strategy=ddp with trainer.devices=N"
    )


__all__ = ["FIND_UNUSED", "ON_GPUS", "problem_of_strategy"]
