"""Where each encoder family keeps the matrices that are pruned, and which of their rows and columns belong together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Bool
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from cap.base.errors import InputError, nearest_first
from cap.base.parts import Part

AnyPart = Part | Literal["encoder"]
"""A part of a model; the encoder is what is neither embeddings, pooler nor head: the layers, and a norm behind them."""
MatrixKind = Literal["query", "key", "value", "attention output", "FFN in", "FFN gate", "FFN out"]
_ATTENTION_IN: tuple[MatrixKind, ...] = ("query", "key", "value")


@dataclass(frozen=True, kw_only=True)
class Family:
    """Describe one encoder family of transformers.

    Args:
        layers: Path of the list of encoder layers, seen from the base model.
        attention_in: Paths of query, key and value, seen from one encoder layer, or that of the one linear layer that
            holds all three, one below the other; a head is a block of the rows of each.
        attention_out: Path of the attention output; the same head is a block of its columns.
        ffn_in: Paths of what comes first in the FFN, or that of the one linear layer that holds it; a unit is one row
            of each.
        ffn_kinds: What ``ffn_in`` is, in its order. The first is what the activation is applied to. A gated FFN has a
            second, which the activation is multiplied with; each family calls the one or the other its gate.
        ffn_out: Path of the last FFN matrix; the same unit is one of its columns.
        activation: What the configuration calls the activation of the FFN.
        embeddings: Paths of all that is looked up by token, type or position, absolute or relative, with the LayerNorm
            and the projection behind it, seen from the base model; what a model lacks is passed over.
        positions_follow_padding: True if position numbers start behind the padding index, so that a model reads that
            many tokens fewer than ``max_position_embeddings`` says.
        has_removable_heads: True if the attention infers its number of heads from the shapes of its matrices, so that
            the stock module computes the same without its dead heads.
        has_own_first_layer: True if the first layer computes what no other one does, so that none can take its place.
        layers_give_tuples: True if a layer gives its hidden states with its attention, and not alone.
        per_layer: Keys of the configuration that list a value for every layer.
    """

    layers: str = "encoder.layer"
    attention_in: tuple[str, ...]
    attention_out: str = "attention.output.dense"
    ffn_in: tuple[str, ...] = ("intermediate.dense",)
    ffn_kinds: tuple[MatrixKind, ...] = ("FFN in",)
    ffn_out: str = "output.dense"
    activation: str = "hidden_act"
    embeddings: tuple[str, ...] = ("embeddings",)
    positions_follow_padding: bool = False
    has_removable_heads: bool = True
    has_own_first_layer: bool = False
    layers_give_tuples: bool = False
    per_layer: tuple[str, ...] = ()

    @property
    def held(self) -> dict[str, tuple[MatrixKind, ...]]:
        """Say what the linear layers of one encoder layer hold, by their paths, in the order of their use."""
        return {
            **_held(self.attention_in, _ATTENTION_IN),
            self.attention_out: ("attention output",),
            **_held(self.ffn_in, self.ffn_kinds),
            self.ffn_out: ("FFN out",),
        }


def _held(paths: tuple[str, ...], kinds: tuple[MatrixKind, ...]) -> dict[str, tuple[MatrixKind, ...]]:
    if len(paths) == 1:
        return {paths[0]: kinds}
    return {path: (kind,) for path, kind in zip(paths, kinds, strict=True)}


_BERT_ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value")

_ROBERTA = Family(attention_in=_BERT_ATTENTION, positions_follow_padding=True)

# Keyed by transformers' own `config.model_type`.
FAMILIES: dict[str, Family] = {
    "bert": Family(attention_in=_BERT_ATTENTION),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "camembert": _ROBERTA,
    # Small ones have narrow embeddings, and a projection to the width of the layers.
    "electra": Family(attention_in=_BERT_ATTENTION, embeddings=("embeddings", "embeddings_project")),
    "distilbert": Family(
        layers="transformer.layer",
        attention_in=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_out="attention.out_lin",
        ffn_in=("ffn.lin1",),
        ffn_out="ffn.lin2",
        activation="activation",
    ),
    "mpnet": Family(
        attention_in=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        attention_out="attention.attn.o",
        embeddings=("embeddings", "encoder.relative_attention_bias"),
        positions_follow_padding=True,
        has_removable_heads=False,  # the bias of relative positions is shared by all layers, one value a head
        layers_give_tuples=True,
    ),
    # Without share_att_key it also has projections of relative positions, which are kept and not counted.
    "deberta-v2": Family(
        attention_in=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        # The LayerNorm of the encoder is that of the relative positions.
        embeddings=("embeddings", "encoder.rel_embeddings", "encoder.LayerNorm"),
        has_removable_heads=False,  # it would split fewer rows into as many, smaller heads
        has_own_first_layer=True,  # a convolution behind it, where the configuration has one
        layers_give_tuples=True,
    ),
    "modernbert": Family(
        layers="layers",
        attention_in=("attn.Wqkv",),
        attention_out="attn.Wo",
        ffn_in=("mlp.Wi",),
        ffn_kinds=("FFN in", "FFN gate"),
        ffn_out="mlp.Wo",
        activation="hidden_activation",
        has_own_first_layer=True,  # it has no norm before its attention
        per_layer=("layer_types",),
    ),
    # Its checkpoints hold query, key and value, and the two first FFN matrices, in one; transformers takes them apart.
    "gte": Family(
        layers="layers",
        attention_in=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        attention_out="self_attn.o_proj",
        ffn_in=("mlp.gate_proj", "mlp.up_proj"),
        ffn_kinds=("FFN gate", "FFN in"),
        ffn_out="mlp.down_proj",
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
            f"a model, or add a row to FAMILIES in cap/models/families.py with the paths of its linear layers (one for "
            f"query, key and value where one layer holds all three, as in modernbert's row), as in\n"
            f'    "{model_type}": Family(\n'
            f'        layers="encoder.layer",\n'
            f'        attention_in=("attention.self.query", "attention.self.key", "attention.self.value"),\n'
            f'        attention_out="attention.output.dense",\n'
            f'        ffn_in=("intermediate.dense",),\n'
            f'        ffn_kinds=("FFN in",),  # of a gated FFN "FFN in", "FFN gate", the activated one first\n'
            f'        ffn_out="output.dense",\n'
            f'        activation="hidden_act",\n'
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
        incoming: Linear layers whose rows, with their biases, belong to the units: ``n * size`` of each matrix in them.
        outgoing: The linear layer whose columns belong to them.
    """

    n: int
    size: int
    incoming: tuple[nn.Linear, ...]
    outgoing: nn.Linear

    @property
    def weights_per_unit(self) -> int:
        """Count the prunable weights that go with one unit."""
        linears = (*self.incoming, self.outgoing)
        return sum(linear.in_features * linear.out_features for linear in linears) // self.n

    def columns(self, which: Bool[Tensor, " units"]) -> Bool[Tensor, " columns"]:
        """Say which columns of the outgoing layer belong to some of the units."""
        return which.repeat_interleave(self.size)

    def rows(self, which: Bool[Tensor, " units"], linear: nn.Linear) -> Bool[Tensor, " rows"]:
        """Say which rows of an incoming layer, of every matrix in it, belong to some of the units."""
        own = self.columns(which)
        return own.repeat(linear.out_features // len(own))


@dataclass(frozen=True)
class Matrix:
    """Say where a prunable matrix lies: in all rows of a linear layer, or in one of equal parts of them.

    Args:
        linear: Name of the linear layer.
        kind: What it is; None where no family says so.
        part: Number of the part, from above.
        n_parts: How many there are.
    """

    linear: str
    kind: MatrixKind | None
    part: int
    n_parts: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return this matrix's rows of what belongs to the linear layer: a view."""
        return tensor.chunk(self.n_parts)[self.part]


@dataclass(frozen=True)
class Stack:
    """Hold the encoder layers of a model, which run one after the other.

    Args:
        path: Dotted name of the list in the model; a layer's own is ``path.0`` and so on.
        layers: The list.
        config: The model's.
    """

    path: str
    layers: nn.ModuleList
    config: PretrainedConfig

    @property
    def family(self) -> Family:
        """The family that the layers are of."""
        return family_of(self.config.model_type)


@dataclass(frozen=True)
class Prunable:
    """Name everything in a model that can be pruned.

    Args:
        linears: Linear layers whose 2-D weights are prunable, by their dotted name in the model, layer by layer; this
            set is the denominator of every sparsity.
        heads: The attention heads of each encoder layer, in order, by the layer's name.
        ffn: The FFN units of each encoder layer.
        held: Which matrices a linear layer holds, one below the other and equally high, by its name; a layer that is
            not in here is one matrix, of no kind.
        stack: The encoder layers themselves; None where only linear layers are known.
    """

    linears: dict[str, nn.Linear]
    heads: dict[str, Units] = field(default_factory=dict)
    ffn: dict[str, Units] = field(default_factory=dict)
    held: dict[str, tuple[MatrixKind, ...]] = field(default_factory=dict)
    stack: Stack | None = None

    @property
    def matrices(self) -> dict[str, Matrix]:
        """Name the matrices in the order of the linear layers.

        A linear layer that is one matrix gives it its own name; of one that holds several, such as ``attn.Wqkv``, each
        has the last word of its kind behind it: ``attn.Wqkv.query``.
        """
        found: dict[str, Matrix] = {}
        for name in self.linears:
            kinds = self.held.get(name, (None,))
            for part, kind in enumerate(kinds):
                suffix = f".{str(kind).split()[-1]}" if len(kinds) > 1 else ""
                found[name + suffix] = Matrix(name, kind, part, len(kinds))
        return found


def base_path(model: PreTrainedModel) -> str:
    """Return what the names in a model's base model begin with: its prefix and a dot, nothing in a bare model."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def encoder_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Name the encoder layers of a model, with a task head or bare, in order.

    Returns:
        Layer modules by their dotted name in ``model``.
    """
    stack = encoder_stack(model)
    return {f"{stack.path}.{name}": layer for name, layer in stack.layers.named_children()}


def encoder_stack(model: PreTrainedModel) -> Stack:
    """Find the list of a model's encoder layers, see ``encoder_layers``.

    Raises:
        TypeError: If the family's path leads to something else.
    """
    path = f"{base_path(model)}{family_of(model.config.model_type).layers}"
    layers = model.get_submodule(path)
    if not isinstance(layers, nn.ModuleList):
        raise TypeError(f"{path} must be the list of encoder layers, got {type(layers).__name__}")
    return Stack(path, layers, model.config)


def prunable(model: PreTrainedModel) -> Prunable:
    """Find what can be pruned: the linear layers inside the encoder layers.

    Prunable are query, key, value, attention output, FFN in, gate (where there is one) and out; embeddings, LayerNorm,
    pooler, task head and every bias are not.
    """
    family = family_of(model.config.model_type)
    found = Prunable({}, stack=encoder_stack(model))
    for layer_name, layer in encoder_layers(model).items():
        linears = {path: _linear(layer, layer_name, path) for path in family.held}
        found.linears.update({f"{layer_name}.{path}": linear for path, linear in linears.items()})
        found.held.update({f"{layer_name}.{path}": kinds for path, kinds in family.held.items()})
        # The configuration keeps the dense model's number of heads when a layer has fewer: their size is what holds.
        head_size = int(model.config.hidden_size) // int(model.config.num_attention_heads)
        output, ffn_out = linears[family.attention_out], linears[family.ffn_out]
        attention_in, ffn_in = (
            tuple(linears[path] for path in paths) for paths in (family.attention_in, family.ffn_in)
        )
        found.heads[layer_name] = Units(output.in_features // head_size, head_size, attention_in, output)
        found.ffn[layer_name] = Units(ffn_out.in_features, 1, ffn_in, ffn_out)
    return found


def prunable_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Name the linear layers whose 2-D weights are prunable, see ``prunable``."""
    return prunable(model).linears


def parameters_of(model: PreTrainedModel, parts: Iterable[AnyPart]) -> list[str]:
    """Name the parameters of some parts of a model, with a task head or bare, in the model's order.

    Args:
        model: BERT has its pooler in the base model, DeBERTa beside it, the heads of other families need none. The task
            head is everything else outside the base model.
        parts: Which parts; one that the model lacks adds nothing.
    """
    base, wanted = base_path(model), set(parts)
    embeddings = tuple(f"{base}{path}." for path in family_of(model.config.model_type).embeddings)

    def part_of(name: str) -> AnyPart:
        if name.startswith(embeddings):
            return "embeddings"
        if name.removeprefix(base).startswith("pooler."):
            return "pooler"
        return "encoder" if name.startswith(base) else "head"

    return [name for name, _ in model.named_parameters() if part_of(name) in wanted]


def _linear(layer: nn.Module, layer_name: str, path: str) -> nn.Linear:
    module = layer.get_submodule(path)
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{layer_name}.{path} must be a linear layer to be pruned, got {type(module).__name__}")
    return module


__all__ = [
    "FAMILIES",
    "AnyPart",
    "Family",
    "Matrix",
    "MatrixKind",
    "Prunable",
    "Stack",
    "Units",
    "base_path",
    "encoder_layers",
    "encoder_stack",
    "family_of",
    "longest_input",
    "parameters_of",
    "prunable",
    "prunable_linears",
]
