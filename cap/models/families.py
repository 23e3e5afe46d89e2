"""Where each encoder family keeps the matrices that are pruned, and which of their rows and columns belong together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from cap.base.errors import InputError, nearest_first
from cap.base.parts import Part


@dataclass(frozen=True, kw_only=True)
class Family:
    """Describe one encoder family of transformers.

    Args:
        layers: Path of the list of encoder layers, seen from the base model.
        attention_in: Paths of query, key and value, seen from one encoder layer; a head is a block of their rows.
        attention_out: Path of the attention output; the same head is a block of its columns.
        ffn_in: Path of the first FFN matrix; a unit is one of its rows.
        ffn_out: Path of the second FFN matrix; the same unit is one of its columns.
        embeddings: Paths of all that is looked up by token, type or position, absolute or relative, with the LayerNorm
            and the projection behind it, seen from the base model; what a model lacks is passed over.
        positions_follow_padding: True if position numbers start behind the padding index, so that a model reads that
            many tokens fewer than ``max_position_embeddings`` says.
        has_removable_heads: True if the attention infers its number of heads from the shapes of its matrices, so that
            the stock module computes the same without its dead heads.
    """

    layers: str = "encoder.layer"
    attention_in: tuple[str, str, str]
    attention_out: str = "attention.output.dense"
    ffn_in: str = "intermediate.dense"
    ffn_out: str = "output.dense"
    embeddings: tuple[str, ...] = ("embeddings",)
    positions_follow_padding: bool = False
    has_removable_heads: bool = True


_BERT_ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value")

# Keyed by transformers' own `config.model_type`.
FAMILIES: dict[str, Family] = {
    "bert": Family(attention_in=_BERT_ATTENTION),
    "roberta": Family(attention_in=_BERT_ATTENTION, positions_follow_padding=True),
    # Small ones have narrow embeddings, and a projection to the width of the layers.
    "electra": Family(attention_in=_BERT_ATTENTION, embeddings=("embeddings", "embeddings_project")),
    "distilbert": Family(
        layers="transformer.layer",
        attention_in=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_out="attention.out_lin",
        ffn_in="ffn.lin1",
        ffn_out="ffn.lin2",
    ),
    "mpnet": Family(
        attention_in=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        attention_out="attention.attn.o",
        embeddings=("embeddings", "encoder.relative_attention_bias"),
        positions_follow_padding=True,
        has_removable_heads=False,  # the bias of relative positions is shared by all layers, one value a head
    ),
    # Without share_att_key it also has projections of relative positions, which are kept and not counted.
    "deberta-v2": Family(
        attention_in=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        # The LayerNorm of the encoder is that of the relative positions.
        embeddings=("embeddings", "encoder.rel_embeddings", "encoder.LayerNorm"),
        has_removable_heads=False,  # it would split fewer rows into as many, smaller heads
    ),
}


def family_of(model_type: str) -> Family:
    """Look up a family by transformers' ``config.model_type``.

    Raises:
        InputError: If the family is not known; the message lists those that are, and shows the row to add.
    """
    if model_type not in FAMILIES:
        known = ", ".join(nearest_first(model_type, FAMILIES))
        raise InputError(
            f"model must be of a family whose heads and matrices are known ({known}), got {model_type!r}; choose such "
            f"a model, or add a row to FAMILIES in cap/models/families.py with the paths of its linear layers, as in\n"
            f'    "{model_type}": Family(\n'
            f'        layers="encoder.layer",\n'
            f'        attention_in=("attention.self.query", "attention.self.key", "attention.self.value"),\n'
            f'        attention_out="attention.output.dense",\n'
            f'        ffn_in="intermediate.dense",\n'
            f'        ffn_out="output.dense",\n'
            f"    ),"
        )
    return FAMILIES[model_type]


def longest_input(config: PretrainedConfig) -> int | None:
    """Return how many tokens a model of a known family can read; None if its configuration sets no limit."""
    longest: int | None = getattr(config, "max_position_embeddings", None)
    if longest is not None and family_of(config.model_type).positions_follow_padding:
        longest -= int(config.pad_token_id) + 1
    return longest


@dataclass(frozen=True)
class Units:
    """Hold the units of one kind in one layer: the attention heads, or the FFN units.

    Args:
        n: How many units.
        size: Rows of each incoming matrix, and columns of the outgoing one, that one unit takes.
        incoming: Matrices whose rows, with their biases, belong to the units.
        outgoing: The matrix whose columns belong to them.
    """

    n: int
    size: int
    incoming: tuple[nn.Linear, ...]
    outgoing: nn.Linear

    @property
    def weights_per_unit(self) -> int:
        """Count the prunable weights that go with one unit."""
        n_columns = sum(linear.in_features for linear in self.incoming)
        return self.size * (n_columns + self.outgoing.out_features)


@dataclass(frozen=True)
class Prunable:
    """Name everything in a model that can be pruned.

    Args:
        linears: Linear layers whose 2-D weights are prunable, by their dotted name in the model, layer by layer; this
            set is the denominator of every sparsity.
        heads: The attention heads of each encoder layer, in order, by the layer's name.
        ffn: The FFN units of each encoder layer.
    """

    linears: dict[str, nn.Linear]
    heads: dict[str, Units] = field(default_factory=dict)
    ffn: dict[str, Units] = field(default_factory=dict)


def base_path(model: PreTrainedModel) -> str:
    """Return what the names in a model's base model begin with: its prefix and a dot, nothing in a bare model."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def encoder_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Name the encoder layers of a model, with a task head or bare, in order.

    Returns:
        Layer modules by their dotted name in ``model``.
    """
    path = f"{base_path(model)}{family_of(model.config.model_type).layers}"
    return {f"{path}.{name}": layer for name, layer in model.get_submodule(path).named_children()}


def prunable(model: PreTrainedModel) -> Prunable:
    """Find what can be pruned: the linear layers inside the encoder layers.

    Prunable are query, key, value, attention output, FFN in and out; embeddings, LayerNorm, pooler, task head and
    every bias are not.
    """
    family = family_of(model.config.model_type)
    found = Prunable({})
    for layer_name, layer in encoder_layers(model).items():
        query, key, value = (_linear(layer, layer_name, path) for path in family.attention_in)
        output = _linear(layer, layer_name, family.attention_out)
        ffn_in, ffn_out = (_linear(layer, layer_name, path) for path in (family.ffn_in, family.ffn_out))
        paths = (*family.attention_in, family.attention_out, family.ffn_in, family.ffn_out)
        for path, linear in zip(paths, (query, key, value, output, ffn_in, ffn_out), strict=True):
            found.linears[f"{layer_name}.{path}"] = linear
        # The configuration keeps the dense model's number of heads when a layer has fewer: their size is what holds.
        head_size = int(model.config.hidden_size) // int(model.config.num_attention_heads)
        found.heads[layer_name] = Units(output.in_features // head_size, head_size, (query, key, value), output)
        found.ffn[layer_name] = Units(ffn_out.in_features, 1, (ffn_in,), ffn_out)
    return found


def prunable_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Name the linear layers whose 2-D weights are prunable, see ``prunable``."""
    return prunable(model).linears


