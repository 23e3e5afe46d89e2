"""The loss terms that a student gets from its teacher, and from its own earlier logits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from cap.data.batch import host_ids, places
from cap.models.pooled import EncoderOutput, PooledModel, mean_over_tokens
from cap.objectives.distillation import (
    distillation_loss,
    encoding_loss,
    hidden_loss,
    label_set_rows,
    mean_squares,
    span_rows,
)
from cap.objectives.memory import Memory, moved
from cap.training.parallel.ranks import Ranks, Share

HiddenForm = Literal["pooled", "tokens"]
_N_OF_CERTAINTY = 10_000


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Say how much the labels, the teacher's outputs and a snapshot's logits weigh.

    Args:
        weight: Factor of the distillation term; 0 leaves it out.
        ce_weight: Factor of the loss against the labels.
        temperature: Softens both sides of the distillation.
        hidden_weight: Factor of the error of the hidden states, summed over the encoder layers; 0 leaves it out.
        hidden: ``pooled`` compares means over real tokens with those in the memory; ``tokens`` compares every real
            token, with the teacher running in the step.
        snapshot_weight: Factor of the distillation from the newest snapshot's logits; 0 leaves it out.
        compares: What is distilled: logits, or the encodings that models without a head answer.
        is_noisy: Whether noise is added to the teacher's encodings, see ``noise_of``.
    """

    weight: float
    ce_weight: float
    temperature: float
    hidden_weight: float = 0.0
    hidden: HiddenForm = "pooled"
    snapshot_weight: float = 0.0
    compares: Literal["logits", "encodings"] = "logits"
    is_noisy: bool = False

    @property
    def runs_teacher(self) -> bool:
        """Say whether the teacher runs in every step."""
        return self.hidden_weight > 0 and self.hidden == "tokens"

    @property
    def reads_teachers_outputs(self) -> bool:
        """Say whether a term needs what the memory holds of the teacher."""
        return self.weight > 0 or (self.hidden_weight > 0 and self.hidden == "pooled")

    @property
    def reads_memory(self) -> bool:
        """Say whether a term needs anything that the memory holds."""
        return self.reads_teachers_outputs or self.snapshot_weight > 0


def distillation_terms(
    output: EncoderOutput,
    batch: Mapping[str, Tensor],
    *,
    distill: Distill,
    memory: Memory | None,
    teacher: PooledModel | None,
    ranks: Ranks,
    share: Share,
) -> Iterator[tuple[str, Tensor]]:
    """Compare what the student gave for a batch with what its teacher gives, and with what it gave itself before.

    Args:
        output: Of the student, with hidden states where they have a weight.
        batch: With ``example_id``.
        distill: Weights and temperature.
        memory: Holds the teacher's logits and mean hidden states, and a snapshot's logits; None where no term reads
            them.
        teacher: In eval mode and on the student's device; None where it need not run.
        ranks: The processes that share the batch.
        share: This process's part of it.

    Yields:
        Terms by name, each times its weight: ``kd``, ``snapshot_kd``, ``hidden``. Those without weight are left out,
        and ``snapshot_kd`` before the first snapshot. Their mean over the processes is the term of the whole batch.

    Source: ``snapshot_kd`` after PINS, arXiv:2305.12394: predictions are regularised by those of the latest checkpoint
    of a lower sparsity.
    """
    example_id = host_ids(batch)
    if distill.weight > 0 and memory is not None:
        loss = teacher_term(output, batch, distill=distill, memory=memory)
        yield "kd", share_of_rows(batch, share, ranks).weight * distill.weight * loss
    if distill.snapshot_weight > 0 and memory is not None and memory.has_snapshot_logits:
        loss = _logit_term(output.logits, memory.snapshot_logits(example_id), batch, distill)
        yield "snapshot_kd", share_of_rows(batch, share, ranks).weight * distill.snapshot_weight * loss
    if distill.runs_teacher and teacher is not None:
        index = batch["attention_mask"].flatten().nonzero().squeeze(1)  # of the real tokens
        with torch.no_grad():
            wanted = _tokens(teacher(batch, with_hidden=True).hidden, index)
        # What is averaged are tokens: this process's part of them is not its part of the rows.
        tokens = ranks.share(len(index))
        yield "hidden", distill.hidden_weight * _hidden_term(_tokens(output.hidden, index), wanted, tokens, ranks)
    elif distill.hidden_weight > 0 and memory is not None:
        means = [mean_over_tokens(states.float(), batch["attention_mask"]) for states in output.hidden]
        stored = moved(memory.hidden(example_id), means[0].device)
        yield "hidden", distill.hidden_weight * _hidden_term(means, stored.unbind(dim=1), share, ranks)


