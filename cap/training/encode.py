"""Fill the memory: one pass of a frozen model over the training set, kept on disk by content."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader

from cap.base.cache import CacheEntry
from cap.base.files import atomic_file, content_key
from cap.data.batch import on_device
from cap.models.encoders import model_key
from cap.models.pooled import PooledModel, evaluating, mean_over_tokens, normalise
from cap.training.parallel.ranks import ALONE, Ranks, ranks_of
from cap.training.parallel.shares import ENCODINGS, HIDDEN, LENGTHS, LOGITS, Shares, ShareWriter, share_folder, together
from cap.training.progress import tracked

log = logging.getLogger(__name__)

FORMAT = 1
"""Part of every cache key: raise it when the files change their meaning."""


@dataclass(frozen=True)
class FrozenOutputs:
    """Point at the outputs of a frozen model over the training set.

    Args:
        encodings: ``.npy`` file (examples, dim), float16, ordered by example_id.
        logits: ``.npy`` file (examples, outputs), or of spans and tags (tokens of all examples, outputs), without
            padding; float16, ordered by example_id. None if they were not asked for.
        lengths: Of spans and tags: ``.npy`` file with the number of tokens of each example, int64; else None.
        hidden: ``.npy`` file (examples, layers, dim), float16, ordered by example_id: of each encoder layer the mean
            over real tokens. None if they were not asked for.
        was_cached: True if nothing had to be computed.
    """

    encodings: Path
    logits: Path | None
    lengths: Path | None
    hidden: Path | None
    was_cached: bool


@dataclass(frozen=True)
class Computation:
    """Say where, in which precision and in which processes encoding runs.

    Args:
        device: The device.
        precision: Lightning's name of the precision; part of the cache key.
        autocast: Makes the context in which a forward pass runs.
        ranks: The processes that share the rows; every one of them calls what encodes. Their number is no part of a
            cache key.
    """

    device: torch.device
    precision: str
    autocast: Callable[[], AbstractContextManager]
    ranks: Ranks = ALONE


def computation_of(trainer: Trainer) -> Computation:
    """Encode where and how a trainer trains."""
    context = trainer.precision_plugin.forward_context
    return Computation(trainer.strategy.root_device, str(trainer.precision), context, ranks_of(trainer))


def encode_share(
    model: PooledModel,
    loader: DataLoader,
    folder: Path,
    *,
    computation: Computation,
    description: str,
    with_logits: bool,
    with_hidden: bool = False,
    trainer: Trainer | None = None,
    shows_progress: bool = True,
) -> None:
    """Run a model in eval mode over a share of the training set, and write down what it gives.

    Args:
        model: Left on the device, its mode restored.
        loader: The rows of the share, in any order; there may be none.
        folder: A new folder for what ``Shares`` reads.
        computation: Where and how to run.
        description: What the progress bar says.
        with_logits: False where they are not read: those of spans and tags are as many as there are tokens.
        with_hidden: True for the mean hidden states of every encoder layer, too.
        trainer: A trainer that is fitting at the moment, for its progress display.
        shows_progress: Whether this process is the one that shows it.
    """
    device = computation.device
    model.to(device)
    batches = tracked(loader, description=description, trainer=trainer) if shows_progress else loader
    with ShareWriter(folder) as share, evaluating(model), parametrize.cached(), computation.autocast():
        for batch in batches:
            moved = on_device(batch, device)
            output = model(moved, with_hidden=with_hidden)
            logits, lengths = _logits_of(output.logits, moved["attention_mask"]) if with_logits else (None, None)
            encodings = normalise(output.pooled).half().cpu()
            hidden = _means(output.hidden, moved["attention_mask"]) if with_hidden else None
            example_id = batch["example_id"].cpu().numpy()
            share.append(example_id, encodings.numpy(), logits=logits, lengths=lengths, hidden=hidden)


def _logits_of(logits: Tensor, attention_mask: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the logits to keep: of spans and tags those of real tokens only, with their number in each example."""
    if logits.ndim == 2:
        return logits.half().cpu().numpy(), None
    is_token = attention_mask.bool()
    return logits[is_token].half().cpu().numpy(), is_token.sum(dim=1).cpu().numpy()


def _means(hidden: Sequence[Tensor], attention_mask: Tensor) -> np.ndarray:
    """Average each layer's states over real tokens: (batch, layers, dim)."""
    means = [mean_over_tokens(states.float(), attention_mask) for states in hidden]
    return torch.stack(means, dim=1).half().cpu().numpy()


def _encode(
    model: PooledModel,
    loader: DataLoader,
    path: Path,
    *,
    write: Callable[[Shares], None],
    computation: Computation,
    description: str,
    with_logits: bool,
    with_hidden: bool = False,
    trainer: Trainer | None = None,
) -> None:
    """Let every process encode its share beside ``path``, and the first one write what all of them gave."""
    ranks = computation.ranks

    def encode() -> None:
        encode_share(
            model,
            loader,
            folder / str(ranks.rank),
            computation=computation,
            description=description,
            with_logits=with_logits,
            with_hidden=with_hidden,
            trainer=trainer,
            shows_progress=ranks.is_first,
        )

    def merge() -> None:
        if ranks.is_first:
            write(Shares([folder / str(rank) for rank in range(ranks.size)]))

    with share_folder(path, ranks) as folder:
        together(ranks, encode, what=description)
        together(ranks, merge, what=description)


