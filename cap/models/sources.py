"""Where a model comes from, and what of it is read without its weights: configuration and tokenizer."""

from __future__ import annotations

import importlib
import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from cap.base.errors import InputError, first_line
from cap.base.files import content_key, file_sha256
from cap.base.network import hub_is_reachable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CALL_OPTIONS = ("truncation", "padding")


@dataclass(frozen=True)
class ModelSource:
    """Say where a model comes from, resolved to a folder or a Hub name.

    Args:
        name_or_path: A Hub name or a folder, as transformers takes it.
        label: How a record names it; never an absolute path.
        revision: The Hub's branch, tag or commit; None is the default branch.
        role: What a message calls it.
    """

    name_or_path: str
    label: str
    revision: str | None = None
    role: str = "model"

    @property
    def is_folder(self) -> bool:
        """True if the model lies in a folder of this machine."""
        return Path(self.name_or_path).is_dir()


def resolve_source(
    name_or_path: str | None, *, package: str | None, sha256: str | None, revision: str | None
) -> ModelSource:
    """Turn the ``model`` node of the configuration into a source, and check its weights.

    Args:
        name_or_path: A folder or Hub name; wins over ``package``.
        package: An installed Python package with ``get_model_path()`` that carries the model.
        sha256: Expected hash of ``model.safetensors``; None checks nothing. With a package it is that of its weights,
            and says nothing of a model that is named in its place.
        revision: The Hub's branch, tag or commit.

    Returns:
        The source, ready to load.

    Raises:
        InputError: If nothing is named, the package is missing, or the weights differ from ``sha256``.
    """
    if name_or_path is not None:
        folder = Path(name_or_path)
        label = f"folder {folder.name}" if folder.is_dir() else name_or_path
        source = ModelSource(str(name_or_path), label, revision)
    elif package is not None:
        try:
            module = importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f"this model comes with the Python package {package.replace('_', '-')}, which is not installed; "
                f"run `pip install {package.replace('_', '-')}` or give model.name_or_path=FOLDER"
            ) from error
        source = ModelSource(str(module.get_model_path()), f"package {package.replace('_', '-')}")
    else:
        raise InputError(
            "model.name_or_path must be a folder or a Hub name, got nothing; set it or choose model=bert_base"
        )
    if sha256 is not None and (name_or_path is None or package is None):
        _check_weights(Path(source.name_or_path), sha256)
    return source


def _check_weights(folder: Path, expected: str) -> None:
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise InputError(
            f"model.sha256 is set, so {weights.name} must lie in the model's folder, got {folder.name} without it; "
            f"set model.sha256=null to use other weights"
        )
    found = file_sha256(weights)
    if found != expected:
        raise InputError(
            f"the weights must have sha256 {expected}, got {found}: the file is damaged or another version; "
            f"install the model again, or set model.sha256=null to use these weights"
        )


def load_config(source: ModelSource) -> Any:
    """Read a model's configuration without its weights.

    Raises:
        InputError: If the model is neither a folder nor on the Hub or in its cache.
    """
    from transformers import AutoConfig  # takes seconds, and where a model lies is asked without it

    with errors_of(source):
        return AutoConfig.from_pretrained(source.name_or_path, **where_from(source))


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load the fast tokenizer that belongs to a model.

    Raises:
        InputError: If it is neither a folder nor on the Hub or in its cache, or has no tokenizer beside its weights.
    """
    from transformers import AutoTokenizer

    with errors_of(source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.name_or_path, **where_from(source))
    # Where its files are missing, transformers makes one of special pieces alone, to which every word is unknown.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise InputError(
            f"the {source.role} must come with its tokenizer, got {source.label} with one that knows no word; save it "
            f"beside the weights: AutoTokenizer.from_pretrained(WHAT_IT_WAS_MADE_FROM).save_pretrained(FOLDER)"
        )
    return tokenizer


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """Name a tokenizer by what it does: its vocabulary, special tokens and options."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = tokenizer.get_vocab()
    rules: Any = sorted(vocabulary.items())
    if backend is not None:
        # Truncation and padding are what the last call asked for, not what the tokenizer is.
        rules = {name: rule for name, rule in json.loads(backend.to_str()).items() if name not in _CALL_OPTIONS}
        if _share_numbers(vocabulary):
            # Of pieces that share a number, the rules name one by chance.
            rules["model"]["vocab"] = sorted(vocabulary.items())
    special = sorted(map(str, tokenizer.all_special_tokens))
    # Of a row that is too long one end is cut; token types are kept where a model reads them.
    options = [tokenizer.truncation_side, tokenizer.model_input_names]
    return content_key([type(tokenizer).__name__, rules, special, *options])


