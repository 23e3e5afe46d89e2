"""What the student learns from labels and from the teacher's outputs."""

from __future__ import annotations

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional


def label_loss(
    logits: Float[Tensor, "batch outputs"], labels: Int64[Tensor, " batch"] | Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Compare outputs with labels: cross-entropy for classes (nats), mean squared error for numbers.

    Args:
        logits: Student outputs; get the gradient.
        labels: Class indices (int64), or numbers (float) when the model has one output.
    """
    if labels.is_floating_point():
        return functional.mse_loss(logits.squeeze(-1).float(), labels.float())
    return functional.cross_entropy(logits.float(), labels)


def distillation_loss(
    student_logits: Float[Tensor, "batch outputs"],
    teacher_logits: Float[Tensor, "batch outputs"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Compare the student's outputs with the teacher's.

    Args:
        student_logits: Get the gradient.
        teacher_logits: Detached; any float type.
        temperature: Softens both sides; dimensionless, > 0. Unused for a single output (regression).

    Returns:
        temperature² · KL(teacher ‖ student), mean over the batch, in nats; the mean squared error for one output.

    Raises:
        ValueError: If ``temperature`` is not positive.

    Source: arXiv:1503.02531, section 2; the square keeps gradients of the same size at any temperature.
    """
    if not temperature > 0:
        raise ValueError(f"distill.temperature divides the logits and must be > 0, got {temperature}")
    student, teacher = student_logits.float(), teacher_logits.detach().float()
    if student.shape[-1] == 1:
        return functional.mse_loss(student, teacher)
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1),
        functional.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


__all__ = ["distillation_loss", "label_loss"]
