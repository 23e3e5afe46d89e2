"""How hard each term of the loss pulls on the encoder, beside distillation."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from cap.models.families import encoder_layers
from cap.models.pooled import evaluating
from cap.pruning.parameters import own_parameters
from cap.training.callbacks.pruning import PruningCallback
from cap.training.encode import Computation, computation_of
from cap.training.module import CapModule, cap_module
from cap.training.precision import has_scaler
from cap.training.resume.randomness import random_state, set_random_state

log = logging.getLogger(__name__)

# Batches of training that are measured: at first, and once more when snapshots bring terms that were not there.
_N_BATCHES = {"first": 4, "snapshots": 2}
_TOO_STRONG = 10.0
# The regulariser of scores does not reach the weights.
_APART = ("scores",)
_WEIGHTS = "contrast.unsupervised_weight or contrast.supervised_weight, or set contrast.{switch}=false"
_KEYS = {
    "ce": "distill.ce_weight",
    "prc": _WEIGHTS.format(switch="pretrained"),
    "snc": _WEIGHTS.format(switch="snapshots"),
    "fic": _WEIGHTS.format(switch="finetuned"),
    "hidden": "distill.hidden_weight",
    "snapshot_kd": "distill.snapshot_weight",
}


class GradientShares(Callback):
    """Measure the gradient of every term with respect to the encoder once, on the first batches of training.

    Each batch is run a second time, in eval mode, before it is trained on; training goes on to the same bits. It must
    run after the snapshots are taken, and before the masks move. Terms that snapshots bring are measured once masks
    have moved since the first of them: until then the student is that snapshot, and has nothing to learn from it. Where
    the final sparsity is reached already, an optimizer step is enough.

    Args:
        pruning: Knows what sparsity is reached.
        from_sparsity: The first batches are those from this sparsity on: a student that starts from its teacher agrees
            with it until weights are missing, and anything would outweigh distillation. 0 is the start of the run.
        note: Told of the norms by term, relative to distillation's, or to the labels' where there is none.
        warn: Called with each warning for the record.
    """

    def __init__(
        self,
        pruning: PruningCallback,
        *,
        from_sparsity: float,
        note: Callable[[dict[str, float]], None] = lambda shares: None,
        warn: Callable[[str], None] = log.warning,
    ) -> None:
        self.pruning = pruning
        self.from_sparsity = from_sparsity
        self.note = note
        self.warn = warn
        self.seconds = 0.0
        self._norms: dict[str, list[dict[str, float]]] = {phase: [] for phase in _N_BATCHES}
        self._snapshot: tuple[int, float] | None = None  # the step and the sparsity at which there was one first
        self._warned: set[str] = set()
        self._has_no_room = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say again what was found before an interruption."""
        self._tell()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure this batch if it is one of the first."""
        module = cap_module(pl_module)
        step, reached, memory = trainer.global_step, self.pruning.reached, module.memory
        has_snapshots = memory is not None and (memory.n_encodings("snapshots") > 0 or memory.has_snapshot_logits)
        phase = "snapshots" if has_snapshots else "first"
        if has_snapshots and self._snapshot is None:
            self._snapshot = step, reached
        if self._is_over(phase) or reached < self.from_sparsity or self._is_the_snapshot(step):
            return
        started = time.perf_counter()
        known = {name for norms in self._norms["first"] for name in norms} if phase == "snapshots" else set()
        computation = computation_of(trainer)
        if has_scaler(trainer):  # without it small gradients would vanish in float16
            computation = dataclasses.replace(computation, autocast=nullcontext)
        try:
            norms = gradient_norms(module, batch, computation=computation, leave_out=known - {"kd", "ce"})
        except torch.OutOfMemoryError:
            if module.ranks.size > 1:  # the others wait in the middle of it
                raise
            self._has_no_room = True
            self.warn(
                "There was no memory to measure how hard each loss term pulls on the encoder; the rest is left out."
            )
            return
        finally:
            self.seconds += time.perf_counter() - started
        self._norms[phase].append(norms)
        if self._is_over(phase):
            self._tell()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make do with fewer batches if the run had no more."""
        self._tell(is_over=True)

    def state_dict(self) -> dict[str, Any]:  # noqa: D102 - Lightning's hook
        return {
            "norms": self._norms,
            "seconds": self.seconds,
            "snapshot": self._snapshot,
            "has_no_room": self._has_no_room,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:  # noqa: D102 - Lightning's hook
        self._norms, self.seconds = state_dict["norms"], state_dict["seconds"]
        self._snapshot = state_dict.get("snapshot")  # checkpoints of older versions have none
        self._has_no_room = state_dict.get("has_no_room", False)

    def _is_the_snapshot(self, step: int) -> bool:
        """Say whether the student has not gone on yet from its first snapshot."""
        if self._snapshot is None:
            return False
        taken_at, sparsity = self._snapshot
        return step == taken_at if self.pruning.moves.has_arrived else self.pruning.reached == sparsity

    def _is_over(self, phase: str) -> bool:
        has_ended = self._has_no_room or (phase == "first" and len(self._norms["snapshots"]) > 0)
        return has_ended or len(self._norms[phase]) >= _N_BATCHES[phase]

    def _tell(self, *, is_over: bool = False) -> None:
        shares: dict[str, float] = {}
        for phase, norms in self._norms.items():
            if is_over or self._is_over(phase):
                # A term is judged by the first batches that it has.
                shares |= {name: share for name, share in relative_norms(norms).items() if name not in shares}
        if not shares:
            return
        self.note(shares)
        reference = "distillation" if "kd" in shares else "the labels"
        for name, share in shares.items():
            if share > _TOO_STRONG and name not in self._warned:
                self._warned.add(name)
                self.warn(
                    f"On the first batches the encoder's gradient of loss/{name} is {share:.0f} times that of "
                    f"{reference}, so that it decides what the student learns; lower "
                    f"{_KEYS.get(name, f'the weight of loss/{name}')}."
                )


def relative_norms(batches: list[dict[str, float]]) -> dict[str, float]:
    """Relate the norms of all terms to distillation's, or to the labels' where there is no distillation.

    Args:
        batches: Norms by term, of each batch.

    Returns:
        Mean norm over the reference's, by term; empty without a second term, or if the reference has no gradient.
    """
    found = [name for name in ("kd", "ce") if any(name in norms for norms in batches)]
    if not found:
        return {}
    totals: dict[str, float] = {}
    for norms in batches:
        for name, norm in norms.items():
            totals[name] = totals.get(name, 0.0) + norm
    reference = totals[found[0]]
    if len(totals) < 2 or not (reference > 0 and all(map(math.isfinite, totals.values()))):
        return {}
    return {name: total / reference for name, total in totals.items()}


def gradient_norms(
    module: CapModule, batch: Mapping[str, Tensor], *, computation: Computation, leave_out: Collection[str] = ()
) -> dict[str, float]:
    """Differentiate each term of a batch's loss, its weight in it, by the weights of the encoder layers.

    Where these are never trained, it is by their scores, whose gradients are straight-through. The student runs in eval
    mode. Random streams, gradients and modes are as they were afterwards.

    Args:
        module: Holds the student and what its loss is made of.
        batch: A batch of training, on the device; of several processes, this one's share.
        computation: Where and how to run.
        leave_out: Terms that are not wanted.

    Returns:
        The Euclidean norm of the gradient of the whole batch, by term.
    """
    weights = _encoder_weights(module)
    randomness = random_state(computation.device)
    norms: dict[str, float] = {}
    try:
        with evaluating(module), module.keeping_extras(), torch.enable_grad():
            with computation.autocast():
                terms = module.loss_terms(module(batch), batch)
            # Behind autocast, as training does: within it what the forward pass has computed in full would be
            # differentiated in halves.
            for name, term in terms.items():
                if name not in (*_APART, *leave_out) and term.requires_grad:
                    norms[name] = _norm(
                        module, torch.autograd.grad(term, weights, retain_graph=True, allow_unused=True)
                    )
    finally:
        set_random_state(randomness, computation.device)
    return norms


def _norm(module: CapModule, gradients: tuple[Tensor | None, ...]) -> float:
    found = [gradient for gradient in gradients if gradient is not None]
    if not found:
        return 0.0
    if module.ranks.size > 1:  # the gradient of the whole batch is the mean over the processes
        found = [module.ranks.mean(torch.cat([gradient.float().flatten() for gradient in found]))]
    return float(torch.stack([gradient.float().norm() for gradient in found]).norm())


def _encoder_weights(module: CapModule) -> list[nn.Parameter]:
    pruner = module.pruner
    if pruner is not None and not pruner.trains_weights:
        return pruner.score_parameters()
    own = own_parameters(pruner)
    layers = encoder_layers(module.student.model).values()
    return [p for layer in layers for p in layer.parameters() if p.requires_grad and id(p) not in own]


__all__ = ["GradientShares", "gradient_norms", "relative_norms"]
