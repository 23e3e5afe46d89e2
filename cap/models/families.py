"""Where each encoder family keeps the matrices that are pruned."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from cap.errors import InputError, nearest_first


@dataclass(frozen=True, kw_only=True)
class Family:
    """Describe one encoder family of transformers.

    Args:
        layers: Path of the list of encoder layers, seen from the base model.
        matrices: Paths of the prunable linear layers, seen from one encoder layer.
    """

    layers: str
    matrices: tuple[str, ...]


_BERT = Family(
    layers="encoder.layer",
    matrices=(
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ),
)
_DISTILBERT = Family(
    layers="transformer.layer",
    matrices=(
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "ffn.lin1",
        "ffn.lin2",
    ),
)

# Keyed by transformers' own `config.model_type`.
FAMILIES: dict[str, Family] = {"bert": _BERT, "roberta": _BERT, "electra": _BERT, "distilbert": _DISTILBERT}


def family_of(model_type: str) -> Family:
    """Look up a family by transformers' ``config.model_type``.

    Raises:
        InputError: If the family is not known; the message lists those that are.
    """
    if model_type not in FAMILIES:
        known = ", ".join(nearest_first(model_type, FAMILIES))
        raise InputError(
            f"model must be of a family whose prunable matrices are known ({known}), "
            f"got {model_type!r}; choose such a model or add a row to FAMILIES in cap/models/families.py"
        )
    return FAMILIES[model_type]


def encoder_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Name the encoder layers of a model with a task head, in order.

    Returns:
        Layer modules by their dotted name in ``model``.
    """
    path = f"{model.base_model_prefix}.{family_of(model.config.model_type).layers}"
    return {f"{path}.{name}": layer for name, layer in model.get_submodule(path).named_children()}


def prunable_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Name the linear layers whose 2-D weights are prunable, layer by layer.

    Prunable are the linear layers inside the encoder layers (query, key, value, attention output, FFN in and out);
    embeddings, LayerNorm, pooler, task head and every bias are not.

    Returns:
        Linear modules by their dotted name in ``model``; this set is the denominator of every sparsity.
    """
    linears: dict[str, nn.Linear] = {}
    matrices = family_of(model.config.model_type).matrices
    for layer_name, layer in encoder_layers(model).items():
        for matrix in matrices:
            module = layer.get_submodule(matrix)
            if not isinstance(module, nn.Linear):
                raise TypeError(
                    f"{layer_name}.{matrix} must be a linear layer to be pruned, got {type(module).__name__}"
                )
            linears[f"{layer_name}.{matrix}"] = module
    return linears


__all__ = ["FAMILIES", "Family", "encoder_layers", "family_of", "prunable_linears"]
