"""What mixed precision does to gradients."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from torch.optim import Optimizer


def has_scaler(trainer: Trainer) -> bool:
    """Say whether a loss scaler multiplies the losses, and skips steps whose gradients overflow."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def loss_scale(trainer: Trainer) -> float | None:
    """Return the factor by which a loss scaler has multiplied the gradients; None if there is no scaler."""
    if not has_scaler(trainer):
        return None
    plugin: Any = trainer.precision_plugin
    return float(plugin.scaler.get_scale())


def handles_unscaling(optimizer: Optimizer) -> bool:
    """Say whether an optimizer divides its gradients by that factor itself, in its step, as fused ones do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


__all__ = ["handles_unscaling", "has_scaler", "loss_scale"]
