"""The LightningModule: it adds up the loss terms and knows what is optimised."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from cap.base.errors import RunError
from cap.base.kinds import Metrics
from cap.data.batch import places
from cap.models.encoders import tensors_key
from cap.models.pooled import EncoderOutput, PooledModel
from cap.objectives.distillation import label_loss
from cap.objectives.memory import Memory
from cap.pruning.parameters import parameter_groups
from cap.pruning.pruner import Pruner
from cap.training.contrast import Contrast, ContrastiveTerms
from cap.training.distill import Distill, distillation_terms, label_rows, logit_rows, share_of_rows, teacher_term
from cap.training.learning_rate import Optimisation
from cap.training.parallel.ranks import ALONE, Ranks, Share, ranks_of
from cap.training.precision import has_scaler
from cap.training.resume.stop import stop

_ADAM_EPSILON = 1e-8
_KEPT = "the last good checkpoint, if one was due, is kept in the run's folder"


class CapModule(LightningModule):
    """Train a student on labels, on its teacher, and by contrast with a memory of frozen encodings.

    With neither memory nor pruner it is plain fine-tuning, which is how teachers are made.
    The loss of a step is the sum of the terms logged as ``loss/*``, each with its weight already in it.
    Several processes share a batch. What each returns is such that its mean over them, which is what becomes of the
    gradients, is the loss of one process with the whole batch; what is logged is that mean.

    Args:
        student: The model that is trained; nothing else reaches the optimizer.
        distill: Weights of labels and teacher.
        optimisation: Learning rates and decay.
        metrics: Validation metrics by split, in the order of the validation data loaders.
        contrast: Weights of the contrastive terms; None for none.
        memory: Encodings and what the teacher gives by ``example_id``; needed by ``contrast`` and by distillation.
        train_labels: Labels by ``example_id``; classes (int64) give supervised positives; numbers and spans give
            none, and neither do rows of a negative class. None where words have labels, and texts none.
        train_groups: The question that each example is a window of, by ``example_id``; windows of one question are
            not contrasted with each other. None where examples stand alone.
        pruner: Owns the masks of the student; None trains it dense.
        freeze: Names of parameters of the student's stock model that keep the values they have now: no gradient is
            computed for them, no optimizer sees them, and no checkpoint holds them.
        pretrained: The frozen pre-trained model, for callbacks of the user's own. Neither it nor the teacher is part
            of the module for PyTorch: they are in no checkpoint and no optimizer, and stay on their device.
        teacher: The frozen fine-tuned model, likewise; it moves to the student's device if ``distill`` runs it.
        frozen_keys: Of what the frozen models gave, by source: a key of its content, which a checkpoint refers to.
    """

    pretrained: PooledModel | None
    teacher: PooledModel | None

    def __init__(
        self,
        student: PooledModel,
        *,
        distill: Distill,
        optimisation: Optimisation,
        metrics: Mapping[str, Metrics],
        contrast: Contrast | None = None,
        memory: Memory | None = None,
        train_labels: Tensor | None = None,
        train_groups: Tensor | None = None,
        pruner: Pruner | None = None,
        freeze: Sequence[str] = (),
        pretrained: PooledModel | None = None,
        teacher: PooledModel | None = None,
        frozen_keys: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        if memory is None and (contrast is not None or distill.reads_memory):
            raise ValueError("contrast and distillation read frozen outputs: a memory is required, got None")
        if teacher is None and distill.runs_teacher:
            raise ValueError("distillation from the hidden states of tokens runs the teacher: it is required, got None")
        self.student = student.train()  # from_pretrained leaves a model in eval mode, where dropout is off
        self.pruner = pruner
        self._kept = {f"student.model.{name}": student.model.get_parameter(name) for name in freeze}
        for parameter in self._kept.values():
            parameter.requires_grad_(False)
        self.memory = memory
        # Set past nn.Module, which would make them parts of this one.
        object.__setattr__(self, "pretrained", pretrained)
        object.__setattr__(self, "teacher", teacher.eval() if teacher is not None else None)
        self.frozen_keys = dict(frozen_keys or {})
        # The processes that share every batch, once there is a trainer; all have the same memory, seed and metrics.
        self.ranks: Ranks = ALONE
        self.distill = distill
        self.optimisation = optimisation
        self.metrics = dict(metrics)
        self._unread: list[tuple[Tensor, dict[str, Tensor]]] = []
        self._extras = torch.Generator().manual_seed(contrast.seed if contrast else 0)
        self.contrast: ContrastiveTerms | None = None
        if contrast is not None and memory is not None:
            self.contrast = ContrastiveTerms(
                contrast, memory, labels=train_labels, groups=train_groups, extras=self._extras
            )

    def forward(self, batch: Mapping[str, Tensor], *, for_loss: bool = True) -> EncoderOutput:
        """Run the student; hidden states are among what it gives if a term of its loss reads them."""
        output: EncoderOutput = self.student(batch, with_hidden=for_loss and self.distill.hidden_weight > 0)
        return output

    def setup(self, stage: str) -> None:
        """Take the processes from the trainer's strategy, and the type of the weights from its precision.

        Lightning converts weights only after it has restored them: those of a checkpoint in 64 bits would be rounded.
        """
        self.ranks = ranks_of(self.trainer)
        self.trainer.precision_plugin.convert_module(self)

    def on_train_start(self) -> None:
        """Bring the teacher to the student if it runs in the step; Lightning moves the module's own parts alone."""
        if self.teacher is not None and self.distill.runs_teacher:
            self.teacher.to(self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Add up the weighted loss terms of a batch and log each."""
        terms = self.loss_terms(self(batch), batch)
        values = torch.stack(list(terms.values()))
        # Every process sees the losses of the whole batch, so that all of them stop where one would.
        shared = self.ranks.mean(values)
        total, logged = shared.sum(), dict(zip(terms, shared, strict=True))
        self._unread.append((total, logged))
        if self._is_logged:
            logged = {f"loss/{name}": term for name, term in logged.items()}
            self.log_dict({**logged, "loss/total": total}, batch_size=len(batch["example_id"]))
        return values.sum()

    def loss_terms(
        self, output: EncoderOutput, batch: Mapping[str, Tensor], *, with_contrast: bool = True
    ) -> dict[str, Tensor]:
        """Compute the loss terms of a batch, each times its weight.

        Args:
            output: What the student gave for the batch.
            batch: With ``labels`` and ``example_id``.
            with_contrast: Whether the banks take part.

        Returns:
            Terms by name: ``ce``, ``kd``, ``snapshot_kd``, ``hidden``, ``prc``, ``snc``, ``fic``, ``scores``; those
            without weight are left out, and those of snapshots before the first one. With several processes their mean
            over the processes is the term of the whole batch.
        """
        share = self.ranks.share(len(batch["example_id"]))
        terms: dict[str, Tensor] = {}
        if self.distill.ce_weight > 0:
            terms["ce"] = self.distill.ce_weight * self.task_loss(output, batch, share)
        terms.update(
            distillation_terms(
                output,
                batch,
                distill=self.distill,
                memory=self.memory,
                teacher=self.teacher,
                ranks=self.ranks,
                share=share,
            )
        )
        if with_contrast and self.contrast is not None:
            terms.update(self.contrast.of_batch(output.pooled, batch, self.ranks, share, is_training=self.training))
        if self.pruner is not None and (regularizer := self.pruner.regularizer()) is not None:
            terms["scores"] = regularizer
        return terms

    def task_loss(self, output: EncoderOutput, batch: Mapping[str, Tensor], share: Share) -> Tensor:
        """Compare the student's answers with the labels where there are any, without a weight of its own.

        Encodings, which have no labels, are compared with the teacher's.

        Args:
            output: What the student gave for the batch.
            batch: With ``labels``, and with ``is_labelled`` if rows may have none.
            share: This process's part of the batch.

        Returns:
            Something whose mean over the processes is the mean over all rows, or words, with a label.
        """
        if self.distill.compares == "encodings" and self.memory is not None:
            return share.weight * teacher_term(output, batch, distill=self.distill, memory=self.memory)
        logits, labels = logit_rows(output.logits, batch), label_rows(batch)
        share = share_of_rows(batch, share, self.ranks)
        if "is_labelled" in batch:
            index, n_rows = places(batch, "is_labelled"), len(labels) // len(batch["is_labelled"])
            if n_rows > 1:  # one row a label of a set
                index = (index[:, None] * n_rows + torch.arange(n_rows, device=index.device)).flatten()
            logits, labels = logits.index_select(0, index), labels.index_select(0, index)
            share = self.ranks.share(len(labels))
        return share.weight * label_loss(logits, labels)

    @contextmanager
    def keeping_extras(self) -> Iterator[None]:
        """Let a pass draw extra examples without changing which ones training draws afterwards."""
        state = self._extras.get_state()
        try:
            yield
        finally:
            self._extras.set_state(state)

    def require_finite(self, total: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Stop a run whose loss is not finite, and say which term it was.

        Args:
            total: The sum of the terms, of the whole batch where processes share one, so that all of them stop.
            terms: Likewise.

        Raises:
            RunError: If it is not.
        """
        if bool(total.isfinite()):
            return
        values = {name: float(term.detach()) for name, term in terms.items()}
        broken = ", ".join(f"loss/{name} = {value}" for name, value in values.items() if not math.isfinite(value))
        broken = broken or f"loss/total = {float(total.detach())}"
        raise RunError(
            f"the loss must be finite, but at step {self.global_step} {broken}. "
            f"Lower learning_rate or pruning.score_learning_rate, or use trainer.precision=32-true; {_KEPT}"
        )

    @property
    def _is_logged(self) -> bool:
        """True in optimizer steps whose values the loggers take; in the others Lightning's log is work for nothing."""
        trainer: Any = self.trainer  # which does not declare it
        n: int = trainer.log_every_n_steps
        return n > 0 and (self.global_step + 1) % n == 0

    @property
    def is_asked_to_stop(self) -> bool:
        """True if a validation is to be given up, so that a checkpoint is written soon; it is made up for afterwards.

        Several processes finish it together: they hear of a signal at different times.
        """
        if stop.signal is None or self.ranks.size > 1:
            return False
        # After the last step there is no other place to make up for it.
        return self.trainer.global_step < self.trainer.estimated_stepping_batches

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Collect predictions of a validation batch."""
        if self.is_asked_to_stop:
            return
        split = list(self.metrics)[dataloader_idx]
        self.metrics[split].update(self(batch, for_loss=False).logits, batch)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of all validation splits."""
        for metrics in self.metrics.values():
            if self.is_asked_to_stop:
                metrics.reset()
                continue
            if self.ranks.size > 1:
                metrics.merge(self.ranks.gather(metrics.state()))
            scores = {f"val/{name}": value for name, value in metrics.compute().items()}
            # Every process has the same numbers already. Lightning wants to hear how they combine; the largest of
            # equals is exact, which their mean need not be.
            self.log_dict(scores, sync_dist=True, reduce_fx="max")
            metrics.reset()

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the global norm over weights and scores once, and stop before a broken loss or gradient reaches them."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val or float("inf"))
        # Losses are looked at here, too, so that the host waits once. A loss scaler meets infinite gradients on
        # purpose, and skips their steps itself.
        unread, self._unread = self._unread, []
        looked_at = [total for total, _ in unread] + ([] if has_scaler(self.trainer) else [norm])
        if bool(torch.stack(looked_at).isfinite().all()):
            return
        for total, terms in unread:
            self.require_finite(total, terms)
        raise RunError(
            f"the gradient must be finite, but its norm is {float(norm)} at step {self.global_step} although the loss "
            f"is finite. Lower learning_rate or the weight of a contrastive term; {_KEPT}"
        )

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the learning rate of the weights: not as a float, which Lightning copies to the device and waits."""
        if self._is_logged:
            self.log("train/learning_rate", torch.tensor(optimizer.param_groups[0]["lr"]))

    def configure_optimizers(self) -> Any:
        """Make one AdamW over weights and scores, with the same linear warm-up and decay for both."""
        optimizer = torch.optim.AdamW(
            self.parameter_groups(),
            lr=self.optimisation.learning_rate,
            eps=_ADAM_EPSILON,
            fused=self._can_fuse(),
        )
        n_steps = int(self.trainer.estimated_stepping_batches)
        scheduler = LambdaLR(optimizer, self.optimisation.over(n_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add where the stream of extra examples stands.

        Of frozen parameters only a key of their content stays: a run that resumes has them already, from where the
        student starts. Parameters that never change are left out.
        """
        for name in (*self._kept, *self._constant()):
            del checkpoint["state_dict"][name]
        checkpoint["kept"] = tensors_key(self._kept)
        checkpoint["extras"] = self._extras.get_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back, and fill in the frozen parameters.

        Raises:
            RunError: If those are not what the run began with.
        """
        if checkpoint["kept"] != tensors_key(self._kept):
            raise RunError(
                "a run goes on with the frozen weights (freeze) it began with, but those that its student starts from "
                "are others now: the model's folder, or the teacher, has changed. Put it back, or remove checkpoints/ "
                "in the run's folder to start this run again"
            )
        own = self._kept | self._constant()
        checkpoint["state_dict"] |= {name: parameter.detach() for name, parameter in own.items()}
        self._extras.set_state(checkpoint["extras"])

    def _constant(self) -> dict[str, nn.Parameter]:
        """Name what the pruner never changes."""
        wanted = {id(parameter) for parameter in self.pruner.constant_parameters()} if self.pruner is not None else ()
        return {name: parameter for name, parameter in self.named_parameters() if id(parameter) in wanted}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Split what is trained into decayed weights, the rest, and scores; what a pruner only observes is left out."""
        optimisation = self.optimisation
        return parameter_groups(
            self.student,
            self.pruner,
            learning_rate=optimisation.learning_rate,
            weight_decay=optimisation.weight_decay,
        )

    def _can_fuse(self) -> bool | None:
        # Lightning clips gradients itself and cannot do so when the optimizer unscales them, as the fused one would.
        # What then is left to PyTorch works on many parameters at once on CUDA.
        return (not has_scaler(self.trainer) and self.device.type in ("cpu", "cuda")) or None


def cap_module(pl_module: LightningModule) -> CapModule:
    """Return the module as what it is.

    Raises:
        TypeError: If it is another one.
    """
    if not isinstance(pl_module, CapModule):
        raise TypeError(f"this callback works on a CapModule, got {type(pl_module).__name__}")
    return pl_module


__all__ = ["CapModule", "Contrast", "Distill", "Optimisation", "cap_module"]
