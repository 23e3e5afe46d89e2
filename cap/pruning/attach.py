"""Put masks on a model of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from cap.base.errors import InputError
from cap.models.families import FAMILIES, Prunable, prunable
from cap.pruning.parameters import kept_parameters, require_full_precision
from cap.pruning.pruner import Pruner
from cap.pruning.structured import Structured

AnyPruner = TypeVar("AnyPruner", bound=Pruner)
_ALL = (
    "name them: linears={name: module for name, module in model.named_modules() if type(module) is nn.Linear}, "
    "without what shall stay dense"
)


def attach(
    model: nn.Module, pruner: AnyPruner, *, linears: Mapping[str, nn.Linear] | None = None, seed: int = 0
) -> AnyPruner:
    """Put a pruner's masks on a model; everything is kept at first, with ``cap.KeepZeros`` what is not zero.

    Nothing is frozen, but by ``cap.StaticScores``: the encoder layers, of ``linears`` the weights of these alone.

    Attach before the optimizer is made: scores are parameters of the model. The model's weights are then called
    ``….parametrizations.weight.original``, until ``pruner.fold()`` makes it a stock model again.

    Args:
        model: A transformers encoder of a known family, with a task head or bare; with ``linears`` any module.
        pruner: ``cap.Magnitude``, ``cap.Movement``, ``cap.SoftMovement``, ``cap.FirstOrder``, ``cap.SecondOrder``,
            ``cap.Platon``, ``cap.Admm``, ``cap.StaticScores``, ``cap.Random``, ``cap.KeepZeros``, ``cap.Structured`` or
            ``cap.Layers``; one object a model.
        linears: What to prune, by dotted name in the model; None takes the linear layers inside the encoder layers.
        seed: For what is drawn at random.

    Returns:
        The pruner.

    Raises:
        InputError: If the family is not known, what is named cannot be pruned, or masks are on already.
        ValueError: If the model cannot meet the pruner's target.
    """
    if not isinstance(pruner, Pruner):
        given = f"the class {pruner.__name__}" if isinstance(pruner, type) else repr(pruner)
        raise InputError(f"pruner must be an object such as cap.Magnitude(), got {given}")
    if pruner.masks:
        raise InputError(
            f"a pruner is for one model, got a {type(pruner).__name__} that was attached before; make another one: it "
            f"knows what it has pruned of the first"
        )
    if linears is not None:
        _require_stock(linears)
    found = _family_linears(model) if linears is None else _named_linears(model, pruner, linears)
    _require_stock(found.linears)
    require_full_precision({name: linear.weight for name, linear in found.linears.items()})
    pruner.attach(found, seed=seed)
    if linears is None and isinstance(model, PreTrainedModel):
        for name in kept_parameters(model, pruner):
            model.get_parameter(name).requires_grad_(False)
    return pruner


def _require_stock(linears: Mapping[str, nn.Linear]) -> None:
    if not isinstance(linears, Mapping):
        raise InputError(
            f"linears must map names in the model to its nn.Linear modules, got a {type(linears).__name__}; {_ALL}"
        )
    masked = [name for name, linear in linears.items() if parametrize.is_parametrized(linear, "weight")]
    if masked:
        raise InputError(
            f"masks go on stock linear layers, but {len(masked)} of {len(linears)} have a parametrization "
            f"already, {masked[0]} first; fold the pruner before, or load the model again"
        )


def _family_linears(model: nn.Module) -> Prunable:
    if not isinstance(model, PreTrainedModel) or model.config.model_type not in FAMILIES:
        name = model.config.model_type if isinstance(model, PreTrainedModel) else type(model).__name__
        raise InputError(
            f"cap.attach finds the matrices of transformers' encoders ({', '.join(FAMILIES)}), got {name}; {_ALL}"
        )
    return prunable(model)


def _named_linears(model: nn.Module, pruner: Pruner, linears: Mapping[str, nn.Linear]) -> Prunable:
    if isinstance(pruner, Structured):
        raise InputError(
            f"{type(pruner).__name__} prunes heads and FFN units, which are known of transformers' encoders "
            f"({', '.join(FAMILIES)}), got linears; leave them out, or use a pruner of single weights"
        )
    modules = dict(model.named_modules())
    # Other classes use their weight in ways of their own: Conv1D of GPT-2 transposes it, torch's attention reads it
    # past the module.
    wrong = [name for name, linear in linears.items() if type(linear) is not nn.Linear or modules.get(name) != linear]
    if wrong or not linears:
        found = [f"{name} ({type(linears[name]).__name__})" for name in wrong]
        raise InputError(
            f"linears must map names in the model to its nn.Linear modules, got {', '.join(found) or 'none'}; {_ALL}"
        )
    holders: dict[int, list[str]] = {}
    for path, module in modules.items():
        for key, parameter in module.named_parameters(prefix=path, recurse=False):
            holders.setdefault(id(parameter), []).append(key)
    shared = {name: others for name, linear in linears.items() if len(others := holders[id(linear.weight)]) > 1}
    if shared:
        name, others = next(iter(shared.items()))
        raise InputError(
            f"linears must have weights of their own, since zeros in a shared one would reach the other module, too: "
            f"that of {name} is {' and '.join(others)}; leave {', '.join(shared)} out"
        )
    return Prunable(dict(linears))


__all__ = ["attach"]
