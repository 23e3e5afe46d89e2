"""What every pruning type has in common: it puts masks on a model, moves them, and folds them in the end."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from cap.models.families import Prunable
from cap.pruning.targets import sparsity_problem

MASK = ".parametrizations.weight."
"""Part of the names under which torch.nn.utils.parametrize keeps a weight that has a mask on, and the mask."""
_ORIGINAL = f"{MASK}original"
_ROUNDING = 1e-9
"""What a schedule may exceed its own end by."""


@dataclass(frozen=True)
class MaskCounts:
    """Count what a move of the masks changed.

    Args:
        n_weights: Prunable weights.
        n_pruned_before: Pruned before the move.
        n_pruned: Pruned after it.
        units: Where whole units are pruned, their number by kind: pruned before, pruned after, all.
    """

    n_weights: int
    n_pruned_before: int
    n_pruned: int
    units: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def sparsity(self) -> float:
        """Fraction of prunable weights that are pruned."""
        return self.n_pruned / self.n_weights


@dataclass(frozen=True)
class Room:
    """Say how much memory a pass over the training rows may take in each process.

    Args:
        n_bytes: So much.
        n_processes: So many share the budget that it is a part of.
        is_budget: Whether ``memory.budget_gb`` says so; False where it is what the GPU has left.
        bytes_per_value: Of weights and gradients while the student trains.
    """

    n_bytes: float
    n_processes: int = 1
    is_budget: bool = True
    bytes_per_value: int = 4


@dataclass(frozen=True)
class ImportancePass:
    """Ask for a pass over the training rows, which a pruner ranks by.

    Args:
        rows: Training rows, rounded up to whole batches; None takes all.
        loss: ``total`` is what the student trains on, ``task`` the loss against the labels alone.
        batch_rows: Rows of a batch; None takes training's batches, which several processes share. Of others they take
            whole ones in turn, and what each has learned is added up at the end; then the loss must be ``task``.
        key: What a user sets ``rows`` with.
    """

    rows: int | None
    loss: Literal["total", "task"]
    batch_rows: int | None = None
    key: str = "pruning.importance_rows"


class Pruner(ABC):
    """Own the masks of a student; a subclass says what they cover and how important it is."""

    learns_scores: ClassVar[bool] = False
    """True if importance comes from training: a first step then has nothing to rank by but ties."""

    trains_weights: ClassVar[bool] = True
    """False if masks are all that is learned of the encoder: its layers keep the weights that they start from."""

    needs_levels: ClassVar[bool] = False
    """True if sparsity must rise in jumps, with retraining after each."""

    moves_within_levels: ClassVar[bool] = True
    """False if the masks of a schedule with levels only move where its sparsity jumps."""

    is_monotone: ClassVar[bool] = False
    """True if a move cannot be taken back: pruned weights stay pruned, so that masks rest while the target does."""

    prunes_at_once: ClassVar[bool] = False
    """True if no mask moves before the schedule has reached its final sparsity."""

    keeps_zeros: ClassVar[bool] = False
    """True if the masks are the zeros that the student's weights start with, and never move."""

    final_sparsity: float | None = None
    """Where the schedule must end, for types whose masks depend on it beforehand; None takes any."""

    @property
    def importance_pass(self) -> ImportancePass | None:
        """Say what has to run before the masks move; None if importance is known at any time."""
        return None

    def needs_pass(self, sparsity: float) -> bool:
        """Say whether the importance pass has to run before a move to a target sparsity."""
        return self.importance_pass is not None

    def gate_parameters(self) -> list[nn.Parameter]:
        """List what an importance pass differentiates the loss by."""
        return []

    def forget_importance(self) -> None:  # noqa: B027
        """Start an importance pass from nothing, whatever an interrupted one has left."""

    def measured(self, loss: Callable[[], Tensor]) -> Sequence[Tensor]:
        """Measure a batch of an importance pass: most types differentiate its loss by ``gate_parameters``.

        What ``.grad`` holds is left alone, and so are hooks that wait for gradients there: a distributed strategy's,
        say.

        Args:
            loss: Computes the loss of the batch, as often as it is called; the gates are open.

        Returns:
            What ``observe_importance`` takes. Of a batch that several processes share it is the mean over them.
        """
        return torch.autograd.grad(loss(), self.gate_parameters(), allow_unused=True, materialize_grads=True)

    def observe_importance(self, measured: Sequence[Tensor]) -> None:  # noqa: B027 - most types need no pass
        """Take in what was measured on one batch of an importance pass.

        Args:
            measured: What ``measured`` has returned: for most types gradients, in the order of ``gate_parameters``;
                zeros for gates that the loss does not depend on.
        """

    def importance_sums(self) -> list[Tensor]:
        """List what several processes add up, in place, after a pass in which each saw batches of its own."""
        return []

    def parts_of(self, sparsity: float) -> list[float]:
        """Split the way to a target into moves with a pass before each; the last one ends at the target."""
        return [sparsity]

    def doubt(self, n_before_target: int) -> str | None:
        """Say what a run that reaches its target so early leaves undone; None if nothing.

        Args:
            n_before_target: Optimizer steps before the masks move to the final sparsity.
        """
        return None

    def check_memory(self, prunable: Prunable, room: Room) -> None:  # noqa: B027 - most types need none
        """Refuse a pass over the training rows that would need more memory than there is.

        Args:
            prunable: What of the student can be pruned.
            room: What a process may hold.

        Raises:
            ValueError: If it would; the message names what would fit.
        """

    def check(self, prunable: Prunable) -> None:  # noqa: B027 - most types can meet any target
        """Refuse a target that this model cannot meet, before anything is trained.

        Raises:
            ValueError: If it cannot; the message names what can be met.
        """

    @abstractmethod
    def attach(self, prunable: Prunable, *, seed: int) -> None:
        """Put the masks on; everything is kept at first, but by a type that keeps zeros.

        Args:
            prunable: What of the student can be pruned.
            seed: For what is drawn at random.

        Raises:
            ValueError: As ``check``.
        """

    @property
    @abstractmethod
    def masks(self) -> dict[str, Tensor]:
        """Masks by the name of the linear layer, True = kept."""

    @property
    def is_on(self) -> bool:
        """Whether its masks are on a model: attached, and not folded yet."""
        return bool(self.masks)

    def modules(self) -> list[nn.Module]:
        """List what of the model the masks or gates are on; empty before ``attach``."""
        return []

    def require_on(self, model: nn.Module) -> None:
        """Check that the masks are on the model that is about to train, not on another one or a copy's original.

        Raises:
            ValueError: If they are not.
        """
        own = {id(module) for module in model.modules()}
        elsewhere = sum(id(module) not in own for module in self.modules())
        if elsewhere:
            raise ValueError(
                f"the masks of {type(self).__name__} must be on the model that is trained, but {elsewhere} of "
                f"{len(self.modules())} modules that they are on are no part of it: was the model copied or made again "
                f"after cap.attach? Attach a pruner to the model that the trainer gets"
            )

    def require_movable(self, sparsity: float) -> None:
        """Check a move before it is made.

        Args:
            sparsity: The target.

        Raises:
            ValueError: If no model has the masks on, or this type cannot be meant to go to the target.
        """
        if not self.is_on:
            raise ValueError(
                f"{type(self).__name__} has no masks to move: they were never put on a model, or are folded; put those "
                f"of a new pruner on the model first: cap.attach(model, pruner). To save a model on the way, "
                f"pruner.folded_state(model) is its state as fold would leave it"
            )
        problem = sparsity_problem(sparsity)
        if problem is None and self.final_sparsity is not None and sparsity > self.final_sparsity + _ROUNDING:
            problem = (
                f"{type(self).__name__} as it was made ends at a sparsity of {self.final_sparsity:g}, got a target of "
                f"{sparsity:g}; pruner and schedule must end at one"
            )
        if problem is not None:
            raise ValueError(problem)

    @property
    def mask_keys(self) -> dict[str, Tensor]:
        """What the masks follow from, by the same names, as bool and no larger than need be; equal where masks are."""
        return self.masks

    @abstractmethod
    def update_masks(self, sparsity: float) -> MaskCounts:
        """Move the masks to a target sparsity.

        Args:
            sparsity: Fraction of prunable weights to prune, in [0, 1).

        Returns:
            The counts before and after.

        Raises:
            ValueError: As ``require_movable``, which comes first.
        """

    @abstractmethod
    def fold(self) -> None:
        """Write the masked weights into the modules and take the masks off."""

    def folded_state(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the state of the stock model as ``fold`` would leave it, and leave this one as it is.

        Args:
            model: What the masks were put on.
        """
        state = {}
        for key, value in model.state_dict().items():
            name, is_masked, rest = key.partition(_ORIGINAL)
            if is_masked or MASK not in key:
                state[f"{name}.weight{rest}" if is_masked else key] = value
        # Adding zero turns a masked negative weight, -0.0, into 0.0.
        state |= {f"{name}.weight": state[f"{name}.weight"] * mask + 0.0 for name, mask in self.masks.items()}
        return state

    def folded_config(self, config: PretrainedConfig) -> PretrainedConfig:
        """Copy the configuration of the student as ``fold`` would leave it.

        Args:
            config: That of the model that the masks were put on.
        """
        return copy.deepcopy(config)

    @property
    def score_learning_rate(self) -> float:
        """Learning rate of ``score_parameters``."""
        return 0.0

    def score_parameters(self) -> list[nn.Parameter]:
        """List the scores that the optimizer trains."""
        return []

    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """List parameters that only collect gradients; no optimizer may touch them."""
        return []

    def constant_parameters(self) -> list[nn.Parameter]:
        """List those of them that never change, which checkpoints leave out."""
        return []

    def observe_gradients(self, *, scale: float | None) -> None:  # noqa: B027 - most types look at no gradient
        """See the gradients of an optimizer step before it is taken.

        Args:
            scale: Factor by which a loss scaler has multiplied them; None without one.
        """

    def adjust_gradients(self, *, scale: float | None) -> None:  # noqa: B027 - most types leave training to the loss
        """Change the gradients of an optimizer step before it is taken, once they are observed and clipped.

        Args:
            scale: Factor of a loss scaler that is still on the gradients of what the optimizer trains, 1 where it was
                taken off; None without one, as only a scaler provokes infinities.
        """

    def state_dict(self) -> dict[str, int | float]:
        """Return what is neither a parameter nor a buffer, and changes during a run."""
        return {}

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:  # noqa: B027 - most types keep nothing else
        """Take back what ``state_dict`` returned."""

    def regularizer(self) -> Tensor | None:
        """Return the weighted score regulariser to add to the loss; None if the type has none."""
        return None


__all__ = ["MASK", "ImportancePass", "MaskCounts", "Pruner", "Room"]
