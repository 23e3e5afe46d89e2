"""A pruning type of one's own, outside the package: how much a weight moves its layer's output.

On the command line, with rows of a task of ours:

    PYTHONPATH=examples/own_pruner python -m cap.train --config-dir examples/own_pruner/conf pruning=wanda \
        task=sst2 data_dir=DIR model=minilm sparsity=0.5

In a trainer of one's own: ``cap.attach(model, Wanda())``, as with any other type.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

import cap


class Wanda(cap.WeightPruner):
    """Prune by |w| times the norm of the input that it meets, measured on training rows before every move.

    Args:
        scope: ``matrix`` prunes every matrix to the target, ``global`` ranks all weights together.
        importance_rows: Training rows of a pass; None takes all.

    Source: arXiv:2306.11695, equation 1; there the weights of one output are ranked among themselves.
    """

    moves_within_levels = False

    def __init__(self, *, scope: Literal["matrix", "global"] = "matrix", importance_rows: int | None = 128) -> None:
        super().__init__(scope=scope)
        self.importance_rows = importance_rows
        self._squares: dict[str, Tensor] = {}  # of each layer's inputs, summed over tokens: (columns,)

    @property
    def importance_pass(self) -> cap.ImportancePass:
        """Ask for a pass before the masks move; ``key`` is what error messages name."""
        return cap.ImportancePass(rows=self.importance_rows, loss="task", key="pruning.importance_rows")

    def forget_importance(self) -> None:
        """Begin a pass."""
        self._squares = {}

    def measured(self, loss: Callable[[], Tensor]) -> Sequence[Tensor]:
        """Run a batch, and return what every layer met; several processes average it."""
        met: dict[str, Tensor] = {}

        def look(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
                met[name] = inputs[0].float().square().flatten(0, -2).sum(dim=0)

            return hook

        hooks = [linear.register_forward_pre_hook(look(name)) for name, linear in self.linears.items()]
        try:
            with torch.no_grad():
                loss()
        finally:
            for hook in hooks:
                hook.remove()
        return [met[name] for name in self.linears]

    def observe_importance(self, measured: Sequence[Tensor]) -> None:
        """Add up what ``measured`` gave for a batch."""
        for name, squares in zip(self.linears, measured, strict=True):
            self._squares[name] = self._squares.get(name, 0.0) + squares

    def importance(self, name: str) -> Tensor:
        """Score each weight of a layer, (rows, columns); larger = keep."""
        return self.weight(name).abs() * self._squares[name].sqrt()