def teacher_term(output: EncoderOutput, batch: Mapping[str, Tensor], *, distill: Distill, memory: Memory) -> Tensor:
    """Compare what the student answered to a batch with what its teacher did, without a weight."""
    return _logit_term(output.logits, memory.teacher_logits(host_ids(batch)), batch, distill)


def certainty(memory: Memory, n_examples: int, *, temperature: float) -> float:
    """Average what the teacher gives the class that it answers with, over the examples that are learned from.

    Args:
        memory: Holds its logits, one class of several for each example.
        n_examples: How many there are; 10,000 at equal distances stand for more.
        temperature: Divides the logits.

    Returns:
        A probability. Near 1 the answers say little more than labels, and distillation gives little more than these
        (arXiv:1503.02531).
    """
    chosen = torch.linspace(0, n_examples - 1, min(n_examples, _N_OF_CERTAINTY), dtype=torch.float64).long()
    logits = memory.teacher_logits(chosen).double() / temperature
    return float(logits.softmax(dim=-1).amax(dim=-1).mean())


def noise_of(example_id: Int64[Tensor, " batch"], dim: int) -> Float[Tensor, "batch dim"]:
    """Draw noise for the encodings of some examples: normal, of length 1 in the mean of squares.

    It follows from the number of an example alone, so that it is the same in whatever batch, process or attempt.
    """
    drawn = [torch.randn(dim, generator=torch.Generator().manual_seed(number)) for number in example_id.tolist()]
    return torch.stack(drawn) / math.sqrt(dim)


def _logit_term(logits: Tensor, stored: Tensor, batch: Mapping[str, Tensor], distill: Distill) -> Tensor:
    student = logit_rows(logits, batch)
    wanted = logit_rows(moved(stored, student.device), batch)
    if distill.compares == "encodings":
        noise = noise_of(host_ids(batch), student.shape[-1]).to(student.device) if distill.is_noisy else None
        return encoding_loss(student, wanted, noise=noise)
    return distillation_loss(student, wanted, temperature=distill.temperature)


def _tokens(hidden: Sequence[Tensor], index: Tensor) -> list[Tensor]:
    """Pick the real tokens of a batch: of each layer (tokens, dim)."""
    return [states.flatten(0, 1).index_select(0, index) for states in hidden]


def _hidden_term(student: Sequence[Tensor], teacher: Sequence[Tensor], share: Share, ranks: Ranks) -> Tensor:
    scale = ranks.mean(share.weight * mean_squares(teacher))  # of the whole batch
    return share.weight * hidden_loss(student, teacher, scale=scale)


def logit_rows(logits: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Return one row of logits per classification.

    An answer in the text is two, over its tokens; of words each is one, at its first token; of labels that a text may
    have together each is one.
    """
    if logits.ndim == 2:
        labels = batch.get("labels")
        return logits if labels is None or labels.ndim == 1 else label_set_rows(logits)
    is_token = batch["attention_mask"]
    # What the memory gives ends with the longest example, a batch perhaps later.
    padding = is_token.shape[1] - logits.shape[1]
    padded = functional.pad(logits, (0, 0, 0, padding))
    if "is_word" in batch:
        return padded.flatten(0, 1).index_select(0, places(batch, "is_word"))
    return span_rows(padded, is_token)


def label_rows(batch: Mapping[str, Tensor]) -> Tensor:
    """Return the labels of the rows that ``logit_rows`` gives."""
    labels = batch["labels"].flatten()
    rows = labels.index_select(0, places(batch, "is_word")) if "is_word" in batch else labels
    return rows if rows.is_floating_point() else rows.long()


def share_of_rows(batch: Mapping[str, Tensor], share: Share, ranks: Ranks) -> Share:
    """Say which part of the rows that ``logit_rows`` gives this process has.

    Args:
        batch: This process's part of a batch.
        share: Its part of the examples; of one count where it has a batch of its own, and no other process is asked.
        ranks: The processes.
    """
    if "is_word" not in batch or len(share.counts) == 1:
        return share
    return ranks.share(len(places(batch, "is_word")))


__all__ = [
    "Distill",
    "certainty",
    "distillation_terms",
    "label_rows",
    "logit_rows",
    "noise_of",
    "share_of_rows",
    "teacher_term",
]
