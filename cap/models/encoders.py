"""Load encoders with a task head, and read the pooled vector off them in the same forward pass."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from cap.base.errors import InputError
from cap.base.files import content_key, file_sha256
from cap.base.kinds import Head, Kind
from cap.base.network import hub_is_reachable
from cap.models.families import encoder_layers

Pooling = Literal["pooler", "first_token", "mean"]
_CALL_OPTIONS = ("truncation", "padding")
_MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# What a configuration says about names, versions and the task head's labels, and not about what is computed.
_ONLY_NAMES = {
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
    "transformers_version",
}
_AUTO_CLASSES: dict[Kind, Any] = {
    "classes": AutoModelForSequenceClassification,
    "number": AutoModelForSequenceClassification,
    "span": AutoModelForQuestionAnswering,
}
AUTO_CLASS: dict[Kind, str] = {kind: chosen.__name__ for kind, chosen in _AUTO_CLASSES.items()}
"""Name of the transformers class that loads a saved model, by what it answers."""


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


class EncoderOutput(NamedTuple):
    """Hold what one forward pass gives: the head's logits and the pooled vector before normalisation.

    Logits are (batch, outputs); those of a span are (batch, tokens, 2), start and end. Hidden states are the outputs of
    the encoder layers, in order; there are none unless they were asked for.
    """

    logits: Float[Tensor, "batch ..."]
    pooled: Float[Tensor, "batch dim"]
    hidden: tuple[Float[Tensor, "batch tokens dim"], ...] = ()


class PooledModel(nn.Module):
    """Run a stock model with a task head and keep its pooled vector.

    Args:
        model: A transformers model for sequence classification or question answering; it is not changed.
        pooling: ``pooler`` is the base model's pooler output, ``first_token`` the first token's last hidden state,
            ``mean`` the mean of the last hidden states over real tokens.
    """

    def __init__(self, model: PreTrainedModel, pooling: Pooling) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling

    def forward(self, batch: Mapping[str, Tensor], *, with_hidden: bool = False) -> EncoderOutput:
        """Compute logits and pooled vectors, and the hidden states of every encoder layer where they are wanted.

        Keys that are no model input are ignored.
        """
        inputs = {name: batch[name] for name in _MODEL_INPUTS if name in batch}
        layers = encoder_layers(self.model).values() if with_hidden else ()
        # One pass gives all: every stock classifier runs its base model and then its head, in its own way.
        with _outputs_of([self.model.base_model]) as base, _outputs_of(layers) as hidden:
            output = self.model(**inputs)
        is_span = "start_logits" in output
        logits = torch.stack([output.start_logits, output.end_logits], dim=-1) if is_span else output.logits
        # A layer gives its hidden states alone in some families, and with its attention in others.
        states = tuple(given[0] if isinstance(given, tuple) else given for given in hidden)
        return EncoderOutput(logits, self._pool(base[0], inputs["attention_mask"]), states)

    def _pool(self, base_output: Any, attention_mask: Tensor) -> Tensor:
        if self.pooling == "pooler":
            pooled: Tensor = base_output.pooler_output
            return pooled
        hidden: Tensor = base_output.last_hidden_state  # (batch, tokens, dim)
        if self.pooling == "first_token":
            return hidden[:, 0]
        return mean_over_tokens(hidden, attention_mask)

    def head_dropout(self) -> float:
        """Return the dropout probability of the task head, as the published code applies it to anchors."""
        config = self.model.config
        for name in ("classifier_dropout", "seq_classif_dropout", "hidden_dropout_prob"):
            value = getattr(config, name, None)
            if value is not None:
                return float(value)
        return 0.0


@contextmanager
def _outputs_of(modules: Iterable[nn.Module]) -> Iterator[list[Any]]:
    """Collect what modules give in the block, in the order in which they run."""
    given: list[Any] = []
    hooks = [module.register_forward_hook(lambda _, args, output: given.append(output)) for module in modules]
    try:
        yield given
    finally:
        for hook in hooks:
            hook.remove()


def mean_over_tokens(
    hidden: Float[Tensor, "batch tokens dim"], attention_mask: Int64[Tensor, "batch tokens"]
) -> Float[Tensor, "batch dim"]:
    """Average hidden states over real tokens."""
    real = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (batch, tokens, 1)
    return (hidden * real).sum(dim=1) / real.sum(dim=1)


def normalise(pooled: Float[Tensor, "*rows dim"]) -> Float[Tensor, "*rows dim"]:
    """Scale pooled vectors to length 1 in float32: the encoding."""
    return functional.normalize(pooled.float(), dim=-1)


def resolve_source(
    name_or_path: str | None, *, package: str | None, sha256: str | None, revision: str | None
) -> ModelSource:
    """Turn the ``model`` node of the configuration into a source, and check its weights.

    Args:
        name_or_path: A folder or Hub name; wins over ``package``.
        package: An installed Python package with ``get_model_path()`` that carries the model.
        sha256: Expected hash of ``model.safetensors``; None checks nothing.
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
    if sha256 is not None:
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


@dataclass(frozen=True)
class LoadedModel:
    """Hold a model, whether its pooler was trained, and which weights are not from the checkpoint but drawn.

    A pooler was trained if its weights came from the checkpoint and its bias is not all zero, as where it begins.
    """

    model: PreTrainedModel
    has_trained_pooler: bool
    drawn: tuple[str, ...]


