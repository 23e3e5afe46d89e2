"""The files by which sentence-transformers loads a saved encoder, in the form that all of its versions read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cap.base.files import write_json
from cap.models.pooled import Pooling

_MODULES = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
_SWITCHES = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")
_SWITCH_OF: dict[Pooling, str] = {"first_token": "cls_token", "mean": "mean_tokens"}


def write_sentence_files(folder: Path, *, pooling: Pooling, dim: int, max_length: int) -> None:
    """Write beside a saved encoder how its hidden states become the vector of a text.

    Args:
        folder: With configuration, weights and tokenizer.
        pooling: ``mean`` or ``first_token``; the vector is then scaled to length 1.
        dim: Entries of a vector.
        max_length: Tokens of a text that are read.

    Raises:
        KeyError: If vectors are pooled otherwise.
    """
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{name}"}
        for number, (path, name) in enumerate(_MODULES.items())
    ]
    switches = {f"pooling_mode_{name}": name == _SWITCH_OF[pooling] for name in _SWITCHES}
    files: dict[str, Any] = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {"similarity_fn_name": "cosine", "prompts": {}},
        "1_Pooling/config.json": {"word_embedding_dimension": dim, **switches},
    }
    for path in _MODULES:
        (folder / path).mkdir(exist_ok=True)
    for name, content in files.items():
        write_json(folder / name, content)


__all__ = ["write_sentence_files"]
