"""Which vector stands for a text: what ``contrast.pool`` means for a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from cap.base.errors import InputError
from cap.base.network import HUB_ERROR
from cap.models.pooled import Pooling
from cap.models.sources import ModelSource, where_from

# Modes of sentence-transformers that a run can use; the square root of the length goes when vectors are normalised.
_MODES: dict[str, Pooling] = {"cls": "first_token", "mean": "mean", "mean_sqrt_len_tokens": "mean"}
_SWITCH = "pooling_mode_"


def resolve_pooling(pool: str, source: ModelSource, *, has_trained_pooler: bool) -> Pooling:
    """Decide how the encodings of a model are pooled.

    Args:
        pool: ``mean``; ``cls``, which is the pooler where that one was trained and the first token elsewhere; ``auto``,
            which is a trained pooler, else what the checkpoint's sentence-transformers files name, else the mean.
        source: Where those files are.
        has_trained_pooler: As ``load_model`` found it.
    """
    if pool == "mean":
        return "mean"
    if has_trained_pooler:
        return "pooler"
    return "first_token" if pool == "cls" else sentence_pooling(source) or "mean"


def resolve_encoding(pool: str, source: ModelSource) -> Pooling:
    """Decide how a model that encodes texts is pooled: its pooler, trained or not, takes no part.

    Args:
        pool: ``mean``; ``cls``, the first token; ``auto``, what the checkpoint's sentence-transformers files name, else
            the mean.
        source: Where those files are.

    Raises:
        InputError: If sentence-transformers puts more behind a model than pooling and normalisation.
    """
    modules = _read(source, "modules.json")
    kinds = [str(m.get("type")).rpartition(".")[2] for m in modules or [] if isinstance(m, dict)]
    others = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    if others:
        raise InputError(
            f"task=embed prunes encoders whose vectors are pooled hidden states, got {source.label} with "
            f"{', '.join(others)} behind them (modules.json); choose another model"
        )
    if pool == "auto":
        return sentence_pooling(source) or "mean"
    return "first_token" if pool == "cls" else "mean"


def sentence_pooling(source: ModelSource) -> Pooling | None:
    """Read how sentence-transformers pools a model.

    Returns:
        None for a model that has no such files, for another pooling than ours, and for several at once.
    """
    modules = _read(source, "modules.json")
    listed = modules if isinstance(modules, list) else []
    paths = [m.get("path") for m in listed if isinstance(m, dict) and str(m.get("type")).endswith("Pooling")]
    config = _read(source, f"{paths[0]}/config.json") if paths else None
    if not isinstance(config, dict):
        return None
    named = config.get("pooling_mode")  # since version 5; before it, a switch for each
    if named is None:
        switches = {key: is_on for key, is_on in config.items() if key.startswith(_SWITCH) and is_on is True}
        named = [key.removeprefix(_SWITCH) for key in switches]
    modes = [named] if isinstance(named, str) else list(named) if isinstance(named, list) else []
    known = {**_MODES, "cls_token": _MODES["cls"], "mean_tokens": _MODES["mean"]}
    return known.get(modes[0]) if len(modes) == 1 and isinstance(modes[0], str) else None


def _read(source: ModelSource, name: str) -> Any:
    """Return the content of a JSON file of a model; None if there is none, here or on the Hub."""
    try:
        path = (
            Path(source.name_or_path, name)
            if source.is_folder
            else Path(hf_hub_download(source.name_or_path, name, **where_from(source)))
        )
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, HUB_ERROR):
        return None


__all__ = ["resolve_encoding", "resolve_pooling", "sentence_pooling"]
