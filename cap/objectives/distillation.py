"""What the student learns from labels and from the teacher's outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

# Softmax gives it exactly 0 whatever the temperature, and divided by one it stays finite: -inf would make NaN in KL.
_PADDED = -1e20


def span_rows(
    logits: Float[Tensor, "batch tokens 2"], is_token: Bool[Tensor, "batch tokens"] | Int64[Tensor, "batch tokens"]
) -> Float[Tensor, "2*batch tokens"]:
    """Turn the logits of spans into rows over tokens: question answering is classification over tokens, twice.

    Args:
        logits: Start and end logits of every token, any float type; real tokens get the gradient.
        is_token: True or 1 for real tokens, as in an attention mask.

    Returns:
        The start row and the end row of each example in turn, float32; softmax gives padded tokens exactly 0. Labels
        of shape (batch, 2), flattened, are the classes of these rows.
    """
    rows = logits.float().transpose(1, 2)  # (batch, 2, tokens)
    return rows.masked_fill(~is_token.bool().unsqueeze(1), _PADDED).flatten(0, 1)


def label_set_rows(logits: Float[Tensor, "batch labels"]) -> Float[Tensor, "batch*labels 2"]:
    """Turn the logits of labels that a text may have together into rows: of each label, whether it has it or not.

    Softmax over such a row is the sigmoid of the logit: cross-entropy is binary cross-entropy with logits, and
    distillation compares label by label.

    Args:
        logits: One of every label, any float type; get the gradient.

    Returns:
        The labels of each example in turn, float32. Marks of shape (batch, labels), flattened, are the classes of
        these rows.
    """
    flat = logits.float().flatten()
    return torch.stack([torch.zeros_like(flat), flat], dim=1)


def label_loss(
    logits: Float[Tensor, "batch outputs"], labels: Int64[Tensor, " batch"] | Float[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Compare outputs with labels: cross-entropy for classes (nats), mean squared error for numbers.

    Args:
        logits: Student outputs; get the gradient.
        labels: Class indices (int64), or numbers (float) when the model has one output.

    Returns:
        The mean over the rows; exactly 0, still differentiable, without any.
    """
    if len(labels) == 0:
        return logits.float().sum()
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
        Exactly 0, still differentiable, without any row.

    Raises:
        ValueError: If ``temperature`` is not positive.

    Source: arXiv:1503.02531, section 2; the square keeps gradients of the same size at any temperature.
    """
    if not temperature > 0:
        raise ValueError(f"distill.temperature divides the logits and must be > 0, got {temperature}")
    student, teacher = student_logits.float(), teacher_logits.detach().float()
    if len(student) == 0:
        return student.sum()
    if student.shape[-1] == 1:
        return functional.mse_loss(student, teacher)
    divergence = functional.kl_div(
        functional.log_softmax(student / temperature, dim=-1),
        functional.log_softmax(teacher / temperature, dim=-1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


def encoding_loss(
    student: Float[Tensor, "batch dim"],
    teacher: Float[Tensor, "batch dim"],
    *,
    noise: Float[Tensor, "batch dim"] | None = None,
) -> Float[Tensor, ""]:
    """Compare the student's encodings with the dense encoder's, text by text.

    Args:
        student: Of length 1; get the gradient.
        teacher: Of length 1; detached; any float type.
        noise: Added to the teacher's; None adds none. Of independent entries with mean 0 it makes the gradient of a
            student that agrees with its teacher, which is 0, one whose square is in expectation the curvature.

    Returns:
        The mean over the batch of the squared distance, in [0, 4] without noise: twice 1 - cosine similarity.

    Source: alignment with a dense encoder after LEAF, arXiv:2509.12539, without labels or contrast. That gradients of
    a loss against targets drawn around a model's own outputs have the Gauss-Newton curvature as their mean square:
    arXiv:1412.1193.
    """
    wanted = teacher.detach().float() if noise is None else teacher.detach().float() + noise
    return (student.float() - wanted).square().sum(dim=-1).mean()


def mean_squares(hidden: Sequence[Float[Tensor, "rows dim"]]) -> Float[Tensor, " layers"]:
    """Measure how large the hidden states of each layer are: what an all-zero student's error would be."""
    return torch.stack([states.detach().float().square().mean() for states in hidden])


def hidden_loss(
    student: Sequence[Float[Tensor, "rows dim"]],
    teacher: Sequence[Float[Tensor, "rows dim"]],
    *,
    scale: Float[Tensor, " layers"],
) -> Float[Tensor, ""]:
    """Compare hidden states layer by layer, each layer's error relative to the size of its states.

    Args:
        student: Hidden states of each encoder layer; get the gradient. A row is a real token, or the mean over the real
            tokens of an example.
        teacher: Of the same rows; detached; any float type.
        scale: ``mean_squares`` of the teacher, over the rows of the whole batch where processes share one.

    Returns:
        The sum over layers of mean squared error ÷ scale; no unit. 0 for equal states, 1 a layer for states of 0.

    Raises:
        ValueError: If there are not as many layers on both sides.

    Source: SquareHead, arXiv:2310.06927: the sum over layers of MSE(student, teacher) ÷ (MSE(0, teacher) +
    ε), on tokens. Rows that are means over tokens are our own.
    """
    errors = torch.stack(
        [
            functional.mse_loss(own.float(), wanted.detach().float())
            for own, wanted in zip(student, teacher, strict=True)
        ]
    )
    return (errors / (scale + torch.finfo(torch.float32).eps)).sum()


__all__ = [
    "distillation_loss",
    "encoding_loss",
    "hidden_loss",
    "label_loss",
    "label_set_rows",
    "mean_squares",
    "span_rows",
]