def parameters_of(model: PreTrainedModel, parts: Iterable[Part]) -> list[str]:
    """Name the parameters of some parts of a model, with a task head or bare, in the model's order.

    Args:
        model: BERT has its pooler in the base model, DeBERTa beside it, the heads of other families need none. The task
            head is everything else outside the base model.
        parts: Which parts; one that the model lacks adds nothing.
    """
    base, wanted = base_path(model), set(parts)
    embeddings = tuple(f"{base}{path}." for path in family_of(model.config.model_type).embeddings)

    def part_of(name: str) -> Part | None:
        if name.startswith(embeddings):
            return "embeddings"
        if name.removeprefix(base).startswith("pooler."):
            return "pooler"
        return None if name.startswith(base) else "head"

    return [name for name, _ in model.named_parameters() if part_of(name) in wanted]


def _linear(layer: nn.Module, layer_name: str, path: str) -> nn.Linear:
    module = layer.get_submodule(path)
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{layer_name}.{path} must be a linear layer to be pruned, got {type(module).__name__}")
    return module


__all__ = [
    "FAMILIES",
    "Family",
    "Prunable",
    "Units",
    "base_path",
    "encoder_layers",
    "family_of",
    "longest_input",
    "parameters_of",
    "prunable",
    "prunable_linears",
]
