"""How long models take beside each other: called in turns in one process, so that what slows one slows all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Batch = dict[str, Tensor]
_FEWEST, _MOST = 5, 50
# The first call of a shape allocates and chooses kernels; the second is timed to see how many calls can be afforded.
_N_WARM_UP = 2
BATCH_SIZES = (1, 32)
LENGTHS = (32, 128)


@dataclass(frozen=True)
class Quartiles:
    """Hold the first quartile, the median and the third quartile."""

    first: float
    median: float
    third: float


@dataclass(frozen=True)
class ModelLatency:
    """Hold what one model took.

    Args:
        milliseconds: Of one call.
        speed_up: Of the ratios reference / model, one from each round; more than 1 is faster than the reference.
    """

    milliseconds: Quartiles
    speed_up: Quartiles


@dataclass(frozen=True)
class Latency:
    """Hold what was measured with one shape of input.

    Args:
        batch_size: Rows of a call.
        length: Tokens of a row.
        n_rounds: Calls of each model that counted.
        models: By name.
    """

    batch_size: int
    length: int
    n_rounds: int
    models: dict[str, ModelLatency]


def paired_latency(
    models: Mapping[str, Callable[[Batch], Any]],
    *,
    reference: str,
    vocabulary_size: int,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    lengths: Sequence[int] = LENGTHS,
    budget_seconds: float = 20.0,
    device: torch.device | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Latency]:
    """Measure models in rounds: each model once on the same made-up token numbers, one after the other.

    Every other round goes through the models backwards, so that no model is always the one that comes after another.

    Args:
        models: What to call with ``input_ids`` and ``attention_mask``; a transformers model gets them by keyword.
        reference: The model that the others are compared with, the dense one as a rule.
        vocabulary_size: Token numbers are drawn below it.
        batch_sizes: Rows of a call; every size is measured with every length.
        lengths: Tokens of a row, none of them padding.
        budget_seconds: Aimed at for each shape: decides the number of rounds, between 5 and 50. Two rounds of warm-up
            and five that count take place whatever they cost.
        device: Where the inputs lie; the models are where the caller put them. None is the CPU.
        seed: Of the token numbers.
        clock: Tells the time in seconds.

    Returns:
        One result per batch size and length.

    Raises:
        ValueError: If ``reference`` is none of the models, or a module is in training mode.
    """
    if reference not in models:
        raise ValueError(f"reference must be one of the models ({', '.join(models)}), got {reference!r}")
    in_training = [name for name, model in models.items() if isinstance(model, nn.Module) and model.training]
    if in_training:
        raise ValueError(f"latency is that of eval mode, got {', '.join(in_training)} in training mode; call .eval()")
    place = torch.device("cpu") if device is None else device
    draw = torch.Generator().manual_seed(seed)
    measured = []
    with torch.inference_mode():
        for batch_size, length in ((size, length) for size in batch_sizes for length in lengths):
            ids = torch.randint(vocabulary_size, (batch_size, length), generator=draw).to(place)
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            seconds = np.array(list(_rounds(list(models.values()), batch, budget_seconds, clock)))
            base = seconds[:, list(models).index(reference)]
            found = {
                name: ModelLatency(_quartiles(1000 * seconds[:, i]), _quartiles(base / seconds[:, i]))
                for i, name in enumerate(models)
            }
            measured.append(Latency(batch_size, length, len(seconds), found))
    return measured


def _rounds(
    models: Sequence[Callable[[Batch], Any]], batch: Batch, budget_seconds: float, clock: Callable[[], float]
) -> Iterator[list[float]]:
    """Yield the seconds of every model, round by round, without the warm-up."""
    for turn in range(_N_WARM_UP):
        last = _round(models, batch, clock, is_backwards=turn % 2 == 1)
    n_rounds = int(min(max(budget_seconds / sum(last), _FEWEST), _MOST))
    for turn in range(n_rounds):
        yield _round(models, batch, clock, is_backwards=turn % 2 == 1)


def _round(
    models: Sequence[Callable[[Batch], Any]], batch: Batch, clock: Callable[[], float], *, is_backwards: bool
) -> list[float]:
    seconds = [_seconds(model, batch, clock) for model in (reversed(models) if is_backwards else models)]
    return seconds[::-1] if is_backwards else seconds


def _seconds(model: Callable[..., Any], batch: Batch, clock: Callable[[], float]) -> float:
    is_cuda = batch["input_ids"].is_cuda
    if is_cuda:
        torch.cuda.synchronize()
    started = clock()
    _ = model(**batch) if isinstance(model, PreTrainedModel) else model(batch)
    if is_cuda:
        torch.cuda.synchronize()
    return clock() - started


def _quartiles(values: np.ndarray) -> Quartiles:
    return Quartiles(*(float(value) for value in np.percentile(values, [25, 50, 75])))


__all__ = ["BATCH_SIZES", "LENGTHS", "Batch", "Latency", "ModelLatency", "Quartiles", "paired_latency"]
