"""The loss terms that a student gets from its teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from cap.models.encoders import EncoderOutput
from cap.objectives.distillation import distillation_loss, span_rows
from cap.objectives.memory import Memory
from cap.training.ranks import Share


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Say how much the labels and the teacher's logits weigh.

    Args:
        weight: Factor of the distillation term; 0 leaves it out.
        ce_weight: Factor of the loss against the labels.
        temperature: Softens both sides of the distillation.
    """

    weight: float
    ce_weight: float
    temperature: float


def distillation_terms(
    output: EncoderOutput, batch: Mapping[str, Tensor], *, distill: Distill, memory: Memory | None, share: Share
) -> Iterator[tuple[str, Tensor]]:
    """Compare what the student gave for a batch with what its teacher gives.

    Args:
        output: Of the student.
        batch: With ``example_id``.
        distill: Weights and temperature.
        memory: Holds the teacher's logits; None where there is no teacher.
        share: This process's part of the batch.

    Yields:
        Terms by name, each times its weight; those without weight are left out. Their mean over the processes is the
        term of the whole batch.
    """
    if distill.weight > 0 and memory is not None:
        student_logits = logit_rows(output.logits, batch)
        stored = memory.teacher_logits(batch["example_id"].cpu())
        teacher_logits = logit_rows(stored.to(student_logits.device), batch)
        loss = distillation_loss(student_logits, teacher_logits, temperature=distill.temperature)
        yield "kd", share.weight * distill.weight * loss


def logit_rows(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return one row of logits per classification: an answer in the text is two, over its tokens."""
    if logits.ndim == 2:
        return logits
    is_token = batch["attention_mask"]
    # What the memory gives ends with the longest example, a batch perhaps later.
    padding = is_token.shape[1] - logits.shape[1]
    return span_rows(functional.pad(logits, (0, 0, 0, padding)), is_token)


__all__ = ["Distill", "distillation_terms", "logit_rows"]
