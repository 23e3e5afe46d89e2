"""The one contrastive function behind PrC, SnC and FiC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Reduction = Literal["pairs", "anchors"]


def contrastive_loss(
    anchors: Float[Tensor, "batch dim"],
    candidates: Float[Tensor, "bank dim"],
    is_positive: Bool[Tensor, "batch bank"],
    *,
    is_self: Bool[Tensor, "batch bank"],
    temperature: float,
    reduction: Reduction,
) -> Float[Tensor, ""]:
    """Average the InfoNCE loss of anchors over their positives.

    Args:
        anchors: Student encodings, L2-normalised; the only side that gets a gradient.
        candidates: Encodings to compare with, L2-normalised, detached.
        is_positive: True where candidate j is a positive of anchor i; never True where ``is_self`` is.
        is_self: True where candidate j is anchor i itself; excluded from numerator and denominator.
        temperature: Divides the cosine similarities; dimensionless, > 0.
        reduction: ``anchors`` averages over the anchors that have a positive; ``pairs`` divides the sum of the
            anchors' means by the number of positive pairs, as the published code does.

    Returns:
        Loss in nats, at least in float32; exactly 0, still differentiable, if no anchor has a positive.

    Raises:
        ValueError: If ``temperature`` is not positive or ``reduction`` is unknown.

    Source: supervised contrastive loss, arXiv:2004.11362, mean over positives outside the log; used by CAP,
    arXiv:2112.07198. The reduction ``pairs`` is that of CAP's released code, not of a formula in the paper.
    """
    _check(temperature, reduction)
    log_prob = _log_probabilities(_similarities(anchors, candidates, temperature), is_self)
    return _average(log_prob, is_positive, reduction)


def _check(temperature: float, reduction: str) -> None:
    if not temperature > 0:
        raise ValueError(f"contrast.temperature divides the similarities and must be > 0, got {temperature}")
    if reduction not in ("pairs", "anchors"):
        raise ValueError(f"contrast.reduction must be 'pairs' or 'anchors', got {reduction!r}")


def _similarities(anchors: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """Return the similarity of each anchor to each candidate over the temperature, (batch, bank)."""
    dtype = torch.promote_types(anchors.dtype, torch.float32)
    # Autocast would run the product in half precision, whose steps are coarse once divided by the temperature.
    with torch.autocast(anchors.device.type, enabled=False):
        return anchors.to(dtype) @ candidates.to(dtype).T / temperature


def _log_probabilities(similarity: Tensor, is_excluded: Tensor) -> Tensor:
    """Return the log softmax of each anchor over the candidates that are not excluded, (batch, bank)."""
    with torch.autocast(similarity.device.type, enabled=False):
        return similarity.masked_fill(is_excluded, torch.finfo(similarity.dtype).min).log_softmax(dim=1)


def _average(log_prob: Tensor, is_positive: Tensor, reduction: Reduction, *, first: int = 0) -> Tensor:
    """Add up the losses of some anchors and divide by the count of all: rows of ``log_prob`` begin at ``first``."""
    own = slice(first, first + len(log_prob))
    with torch.autocast(log_prob.device.type, enabled=False):
        n_positive = is_positive.sum(dim=1)  # (batch,)
        # clamp: an anchor without positives contributes 0 / 1, not 0 / 0 = nan.
        per_anchor = -torch.where(is_positive[own], log_prob, 0.0).sum(dim=1) / n_positive[own].clamp(min=1)
        count = (n_positive > 0).sum() if reduction == "anchors" else n_positive.sum()
        return per_anchor.sum() / count.clamp(min=1)


@dataclass(frozen=True)
class Candidates:
    """Hold the candidates of one bank: their encodings, examples and labels.

    Args:
        encodings: In this order: the batch itself, the bank rows of the batch, the bank rows of the extras.
        example_id: The example each row belongs to.
        labels: The class of each row, negative and like no other where it is unknown; None where answers are no
            classes.
        n_batch: How many rows at the start are the batch itself.
        group_id: The question each row is a window of: other windows of an anchor's question are neither positives
            nor negatives. None where examples stand alone.
        has_unknown: Whether some rows have no known class: the supervised term leaves them out, as half of them may be
            of the anchor's.
    """

    encodings: Float[Tensor, "bank dim"]
    example_id: Int64[Tensor, " bank"]
    labels: Int64[Tensor, " bank"] | None
    n_batch: int
    group_id: Int64[Tensor, " bank"] | None = None
    has_unknown: bool = False


def collect_candidates(
    batch_encodings: Float[Tensor, "batch dim"],
    bank_encodings: Float[Tensor, "rows snapshots dim"],
    *,
    batch_id: Int64[Tensor, " batch"],
    bank_id: Int64[Tensor, " rows"],
    batch_labels: Int64[Tensor, " batch"] | None,
    bank_labels: Int64[Tensor, " rows"] | None,
    batch_groups: Int64[Tensor, " batch"] | None = None,
    bank_groups: Int64[Tensor, " rows"] | None = None,
    has_unknown: bool = False,
) -> Candidates:
    """Line up the candidates of one bank.

    Args:
        batch_encodings: The student's encodings of the batch; detached here.
        bank_encodings: Rows of the batch's examples, then of the extras, each with its encodings.
        batch_id: Example ids of the batch.
        bank_id: Example ids of the bank rows.
        batch_labels: Classes of the batch; None where answers are no classes.
        bank_labels: Classes of the bank rows; None where answers are no classes.
        batch_groups: The question that each example of the batch is a window of; None where examples stand alone.
        bank_groups: The same of the bank rows.
        has_unknown: As in ``Candidates``.

    Returns:
        The candidates of every anchor of the batch.
    """
    n_snapshots = bank_encodings.shape[1]
    return Candidates(
        encodings=torch.cat([batch_encodings.detach(), bank_encodings.flatten(0, 1).to(batch_encodings.dtype)]),
        example_id=torch.cat([batch_id, bank_id.repeat_interleave(n_snapshots)]),
        labels=_line_up(batch_labels, bank_labels, n_snapshots),
        n_batch=len(batch_id),
        group_id=_line_up(batch_groups, bank_groups, n_snapshots),
        has_unknown=has_unknown,
    )


def _line_up(
    batch: Int64[Tensor, " batch"] | None, bank: Int64[Tensor, " rows"] | None, n_snapshots: int
) -> Int64[Tensor, " candidates"] | None:
    if batch is None or bank is None:
        return None
    return torch.cat([batch, bank.repeat_interleave(n_snapshots)])


def bank_loss(
    anchors: Float[Tensor, "batch dim"],
    candidates: Candidates,
    *,
    temperature: float,
    reduction: Reduction,
    unsupervised_weight: float,
    supervised_weight: float,
    ignore_same_label: bool = False,
    first: int = 0,
) -> Float[Tensor, ""]:
    """Weigh and add the unsupervised and the supervised term of one bank.

    Several processes share a batch: each compares its own anchors with the candidates of the whole batch, and divides
    by the count of the whole batch, so that the sum of their shares is the loss of one process.

    Args:
        anchors: Student encodings of the batch or of a share of it, with gradient, in the order of the candidates'
            first rows.
        candidates: What they are compared with; of the whole batch.
        temperature: As in ``contrastive_loss``.
        reduction: As in ``contrastive_loss``.
        unsupervised_weight: Factor of the term whose positives are candidates of the same example.
        supervised_weight: Factor of the term whose positives share the label; ignored without labels.
        ignore_same_label: Leave other examples of an anchor's label out of the negatives of the unsupervised term: the
            supervised one pulls them together.
        first: Where in the batch the anchors begin.

    Returns:
        The weighted sum in nats, or these anchors' share of it.

    Raises:
        ValueError: If the anchors reach beyond the batch, or as ``contrastive_loss``.
    """
    _check(temperature, reduction)
    n, last = candidates.n_batch, first + len(anchors)
    if not 0 <= first <= last <= n:
        raise ValueError(f"anchors must be rows of a batch of {n}, got rows {first} to {last}")
    is_excluded = _excluded(candidates)
    # Both terms rank the same candidates: one product serves them, and one softmax unless labels leave some out.
    similarity = _similarities(anchors, candidates.encodings, temperature)
    log_prob = _log_probabilities(similarity, is_excluded[first:last])
    total = anchors.new_zeros(())
    is_example = _is_equal(candidates.example_id, n)
    is_class = None if candidates.labels is None else _is_equal(candidates.labels, n)
    if unsupervised_weight != 0:
        ranked = log_prob
        if ignore_same_label and is_class is not None:
            ranked = _log_probabilities(similarity, (is_excluded | (is_class & ~is_example))[first:last])
        total = total + unsupervised_weight * _average(ranked, is_example & ~is_excluded, reduction, first=first)
    if supervised_weight != 0 and candidates.labels is not None and is_class is not None:
        ranked = log_prob
        if candidates.has_unknown:
            ranked = _log_probabilities(similarity, (is_excluded | (candidates.labels < 0))[first:last])
        total = total + supervised_weight * _average(ranked, is_class & ~is_excluded, reduction, first=first)
    return total


def _is_equal(key: Tensor, n_batch: int) -> Tensor:
    """Compare a key of the batch's rows with that of all candidates, (batch, bank)."""
    return key[:n_batch, None] == key[None, :]


def _excluded(candidates: Candidates) -> Tensor:
    """Mark what an anchor is not compared with: itself and other windows of its question, (batch, bank)."""
    n, example_id, group_id = candidates.n_batch, candidates.example_id, candidates.group_id
    is_excluded = torch.zeros(n, len(example_id), dtype=torch.bool, device=example_id.device)
    is_excluded.fill_diagonal_(True)
    if group_id is not None:
        is_excluded |= (group_id[:n, None] == group_id[None, :]) & (example_id[:n, None] != example_id[None, :])
    return is_excluded


__all__ = ["Candidates", "Reduction", "bank_loss", "collect_candidates", "contrastive_loss"]
