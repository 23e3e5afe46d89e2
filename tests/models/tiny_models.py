"""Classifiers of every family, two layers deep, with weights from a seed."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertTokenizerFast,
    PreTrainedModel,
)

HIDDEN, INTERMEDIATE, LAYERS, VOCABULARY = 32, 64, 2, 30
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FAMILY_NAMES = ["bert", "roberta", "electra", "distilbert", "mpnet", "deberta-v2", "modernbert", "gte"]
SPAN_FAMILIES = [name for name in FAMILY_NAMES if name != "gte"]  # transformers has no such head for it
GATED = ["modernbert", "gte"]
# ModernBERT has none unless its configuration says so.
BIASES = {"modernbert": {"attention_bias": True, "mlp_bias": True}}

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": INTERMEDIATE,
    "max_position_embeddings": 40,
}
_DISTILBERT_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "dim": HIDDEN,
    "n_layers": LAYERS,
    "n_heads": 4,
    "hidden_dim": INTERMEDIATE,
    "max_position_embeddings": 40,
}
_MODERNBERT_NAMES = {"pad": "PAD", "bos": "CLS", "cls": "CLS", "sep": "SEP", "eos": "SEP"}
# Its own numbers of special tokens lie outside the vocabulary.
_MODERNBERT_TOKENS = {f"{name}_token_id": SPECIALS.index(f"[{token}]") for name, token in _MODERNBERT_NAMES.items()}
_EXTRA: dict[str, dict[str, Any]] = {
    "bert": _SIZES,
    "roberta": _SIZES,
    "xlm-roberta": _SIZES,
    "camembert": _SIZES,
    "electra": _SIZES | {"embedding_size": 16},
    "distilbert": _DISTILBERT_SIZES,
    "mpnet": _SIZES,
    "deberta-v2": _SIZES
    | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "position_buckets": 8},
    # Its second layer sees two tokens to either side.
    "modernbert": _SIZES | {"local_attention": 4} | _MODERNBERT_TOKENS,
    "gte": _SIZES | {"pad_token_id": 0},
}


def n_prunable(family: str = "bert") -> int:
    """Count the prunable weights of a tiny classifier."""
    n_ffn = 3 if family in GATED else 2
    return LAYERS * (4 * HIDDEN**2 + n_ffn * HIDDEN * INTERMEDIATE)


def in_layers(name: str) -> bool:
    """Say whether a parameter lies in an encoder layer, by its name."""
    return ".layer." in name or ".layers." in name


def tiny_classifier(family: str = "bert", *, seed: int = 0, **options: Any) -> PreTrainedModel:
    """Make a stock classifier in eval mode; biases and LayerNorm are random too, so that a change of them shows."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(_EXTRA[family] | options))
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def without_last_norm(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model without the norm behind its layers, where it has one: transformers puts it on the last state."""
    copied = copy.deepcopy(model)
    copied.base_model.final_norm = nn.Identity()
    return copied


def tiny_batch() -> dict[str, Tensor]:
    """Make three rows of 7, 4 and 1 real tokens."""
    ids = torch.randint(5, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(7) < torch.tensor([[7], [4], [1]])).long()
    return {"input_ids": ids, "attention_mask": mask}


def tiny_tokenizer(words: tuple[str, ...] = ("cat", "dog", "sat"), **options: Any) -> BertTokenizerFast:
    """Make a fast tokenizer with a vocabulary of its own."""
    return BertTokenizerFast(vocab={word: number for number, word in enumerate([*SPECIALS, *words])}, **options)
