"""Pruning in transformers' Trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cap.base.errors import InputError
from cap.base.files import content_key
from cap.pruning.importance import require_a_pass
from cap.pruning.layers import Layers
from cap.pruning.masks import count_kept
from cap.pruning.moves import MaskMoves
from cap.pruning.parameters import (
    add_regularizer,
    masked_weights,
    require_full_precision,
    require_scores_learn,
)
from cap.pruning.pruner import Pruner
from cap.pruning.schedule import SchedulePlan

log = logging.getLogger(__name__)

# Where trainer_state.json holds what is neither weight nor mask. Not the name of a class: the trainer would try to
# build the callback again from it. A pruner of other matrices has another entry.
_STATE = "cap.pruning"


class PruningTrainerCallback(TrainerCallback):
    """Move the masks along the schedule, on optimizer steps, in transformers' ``Trainer``.

    The trainer's own checkpoints hold all that a resumed run needs: masks and scores are part of the model's state, the
    rest goes into ``trainer_state.json``. Fold the pruner before the model is saved for use.
    The learning rate stays the trainer's. Its gradient clipping comes before the gradient of a regulariser is added.

    Args:
        pruner: What ``cap.attach`` returned.
        plan: The schedule in fractions of a run, such as ``cap.Cubic(sparsity=0.9)``.
        every_n_steps: As in ``cap.PruningCallback``.
        importance: Likewise.
        n_steps: Optimizer steps of the run; None asks the trainer.
        warn: Called with each warning for the record.

    Raises:
        ValueError: As ``cap.PruningCallback``, or if the pruner ranks by a pass over training rows and ``importance``
            is None.
    """

    def __init__(
        self,
        pruner: Pruner,
        plan: SchedulePlan,
        *,
        every_n_steps: int | None = 1,
        importance: Callable[[], None] | None = None,
        n_steps: int | None = None,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        require_a_pass(pruner, is_measured=importance is not None)
        self.pruner = pruner
        self.moves = MaskMoves(pruner, plan, every_n_steps=every_n_steps, measure=importance, warn=warn)
        self.importance = importance
        self.n_steps = n_steps
        self.warn = warn
        self._gradients = _SetAside(pruner)
        self._names = _Names()

    @property
    def target(self) -> float:
        """The target sparsity of the last move."""
        return self.moves.target

    @property
    def reached(self) -> float:
        """The sparsity after the last move."""
        return self.moves.reached

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Lay the schedule over the steps of this run, and go on where a checkpoint was written.

        Raises:
            InputError: If the best checkpoint is to be loaded in the end, which may lie before the target; if a
                checkpoint holds no masks, or others; if several processes train with a pruner that observes gradients;
                or if one process trains on several devices with one of layers.
            ValueError: If scores are in no optimizer, or the masks are on another model.
        """
        if args.load_best_model_at_end:
            raise InputError(
                "a pruned model is the last one, at the final sparsity, got load_best_model_at_end=True, which may "
                "load one from before; set it to False"
            )
        if args.n_gpu > 1 and isinstance(self.pruner, Layers):
            # Gates are called in place of a layer's forward, and in a copy of it they would run the layer itself.
            raise InputError(
                f"layers are taken out of a model on one device, got {args.n_gpu} devices in one process; start the "
                "program with torchrun or accelerate, or let it see one device (CUDA_VISIBLE_DEVICES=0)"
            )
        if args.world_size > 1 and self._gradients.parameters():
            raise InputError(
                f"{type(self.pruner).__name__} sees the gradients of one process in transformers' Trainer, got "
                f"{args.world_size}; use one, cap.Movement, or Lightning's trainer"
            )
        require_full_precision(masked_weights(kwargs["model"]))
        self.pruner.require_on(kwargs["model"])
        self._names.keep(kwargs["model"])
        self.moves.begin(state.max_steps if self.n_steps is None else self.n_steps)
        if state.global_step > 0:
            self._resume(state)
        require_scores_learn(self.pruner, [kwargs["optimizer"]], warn=self.warn)
        self._gradients.begin()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the masks if this optimizer step is due."""
        if self.importance is not None and self.moves.needs_pass(state.global_step):
            self.importance()
        self.moves.advance(state.global_step)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the pruner see and change the gradients of the whole step, and add those of its regulariser."""
        optimizer: Optimizer = kwargs["optimizer"]
        scaler = getattr(optimizer, "scaler", None)
        scale = float(scaler.get_scale()) if scaler is not None else None
        self._gradients.put_back()
        self.pruner.observe_gradients(scale=scale)
        # Clipping takes the scaler's factor off the gradients of what is in the optimizer.
        factor = 1.0 if scale is None or args.max_grad_norm > 0 else scale
        self.pruner.adjust_gradients(scale=None if scale is None else factor)
        add_regularizer(self.pruner, optimizer, scale=factor)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Note in the trainer's state where the masks are, before it may be saved."""
        states: Any = state.stateful_callbacks
        states[self._state_key] = {"moves": self.moves.state_dict(), "pruner": self.pruner.state_dict()}

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Add target and sparsity to what the trainer's history holds of this step."""
        state.log_history[-1] |= {"pruning/target": self.target, "pruning/sparsity": self.reached}

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model's gradients and names alone again, and warn of a target that was not reached."""
        self._gradients.end()
        self._names.give_back()
        self.moves.end()

    @cached_property
    def _state_key(self) -> str:
        return f"{_STATE}.{content_key(sorted(self.pruner.masks))}"

    def _resume(self, state: TrainerState) -> None:
        states: Any = state.stateful_callbacks
        key = self._state_key
        if key not in states:
            raise InputError(
                f"a resumed checkpoint must have been written with this callback, got one of step {state.global_step} "
                f"without a state of masks; start without resume_from_checkpoint"
            )
        self.moves.load_state_dict(states[key]["moves"])
        self.pruner.load_state_dict(states[key]["pruner"])
        masks = self.pruner.masks.values()
        sparsity = 1 - sum(count_kept(masks)) / sum(mask.numel() for mask in masks)
        if abs(sparsity - self.reached) > 1e-9:
            raise InputError(
                f"a resumed checkpoint must hold the masks of this pruner, at sparsity {self.reached:.4f}, but those "
                f"of the model are at {sparsity:.4f}; attach the type of pruner that it was written with, got "
                f"{type(self.pruner).__name__}, or start without resume_from_checkpoint"
            )


