"""Fill the memory: one pass of a frozen model over the training set, kept on disk by content."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from cap.models.encoders import PooledModel, evaluating, normalise, weights_key
from cap.storage import atomic_file, atomic_folder, content_key, file_sha256, locked, read_json, write_json
from cap.training.progress import tracked

log = logging.getLogger(__name__)

_ENCODINGS = "encodings.npy"
_LOGITS = "logits.npy"
_LENGTHS = "lengths.npy"
_META = "meta.json"


@dataclass(frozen=True)
class Logits:
    """Hold the logits of a whole training set, float16, ordered by example_id.

    Args:
        values: (examples, outputs); of spans (tokens of all examples, 2), without padding.
        lengths: Of spans: the number of tokens of each example, int64; else None.
    """

    values: np.ndarray
    lengths: np.ndarray | None


@dataclass(frozen=True)
class FrozenOutputs:
    """Point at the outputs of a frozen model over the training set.

    Args:
        encodings: ``.npy`` file (examples, dim), float16, ordered by example_id.
        logits: ``.npy`` file with the values of ``Logits``; None if they were not asked for.
        lengths: ``.npy`` file with the lengths of ``Logits``; None if it has none.
        was_cached: True if nothing had to be computed.
    """

    encodings: Path
    logits: Path | None
    lengths: Path | None
    was_cached: bool


@dataclass(frozen=True)
class Computation:
    """Say where and in which precision encoding runs.

    Args:
        device: The device.
        precision: Lightning's name of the precision; part of the cache key.
        autocast: Makes the context in which a forward pass runs.
    """

    device: torch.device
    precision: str
    autocast: Callable[[], AbstractContextManager]


def computation_of(trainer: Trainer) -> Computation:
    """Encode where and how a trainer trains."""
    return Computation(trainer.strategy.root_device, str(trainer.precision), trainer.precision_plugin.forward_context)


def encode_rows(
    model: PooledModel,
    loader: DataLoader,
    *,
    device: torch.device,
    description: str,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    with_logits: bool = True,
    trainer: Trainer | None = None,
) -> tuple[np.ndarray, Logits | None]:
    """Run a model in eval mode over the training set.

    Args:
        model: Left on ``device``, its mode restored.
        loader: Every training row once, in any order.
        device: Where to run.
        description: What the progress bar says.
        autocast: Makes the context of a forward pass.
        with_logits: False where nobody reads them: those of spans are as many as there are tokens.
        trainer: A trainer that is fitting at the moment, for its progress display.

    Returns:
        Encodings (examples, dim), float16, ordered by example_id, and the logits, or None.

    Raises:
        ValueError: If the loader does not give every row exactly once.
    """
    encodings, logits, lengths, ids = [], [], [], []
    model.to(device)
    with evaluating(model), autocast():
        for batch in tracked(loader, description=description, trainer=trainer):
            moved = {name: value.to(device) for name, value in batch.items()}
            output = model(moved)
            encodings.append(normalise(output.pooled).half().cpu())
            ids.append(batch["example_id"])
            if not with_logits:
                continue
            is_token = moved["attention_mask"].bool()
            is_span = output.logits.ndim == 3
            logits.append((output.logits[is_token] if is_span else output.logits).half().cpu())
            if is_span:
                lengths.append(is_token.sum(dim=1).cpu())
    example_id = torch.cat(ids)
    order = example_id.argsort()
    if not torch.equal(example_id[order], torch.arange(len(example_id))):
        raise ValueError("encoding needs every training row exactly once, numbered from 0")
    return torch.cat(encodings)[order].numpy(), _ordered(logits, lengths, order) if with_logits else None


def _ordered(logits: list[Tensor], lengths: list[Tensor], order: Tensor) -> Logits:
    values = torch.cat(logits)
    if not lengths:
        return Logits(values[order].numpy(), None)
    n_tokens = torch.cat(lengths)
    rows = values.split(n_tokens.tolist())
    return Logits(torch.cat([rows[row] for row in order.tolist()]).numpy(), n_tokens[order].numpy())


def frozen_outputs(
    model: PooledModel,
    loader: DataLoader,
    *,
    data_key: str,
    cache_dir: Path,
    computation: Computation,
    description: str,
    with_logits: bool,
) -> FrozenOutputs:
    """Return the outputs of a frozen model over the training set, computed at most once per content.

    Args:
        model: The frozen model.
        loader: Every training row once.
        data_key: Names the tokenised rows.
        cache_dir: Root of what runs share.
        computation: Where and how to run.
        description: What the progress bar and the log say.
        with_logits: False for a model whose task head means nothing: its head is then no part of the content, so that
            runs with other seeds share one entry.

    Returns:
        Files under ``cache_dir``.
    """
    weights = weights_key(model.model if with_logits else model.model.base_model)
    names = (_ENCODINGS, _LOGITS) if with_logits else (_ENCODINGS,)
    where = [computation.precision, computation.device.type]
    folder = cache_dir / "encodings" / content_key([weights, list(names), model.pooling, data_key, *where])
    with locked(folder):
        if _is_whole(folder, names):
            log.info("%s: found in the cache", description)
            return _files(folder, with_logits, was_cached=True)
        n_batches = len(cast(Sized, loader))
        log.info("%s: %d batches on %s", description, n_batches, computation.device)
        encodings, logits = encode_rows(
            model,
            loader,
            device=computation.device,
            autocast=computation.autocast,
            with_logits=with_logits,
            description=description,
        )
        arrays = {_ENCODINGS: encodings}
        if logits is not None:
            arrays[_LOGITS] = logits.values
            if logits.lengths is not None:
                arrays[_LENGTHS] = logits.lengths
        with atomic_folder(folder) as temporary:
            for name, array in arrays.items():
                np.save(temporary / name, array, allow_pickle=False)
            write_json(temporary / _META, {name: file_sha256(temporary / name) for name in arrays})
    return _files(folder, with_logits, was_cached=False)


def _files(folder: Path, with_logits: bool, *, was_cached: bool) -> FrozenOutputs:
    lengths = folder / _LENGTHS
    return FrozenOutputs(
        encodings=folder / _ENCODINGS,
        logits=folder / _LOGITS if with_logits else None,
        lengths=lengths if lengths.exists() else None,
        was_cached=was_cached,
    )


def save_snapshot(encodings: np.ndarray, path: Path) -> None:
    """Write the encodings of a snapshot, whole or not at all."""
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, encodings, allow_pickle=False)


def _is_whole(folder: Path, names: tuple[str, ...]) -> bool:
    if not folder.exists():
        return False
    try:
        expected = read_json(folder / _META)
        # Lengths are there for spans only, and only the list of files knows.
        if expected.keys() >= set(names) and all(file_sha256(folder / name) == sha for name, sha in expected.items()):
            return True
    except (OSError, ValueError, AttributeError):
        pass
    log.warning("the cached encodings %s are damaged; they are made again", folder.name)
    return False


__all__ = [
    "Computation",
    "FrozenOutputs",
    "Logits",
    "computation_of",
    "encode_rows",
    "frozen_outputs",
    "save_snapshot",
]
