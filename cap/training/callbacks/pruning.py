"""Pruning in Lightning's trainer: when masks move, what pruners see of gradients, what a checkpoint keeps of both."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from cap.base.errors import InputError
from cap.pruning.importance import require_a_pass
from cap.pruning.moves import MaskMoves
from cap.pruning.parameters import (
    add_regularizer,
    masked_weights,
    optimizer_of,
    require_full_precision,
    require_scores_learn,
)
from cap.pruning.pruner import Pruner
from cap.pruning.schedule import SchedulePlan
from cap.training.precision import handles_unscaling, has_scaler, loss_scale

log = logging.getLogger(__name__)
_CLIPPING = "configure_gradient_clipping"


class PruningCallback(Callback):
    """Move the masks along the schedule, on optimizer steps, in the training of any LightningModule.

    Masks and scores are part of the module's own state, so that its checkpoints hold them; the rest is added to them.
    Which layers ``cap.Layers`` has taken out is part of the rest: resume with the trainer, not with a module's own
    ``load_from_checkpoint``.
    The learning rate stays the trainer's: what a schedule says of warm-up and rewinds only counts in ``cap.train``.

    Args:
        pruner: What ``cap.attach`` returned.
        plan: The schedule in fractions of a run, such as ``cap.Cubic(sparsity=0.9)``.
        every_n_steps: Move the masks every so many optimizer steps, >= 1; a jump of the sparsity, the step that reaches
            the target and a last step of another target always move them, so that the run ends on its target. None:
            there alone, of a schedule with levels.
        importance: Called before the masks move, for a pruner that ranks by a pass over training rows
            (``cap.Structured``, ``cap.SecondOrder``, ``cap.Layers``); it calls ``cap.measure_importance``.
        n_steps: Optimizer steps of the run; None asks the trainer. It cannot know when a module that optimizes by hand
            takes one, and counts those of several optimizers apart: then say how far ``trainer.global_step`` goes.
        may_go_on: Whether a run that ends early is continued later, so that its sparsity needs no warning.
        adds_regularizer: Give the scores the gradient of the pruner's regulariser; False where the module has it among
            its losses.
        warn: Called with each warning for the record.

    Raises:
        ValueError: If ``every_n_steps`` is below 1, or None where sparsity rises gradually, or pruner and schedule name
            different sparsities.
    """

    def __init__(
        self,
        pruner: Pruner,
        plan: SchedulePlan,
        *,
        every_n_steps: int | None = 1,
        importance: Callable[[], None] | None = None,
        n_steps: int | None = None,
        may_go_on: bool = False,
        adds_regularizer: bool = True,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self.pruner = pruner
        self.moves = MaskMoves(pruner, plan, every_n_steps=every_n_steps, measure=importance, warn=warn)
        self.importance = importance
        self.is_measured = importance is not None  # or by another callback, which then says so
        self.n_steps = n_steps
        self.may_go_on = may_go_on
        self.adds_regularizer = adds_regularizer
        self._seen_by: Optimizer | None = None  # whose steps count, of several
        self._clipping: Callable[..., None] | None = None  # where the module has one beside its class
        self.warn = warn

    @property
    def target(self) -> float:
        """The target sparsity of the last move."""
        return self.moves.target

    @property
    def reached(self) -> float:
        """The sparsity after the last move."""
        return self.moves.reached

    def on_init_end(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to be a callback of transformers' Trainer, which calls this first.

        Raises:
            InputError: Always.
        """
        raise InputError(
            "transformers' Trainer takes cap.PruningTrainerCallback, got cap.PruningCallback, which is for Lightning's"
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lay the schedule over the steps of this run.

        Raises:
            ValueError: If the number of steps is not known; if the pruner ranks by a pass and ``importance`` is None;
                if the masks are on another model.
        """
        require_a_pass(self.pruner, is_measured=self.is_measured)
        self.pruner.require_on(pl_module)
        self.moves.begin(trainer.estimated_stepping_batches if self.n_steps is None else self.n_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that whatever the masks follow is going to move, and stand behind the clipping of gradients.

        Raises:
            InputError: If the trainer has cast the weights to half precision.
            ValueError: If scores are in no optimizer.
        """
        require_full_precision(masked_weights(pl_module))
        require_scores_learn(self.pruner, trainer.optimizers, warn=self.warn)
        self._seen_by = optimizer_of(self.pruner, trainer.optimizers)
        self._stand_behind_clipping(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the module its own clipping back, and warn of a target that was not reached."""
        self._leave_clipping(pl_module)
        if not self.may_go_on:
            self.moves.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the module its own clipping back."""
        self._leave_clipping(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Move the masks if this optimizer step is due."""
        step = trainer.global_step
        if self.moves.has_begun(step):
            return
        if self.importance is not None and self.moves.needs_pass(step):
            self.importance()
        self.moves.advance(step)
        found = {"pruning/target": self.target, "pruning/sparsity": self.reached}
        # Tensors of the host's: Lightning would copy floats to the device, and wait for that.
        pl_module.log_dict({name: torch.tensor(value) for name, value in found.items()})

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Let the pruner see the gradients of the whole step, and add those of its regulariser."""
        is_seen = self._is_seen(optimizer)
        if is_seen and _is_own(self.pruner.observe_gradients):  # to ask for the scale is to wait for the device
            self.pruner.observe_gradients(scale=loss_scale(trainer))
        if self.adds_regularizer:
            add_regularizer(self.pruner, optimizer, scale=_factor_left(trainer, optimizer) or 1.0)
        if (
            is_seen and not pl_module.automatic_optimization
        ):  # then the module itself has clipped, before it called the optimizer
            self.pruner.adjust_gradients(scale=_factor_left(trainer, optimizer))

    def _stand_behind_clipping(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the pruner change gradients once they are clipped: no hook of a callback comes that late."""
        clip = pl_module.configure_gradient_clipping
        self._clipping = vars(pl_module).get(_CLIPPING)

        @functools.wraps(clip)
        def clip_and_adjust(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            clip(optimizer, *args, **kwargs)
            self.pruner.adjust_gradients(scale=_factor_left(trainer, optimizer))

        vars(pl_module)[_CLIPPING] = clip_and_adjust

    def _is_seen(self, optimizer: Optimizer) -> bool:
        """Say whether a step of this optimizer is one of the pruner's; Lightning may hand out a wrapper."""
        return self._seen_by is None or optimizer.param_groups is self._seen_by.param_groups

    def _leave_clipping(self, pl_module: LightningModule) -> None:
        vars(pl_module).pop(_CLIPPING, None)
        if self._clipping is not None:
            vars(pl_module)[_CLIPPING] = self._clipping

    def state_dict(self) -> dict[str, Any]:  # noqa: D102 - Lightning's hook
        return self.moves.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102 - Lightning's hook
        self.moves.load_state_dict(state_dict)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what the pruner keeps beside parameters and buffers."""
        checkpoint["pruner"] = self.pruner.state_dict()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Take it back."""
        self.pruner.load_state_dict(checkpoint["pruner"])


def _factor_left(trainer: Trainer, optimizer: Optimizer) -> float | None:
    """Return what a loss scaler's factor on the optimizer's gradients is by now; None if there is no scaler."""
    if not has_scaler(trainer):
        return None
    return loss_scale(trainer) if handles_unscaling(optimizer) else 1.0


def _is_own(method: Callable[..., None]) -> bool:
    """Say whether a pruner has its own way to look at gradients."""
    return getattr(method, "__func__", None) is not Pruner.observe_gradients


__all__ = ["PruningCallback"]