class _SetAside:
    """Keep gradients that are only observed out of the trainer's clipping, which takes all of a model's parameters."""

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner
        self._kept: dict[Tensor, Tensor] = {}
        self._hooks: list[Any] = []

    def parameters(self) -> list[Tensor]:
        # The gates of units only have gradients during a pass of their own.
        return [p for p in self._pruner.auxiliary_parameters() if p.requires_grad]

    def begin(self) -> None:
        # The trainer does not end a run that an exception has left: its hooks would take every gradient first.
        if (before := _AT_WORK.get(self._pruner)) is not None:
            before.end()
        _AT_WORK[self._pruner] = self
        self._hooks = [p.register_post_accumulate_grad_hook(self._take) for p in self.parameters()]

    def put_back(self) -> None:
        for parameter, gradient in self._kept.items():
            parameter.grad = gradient
        self._kept = {}

    def end(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _take(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            before = self._kept.get(parameter)
            self._kept[parameter] = parameter.grad if before is None else torch.add(before, parameter.grad)
            parameter.grad = None


_AT_WORK: WeakKeyDictionary[Pruner, _SetAside] = WeakKeyDictionary()
"""Whose hooks are on what a pruner observes."""
_NAMES: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
"""What models had that keep their own names, until a run ends: an interrupted one never does."""


class _Names:
    """Let checkpoints have a model's own names: some families are written as their older files were called.

    transformers translates names and merges matrices when it saves, and back in ``from_pretrained`` alone. A trainer
    that resumes reads the files as they are, and masks have no older name.
    """

    _KEY = "_weight_conversions"

    def __init__(self) -> None:
        self._model: nn.Module | None = None

    def keep(self, model: nn.Module) -> None:
        self._model = model
        if model not in _NAMES:  # else another pruner's callback has seen to it, or one that never ended
            _NAMES[model] = vars(model).get(self._KEY)
            vars(model)[self._KEY] = []

    def give_back(self) -> None:
        if self._model is not None and self._model in _NAMES:
            before = _NAMES.pop(self._model)
            vars(self._model).pop(self._KEY)
            if before is not None:
                vars(self._model)[self._KEY] = before


__all__ = ["PruningTrainerCallback"]
