"""Contrastive pruning of pre-trained language models.

The library's face: put masks on a model with ``attach``, train it in Lightning's trainer (``PruningCallback``), in
transformers' (``PruningTrainerCallback``) or in a loop of one's own, then ``pruner.fold()`` and save it. ``examples/``
shows each. What is listed here is imported when it is asked for: ``import cap`` itself imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cap.formats.load import load
    from cap.objectives.contrastive import contrastive_loss
    from cap.objectives.memory import Memory
    from cap.pruning.admm import Admm
    from cap.pruning.attach import attach
    from cap.pruning.first_order import FirstOrder
    from cap.pruning.importance import measure_importance
    from cap.pruning.keep_zeros import KeepZeros
    from cap.pruning.layers import Layers
    from cap.pruning.magnitude import Magnitude
    from cap.pruning.movement import Movement
    from cap.pruning.observed import ObservedPruner
    from cap.pruning.parameters import parameter_groups
    from cap.pruning.platon import Platon
    from cap.pruning.pruner import ImportancePass, Pruner
    from cap.pruning.random import Random
    from cap.pruning.schedule import Cubic, OneShot, Stepwise
    from cap.pruning.second_order import SecondOrder
    from cap.pruning.soft_movement import SoftMovement
    from cap.pruning.static_scores import StaticScores
    from cap.pruning.structured import Structured
    from cap.pruning.weights import WeightPruner
    from cap.training.callbacks.hugging_face import PruningTrainerCallback
    from cap.training.callbacks.pruning import PruningCallback

__all__ = [
    "Admm",
    "Cubic",
    "FirstOrder",
    "ImportancePass",
    "KeepZeros",
    "Layers",
    "Magnitude",
    "Memory",
    "Movement",
    "ObservedPruner",
    "OneShot",
    "Platon",
    "Pruner",
    "PruningCallback",
    "PruningTrainerCallback",
    "Random",
    "SecondOrder",
    "SoftMovement",
    "StaticScores",
    "Stepwise",
    "Structured",
    "WeightPruner",
    "attach",
    "contrastive_loss",
    "load",
    "measure_importance",
    "parameter_groups",
]

_HOME = {
    "Admm": "cap.pruning.admm",
    "Cubic": "cap.pruning.schedule",
    "FirstOrder": "cap.pruning.first_order",
    "ImportancePass": "cap.pruning.pruner",
    "KeepZeros": "cap.pruning.keep_zeros",
    "Layers": "cap.pruning.layers",
    "Magnitude": "cap.pruning.magnitude",
    "Memory": "cap.objectives.memory",
    "Movement": "cap.pruning.movement",
    "ObservedPruner": "cap.pruning.observed",
    "OneShot": "cap.pruning.schedule",
    "Platon": "cap.pruning.platon",
    "Pruner": "cap.pruning.pruner",
    "PruningCallback": "cap.training.callbacks.pruning",
    "PruningTrainerCallback": "cap.training.callbacks.hugging_face",
    "Random": "cap.pruning.random",
    "SecondOrder": "cap.pruning.second_order",
    "SoftMovement": "cap.pruning.soft_movement",
    "StaticScores": "cap.pruning.static_scores",
    "Stepwise": "cap.pruning.schedule",
    "Structured": "cap.pruning.structured",
    "WeightPruner": "cap.pruning.weights",
    "attach": "cap.pruning.attach",
    "contrastive_loss": "cap.objectives.contrastive",
    "load": "cap.formats.load",
    "measure_importance": "cap.pruning.importance",
    "parameter_groups": "cap.pruning.parameters",
}
"""The module that each name comes from."""


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: transformers takes seconds, and every command line imports this package first.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
