"""How a run contrasts its student with the memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from cap.data.batch import host_ids
from cap.models.pooled import normalise
from cap.objectives.contrastive import Reduction, bank_loss, collect_candidates
from cap.objectives.memory import Memory, Source, moved
from cap.training.parallel.ranks import Ranks, Share

_TERMS: dict[Source, str] = {"pretrained": "prc", "snapshots": "snc", "finetuned": "fic"}


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


class ContrastiveTerms:
    """Contrast batches with every bank of a memory.

    Args:
        settings: Which banks, and how.
        memory: Encodings by ``example_id``.
        labels: By ``example_id``; classes (int64) give supervised positives, numbers and spans none. A negative class
            is unknown: such a row is no positive and no negative of the supervised terms. None where words have labels,
            and texts none.
        groups: The question that each example is a window of, by ``example_id``; None where examples stand alone.
        extras: The source of randomness for the examples beside the batch, on the CPU.
    """

    def __init__(
        self,
        settings: Contrast,
        memory: Memory,
        *,
        labels: Tensor | None,
        groups: Int64[Tensor, " examples"] | None,
        extras: torch.Generator,
    ) -> None:
        self.settings = settings
        self.memory = memory
        is_class = labels is not None and not labels.is_floating_point() and labels.ndim == 1
        self._labels = labels if is_class else None
        self._has_unknown = self._labels is not None and bool((self._labels < 0).any())
        self._groups = groups
        self._extras = extras

    def of_batch(
        self,
        pooled: Float[Tensor, "batch dim"],
        batch: Mapping[str, Any],
        ranks: Ranks,
        share: Share,
        *,
        is_training: bool,
    ) -> Iterator[tuple[str, Tensor]]:
        """Compute the term of each bank, with its weights in it.

        Args:
            pooled: The student's vectors of this process's part of the batch, not normalised.
            batch: With ``example_id``.
            ranks: The processes that share the batch.
            share: This process's part of it.
            is_training: Whether anchors get dropout.

        Yields:
            ``prc``, ``snc``, ``fic``; ``snc`` from the first snapshot on. Their mean over the processes is the term of
            the whole batch.
        """
        settings, memory = self.settings, self.memory
        anchors = normalise(functional.dropout(pooled, settings.anchor_dropout, training=is_training))
        device = anchors.device
        # From here on the batch is that of all processes: they draw the same extras, and see the same candidates.
        batch_encodings = ranks.gather_rows(anchors, counts=share.counts)
        example_id = ranks.gather_rows(host_ids(batch), counts=share.counts)
        n = len(example_id)
        extras = memory.draw_extras(settings.extra_examples, exclude=example_id, generator=self._extras)
        # Every bank takes the batch and the first of the extras: what is known of them goes to the device once.
        all_id = torch.cat([example_id, extras])
        all_id_there = moved(all_id, device)
        batch_labels, all_labels = self._classes(example_id, device), self._classes(all_id, device, n_before=n)
        all_groups = None if self._groups is None else moved(self._groups[all_id], device)
        for source in settings.sources:
            n_encodings = memory.n_encodings(source)
            if n_encodings == 0:  # no snapshot has been taken yet
                continue
            rows = slice(n + min(len(extras), settings.extra_examples // n_encodings))
            candidates = collect_candidates(
                batch_encodings,
                moved(memory.gather(source, all_id[rows], pin=device.type == "cuda"), device),
                batch_id=all_id_there[:n],
                bank_id=all_id_there[rows],
                batch_labels=batch_labels,
                bank_labels=None if all_labels is None else all_labels[rows],
                batch_groups=None if all_groups is None else all_groups[:n],
                bank_groups=None if all_groups is None else all_groups[rows],
                has_unknown=self._has_unknown,
            )
            loss = bank_loss(
                anchors,
                candidates,
                temperature=settings.temperature,
                reduction=settings.reduction,
                unsupervised_weight=settings.unsupervised_weight,
                supervised_weight=settings.supervised_weight,
                ignore_same_label=settings.ignore_same_label,
                first=share.first,
            )
            # The processes' shares add up to the whole; what is wanted is something whose mean is the whole.
            yield _TERMS[source], loss * ranks.size

    def _classes(self, example_id: Tensor, device: torch.device, *, n_before: int = 0) -> Tensor | None:
        """Return the classes of some rows among the candidates; one that is unknown is a class of its own."""
        if self._labels is None:
            return None
        classes, place = self._labels[example_id], torch.arange(n_before, n_before + len(example_id))
        return moved(torch.where(classes < 0, -1 - place, classes), device)


__all__ = ["Contrast", "ContrastiveTerms"]
