"""What ``trainer.strategy`` names, as Lightning takes it."""

from __future__ import annotations

import inspect
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from cap.base.errors import InputError
from cap.base.strategies import FIND_UNUSED, problem_of_strategy
from cap.training.parallel.ranks import Ranks, join, naming_lost_peers


class ReplicatedStrategy(DDPStrategy):
    """Train with DDP, and raise a readable error if a process is lost.

    Args:
        find_unused_parameters: Whether parameters may stay without a gradient, at the price of a search in every step.
    """

    def __init__(self, *, find_unused_parameters: bool) -> None:
        # Masks are buffers, one byte per weight: they move alike on every process, so none is sent in every step, and
        # processes with different numbers of validation batches do not wait for each other. Pruners clear gradients,
        # which must be no views of what is sent.
        super().__init__(
            find_unused_parameters=find_unused_parameters, gradient_as_bucket_view=False, **_without_buffers()
        )
        self.ranks: Ranks | None = None  # the processes of the run, once they know of each other

    def setup_environment(self) -> None:
        """Let the processes find each other, once; a trainer asks for it again when it fits."""
        super().setup_environment()
        if self.ranks is None:
            self.ranks = join(self.global_rank, self.world_size)

    def setup(self, trainer: Any) -> None:
        """Wrap the model; its weights come from the first process."""
        with naming_lost_peers(self.global_rank, is_certain=True):
            super().setup(trainer)

    def training_step(self, *args: Any, **kwargs: Any) -> STEP_OUTPUT:
        """Run the step of this process's share."""
        with naming_lost_peers(self.global_rank, is_certain=True):
            return super().training_step(*args, **kwargs)

    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Differentiate, and average the gradients while that goes on."""
        with naming_lost_peers(self.global_rank, is_certain=True):
            return super().backward(closure_loss, *args, **kwargs)

    def barrier(self, *args: Any, **kwargs: Any) -> None:
        """Wait for every process."""
        with naming_lost_peers(self.global_rank):
            super().barrier(*args, **kwargs)

    def broadcast(self, *args: Any, **kwargs: Any) -> Any:
        """Give every process one process's value."""
        with naming_lost_peers(self.global_rank):
            return super().broadcast(*args, **kwargs)

    def reduce(self, *args: Any, **kwargs: Any) -> Any:
        """Average or add up every process's tensor."""
        with naming_lost_peers(self.global_rank):
            return super().reduce(*args, **kwargs)


def make_strategy(name: str, *, n_processes: int) -> str | Strategy:
    """Make what Lightning's trainer takes for ``strategy``.

    Args:
        name: ``auto``, ``ddp`` or ``ddp_find_unused_parameters_true``, as in ``trainer.strategy``.
        n_processes: Of the whole run, over all nodes.

    Returns:
        ``auto`` for one process, whatever the name; else every process holds the whole model, and gradients are
        averaged over gloo on CPUs and nccl on GPUs.

    Raises:
        InputError: If the strategy splits the model, or starts its processes in a way that cannot work here.
    """
    problem = problem_of_strategy(name)
    if problem is not None:
        raise InputError(problem)
    if n_processes == 1:
        # Lightning's launcher of processes would leave its variables in the environment, for the next job to find.
        return "auto"
    return ReplicatedStrategy(find_unused_parameters=FIND_UNUSED[name])


def _without_buffers() -> dict[str, Any]:
    # torch 2.13 renamed the argument and warns of the old one; the new one still sends the buffers once, at the start.
    parameters = inspect.signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers": False}


__all__ = ["ReplicatedStrategy", "make_strategy"]