def load_model(source: ModelSource, *, head: Head) -> LoadedModel:
    """Load a model with a task head in float32; head weights that the checkpoint lacks come from the global seed.

    Args:
        source: Where from.
        head: What the task asks of it.

    Raises:
        InputError: If the model is neither a folder nor on the Hub or in its cache, or takes no such head.
    """
    options: dict[str, Any] = {"num_labels": head.n_outputs}
    if head.kind != "span":
        options["problem_type"] = "single_label_classification" if head.kind == "classes" else "regression"
    if head.labels:
        options["id2label"] = dict(enumerate(head.labels))
        options["label2id"] = {label: i for i, label in enumerate(head.labels)}
    with _errors_of(source), quiet_transformers():
        model, info = _AUTO_CLASSES[head.kind].from_pretrained(
            source.name_or_path,
            **where_from(source),
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    # A head of another width is replaced by a fresh one; anything else that does not fit is a broken folder.
    prefix = f"{model.base_model_prefix}."
    mismatches = [key for key in info["mismatched_keys"] if key[0].startswith(prefix)]
    if mismatches:
        shapes = "; ".join(f"{name} {tuple(found)} for {tuple(wanted)}" for name, found, wanted in mismatches)
        raise InputError(f"the weights of {source.label} must have the shapes that its config.json says, got {shapes}")
    missing = {*info["missing_keys"], *(key[0] for key in info["mismatched_keys"])}
    is_drawn = any("pooler" in key for key in missing)
    has_learned = any(
        "pooler" in name and name.endswith("bias") and bool(parameter.any())
        for name, parameter in model.base_model.named_parameters()
    )
    return LoadedModel(model, has_learned and not is_drawn, tuple(sorted(missing)))


def load_saved_model(folder: Path, kind: Kind) -> PreTrainedModel:
    """Load a saved model with its head in float32, with stock transformers."""
    with quiet_transformers():
        model: PreTrainedModel = _AUTO_CLASSES[kind].from_pretrained(folder, dtype=torch.float32)
    return model


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that stock transformers loads: configuration, safetensors, tokenizer."""
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def load_config(source: ModelSource) -> Any:
    """Read a model's configuration without its weights.

    Raises:
        InputError: If the model is neither a folder nor on the Hub or in its cache.
    """
    with _errors_of(source):
        return AutoConfig.from_pretrained(source.name_or_path, **where_from(source))


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load the fast tokenizer that belongs to a model.

    Raises:
        InputError: If it is neither a folder nor on the Hub or in its cache.
    """
    with _errors_of(source):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source.name_or_path, **where_from(source))
    return tokenizer


def tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    """Name a tokenizer by what it does: its vocabulary, special tokens and options."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: Any = sorted(tokenizer.get_vocab().items())
    if backend is not None:
        # Truncation and padding are what the last call asked for, not what the tokenizer is.
        rules = {name: rule for name, rule in json.loads(backend.to_str()).items() if name not in _CALL_OPTIONS}
    special = sorted(map(str, tokenizer.all_special_tokens))
    # Of a row that is too long one end is cut; token types are kept where a model reads them.
    options = [tokenizer.truncation_side, tokenizer.model_input_names]
    return content_key([type(tokenizer).__name__, rules, special, *options])


def weights_key(model: nn.Module) -> str:
    """Name a model by its weights: the same for the same bits, whatever file they came from."""
    return tensors_key(model.state_dict())


def tensors_key(tensors: Mapping[str, Tensor]) -> str:
    """Name some tensors by their names and bits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def model_key(model: nn.Module) -> str:
    """Name a model by what it computes: its weights, and what its configuration says about them.

    The same weights give other outputs with another activation, number of heads or epsilon, and learn otherwise with
    another dropout.
    """
    described: Any = model.config  # of any stock model, with its task head or without
    config = json.loads(described.to_json_string(use_diff=False))
    return content_key([weights_key(model), {name: value for name, value in config.items() if name not in _ONLY_NAMES}])


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in eval mode without gradients for the block, then restore the mode of every part.

    ``no_grad``, not ``inference_mode``: tensors made under the latter cannot be saved for a later backward pass.
    """
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def _errors_of(source: ModelSource) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if source.is_folder:
            raise InputError(
                f"the {source.role} must be a whole folder saved by transformers, got {source.label!r} ({reason}); "
                f"save it again with save_pretrained, or give another"
            ) from error
        raise InputError(
            f"the {source.role} must be a folder saved by transformers, or a Hub name that can be downloaded or is in "
            f"the Hub cache, got {source.label!r} ({reason}). Either give a FOLDER, or run "
            f"`hf download {source.label}` once where there is a network, and take the folder HF_HOME along"
        ) from error


def where_from(source: ModelSource) -> dict[str, Any]:
    """Return what the Hub's libraries need beside a model's name; nothing for a folder."""
    if source.is_folder:
        return {}
    return {"revision": source.revision or "main", "local_files_only": not hub_is_reachable()}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' progress bars and reports of weights off the screen for the block.

    A fresh task head is what this program wants: a report of "newly initialized" weights would alarm.
    """
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        transformers_logging.enable_progress_bar()


__all__ = [
    "AUTO_CLASS",
    "EncoderOutput",
    "LoadedModel",
    "ModelSource",
    "PooledModel",
    "Pooling",
    "evaluating",
    "load_config",
    "load_model",
    "load_saved_model",
    "load_tokenizer",
    "mean_over_tokens",
    "model_key",
    "normalise",
    "quiet_transformers",
    "resolve_source",
    "save_model",
    "tensors_key",
    "tokenizer_key",
    "weights_key",
    "where_from",
]