def require_numbers_of_their_own(tokenizer: PreTrainedTokenizerBase, label: str) -> None:
    """Check that a tokenizer can be saved: of pieces that share a number only one would be kept.

    Raises:
        InputError: If it cannot.
    """
    if _share_numbers(tokenizer.get_vocab()):
        raise InputError(
            f"pieces of the tokenizer must have numbers of their own, or saving it loses some, got {label} made with "
            f"vocabulary_rest=nearest; take the run's own model, or export it with vocabulary_rest=split"
        )


def _share_numbers(vocabulary: Mapping[str, int]) -> bool:
    return len(set(vocabulary.values())) < len(vocabulary)


def where_from(source: ModelSource) -> dict[str, Any]:
    """Return what the Hub's libraries need beside a model's name; nothing for a folder."""
    if source.is_folder:
        return {}
    return {"revision": source.revision or "main", "local_files_only": not hub_is_reachable()}


@contextmanager
def errors_of(source: ModelSource) -> Iterator[None]:
    """Turn what transformers says of a model that it cannot load into what is required and what to do.

    Raises:
        InputError: In place of errors of files, values, safetensors and pickles.
    """
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        is_pickle = isinstance(error, pickle.UnpicklingError | EOFError | RuntimeError)
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        # What torch says of a file that it cannot read advises to run whatever it holds.
        reason = "a file of weights that is damaged, or a pointer of git lfs" if is_pickle else first_line(error)
        if source.is_folder and (wanted := _missing_library(Path(source.name_or_path))):
            raise InputError(
                f"the {source.role} {source.label!r} has a tokenizer that only {wanted} reads; install it: "
                f"pip install {wanted} protobuf, or save a tokenizer.json beside it where that is installed: "
                f"AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            ) from error
        if source.is_folder:
            raise InputError(
                f"the {source.role} must be a whole folder saved by transformers, got {source.label!r} ({reason}); "
                f"save it again with save_pretrained, or give another"
            ) from error
        if _is_path(source.label):
            raise InputError(
                f"the {source.role} must be a folder saved by transformers, got {source.label!r}, where there is none; "
                f"correct the path, or give a Hub name"
            ) from error
        raise InputError(
            f"the {source.role} must be a folder saved by transformers, or a Hub name that can be downloaded or is in "
            f"the Hub cache, got {source.label!r} ({reason}). Either give a FOLDER, or run "
            f"`hf download {source.label}` once where there is a network, and take the folder HF_HOME along"
        ) from error


def _missing_library(folder: Path) -> str | None:
    """Name the library that a tokenizer without tokenizer.json needs; None if it is there, or needs none."""
    needs_one = any(folder.glob("*.model")) and not (folder / "tokenizer.json").is_file()
    return "sentencepiece" if needs_one and find_spec("sentencepiece") is None else None


def _is_path(name: str) -> bool:
    """Say whether a name can be none of the Hub's, which are NAME or OWNER/NAME."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name


__all__ = [
    "ModelSource",
    "errors_of",
    "load_config",
    "load_tokenizer",
    "require_numbers_of_their_own",
    "resolve_source",
    "tokenizer_key",
    "where_from",
]
