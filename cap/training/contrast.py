"""How a run contrasts its student with the memory."""

from __future__ import annotations

from dataclasses import dataclass

from cap.objectives.contrastive import Reduction
from cap.objectives.memory import Source


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Say how the student is contrasted with the memory.

    Args:
        sources: Banks that take part; a bank without encodings yet is passed over.
        unsupervised_weight: Factor of the terms whose positives are the same example.
        supervised_weight: Factor of the terms whose positives share the label.
        temperature: Divides the cosine similarities.
        extra_examples: Training examples beside the batch, divided by the number of encodings of a bank.
        reduction: How the anchors' losses are averaged.
        anchor_dropout: Probability of dropping an entry of the student's pooled vector before it is normalised.
        seed: Of the draw of extra examples.
        ignore_same_label: Whether other examples of an anchor's label are no negatives of the unsupervised terms.
    """

    sources: tuple[Source, ...]
    unsupervised_weight: float
    supervised_weight: float
    temperature: float
    extra_examples: int
    reduction: Reduction
    anchor_dropout: float
    seed: int
    ignore_same_label: bool = False


__all__ = ["Contrast"]