def frozen_outputs(
    model: PooledModel,
    loader: DataLoader,
    *,
    data_key: str,
    cache_dir: Path,
    computation: Computation,
    description: str,
    with_logits: bool,
    with_hidden: bool = False,
) -> FrozenOutputs:
    """Return the outputs of a frozen model over the training set, computed at most once per content.

    Args:
        model: The frozen model.
        loader: Every training row once, over all processes together.
        data_key: Names the tokenised rows.
        cache_dir: Root of what runs share; every process sees it.
        computation: Where and how to run.
        description: What the progress bar and the log say.
        with_logits: False for a model whose task head means nothing: its head is then no part of the content, so that
            runs with other seeds share one entry.
        with_hidden: True for the mean hidden states of every encoder layer, too; such an entry is one of its own.

    Returns:
        Files under ``cache_dir``, the same on every process.

    Raises:
        ValueError: If the loaders do not give every row exactly once.
        RunError: If another process failed.
    """
    ranks = computation.ranks
    content = model_key(model.model if with_logits else model.model.base_model)
    names = (ENCODINGS, *([LOGITS] if with_logits else []), *([HIDDEN] if with_hidden else []))
    where = [computation.precision, computation.device.type]
    # One process names the entry, and it alone waits for another run that makes the same; the others wait for it.
    key = ranks.broadcast(content_key([FORMAT, content, list(names), model.pooling, data_key, *where]))
    entry = CacheEntry(cache_dir / "encodings" / key, description, seal="meta.json", required=names)

    def write(shares: Shares) -> None:
        with entry.building() as aside:
            for name in shares.names:
                shares.write(name, aside / name)

    with entry.held() if ranks.is_first else nullcontext():
        was_cached = together(ranks, lambda: ranks.is_first and entry.is_whole(), what=description)[0]
        if was_cached:
            if ranks.is_first:
                log.info("%s: found in the cache", description)
            return _files(entry.folder, names, was_cached=True, ranks=ranks)
        n_batches = sum(ranks.gather(len(cast(Sized, loader))))
        if ranks.is_first:
            log.info("%s: %d batches on %s", description, n_batches, computation.device)
        _encode(
            model,
            loader,
            entry.folder,
            write=write,
            computation=computation,
            description=description,
            with_logits=with_logits,
            with_hidden=with_hidden,
        )
    return _files(entry.folder, names, was_cached=False, ranks=ranks)


def _files(folder: Path, names: Sequence[str], *, was_cached: bool, ranks: Ranks) -> FrozenOutputs:
    lengths = folder / LENGTHS
    # A network file system may show the others an older state: only the process that wrote looks.
    has_lengths = together(ranks, lambda: ranks.is_first and lengths.exists(), what="reading the cache")[0]
    return FrozenOutputs(
        encodings=folder / ENCODINGS,
        logits=folder / LOGITS if LOGITS in names else None,
        lengths=lengths if has_lengths else None,
        hidden=folder / HIDDEN if HIDDEN in names else None,
        was_cached=was_cached,
    )


def snapshot_files(path: Path) -> dict[str, Path]:
    """Name the files of a snapshot by what they hold: its encodings are ``path``, the others stand beside it."""
    return {ENCODINGS: path, LOGITS: path.with_suffix(".logits.npy"), LENGTHS: path.with_suffix(".lengths.npy")}


def take_snapshot(
    model: PooledModel,
    loader: DataLoader,
    path: Path,
    *,
    computation: Computation,
    description: str,
    with_encodings: bool = True,
    with_logits: bool = False,
    trainer: Trainer | None = None,
) -> list[str]:
    """Write what a model gives for the training set, each file whole or not at all.

    Args:
        model: The student as it is; its mode is restored.
        loader: Every training row once, over all processes together.
        path: Names the ``snapshot_files``, which are as those of ``FrozenOutputs``; every process sees them, and they
            are there when this returns.
        computation: Where and how to run.
        description: What the progress bar says.
        with_encodings: False where they are not read.
        with_logits: Likewise.
        trainer: A trainer that is fitting at the moment, for its progress display.

    Returns:
        Which of the files were written, the same on every process; lengths for spans and tags with logits only.

    Raises:
        ValueError: If the loaders do not give every row exactly once.
        RunError: If another process failed.
    """
    files, written = snapshot_files(path), []

    def write(shares: Shares) -> None:
        for name in shares.names:
            if name == ENCODINGS and not with_encodings:
                continue
            with atomic_file(files[name]) as temporary:
                shares.write(name, temporary)
            written.append(name)

    _encode(
        model,
        loader,
        path,
        write=write,
        computation=computation,
        description=description,
        with_logits=with_logits,
        trainer=trainer,
    )
    return computation.ranks.broadcast(written)


__all__ = [
    "Computation",
    "FrozenOutputs",
    "computation_of",
    "encode_share",
    "frozen_outputs",
    "snapshot_files",
    "take_snapshot",
]
