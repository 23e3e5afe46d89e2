"""Leave encoder layers out while a model trains, take them out for good, and say afterwards what is gone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from transformers import PretrainedConfig, PreTrainedModel

from cap.base.errors import InputError
from cap.models.families import Stack, encoder_stack

REMOVED_KEY = "cap_layers"
_VERSION = 1
Value = TypeVar("Value")


class LayerGate:
    """Run an encoder layer, or hand its input on as it is and compute nothing: residuals, norms and biases included.

    It stands in the place of the layer's own ``forward``, so that hooks on the layer and names of its parameters stay.

    Args:
        layer: The layer; it runs at first.
        gives_tuple: Whether it gives its hidden states with its attention.
    """

    def __init__(self, layer: nn.Module, *, gives_tuple: bool) -> None:
        self.layer = layer
        self.gives_tuple = gives_tuple
        self.is_kept = True
        self._run = layer.forward
        layer.forward = self

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer gives, or its input in the same form."""
        if self.is_kept:
            return self._run(hidden_states, *args, **kwargs)
        states = self._with_zero_gradients(hidden_states)
        return (states, None) if self.gives_tuple else states

    @property
    def is_on(self) -> bool:
        """Whether it stands in the layer's place."""
        return vars(self.layer).get("forward") is self

    def remove(self) -> None:
        """Give the layer its own ``forward`` back."""
        del self.layer.forward

    def _with_zero_gradients(self, states: Tensor) -> Tensor:
        # Several processes wait for a gradient of every parameter; one process saves the work.
        if not (distributed.is_available() and distributed.is_initialized() and torch.is_grad_enabled()):
            return states
        given: Tensor = _ZeroGradients.apply(states, *(p for p in self.layer.parameters() if p.requires_grad))  # type: ignore[no-untyped-call]
        return given


class _ZeroGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return (*gradients, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors))


@dataclass(frozen=True, kw_only=True)
class Removed:
    """Hold which encoder layers of the dense model a model still has.

    In ``config.json`` it is ``"cap_layers": {"version": 1, "kept": [0, 2, 5], "n_dense": 6, "n_parameters": 5322240}``;
    stock transformers passes over it.

    Args:
        kept: Numbers of the layers that are left, counted in the dense model, rising.
        n_dense: Layers of the dense model.
        n_parameters: Parameters of the layers that are gone.
    """

    kept: tuple[int, ...]
    n_dense: int
    n_parameters: int

    def to_config(self) -> dict[str, Any]:
        """Return what ``config.json`` holds under ``cap_layers``."""
        return {
            "version": _VERSION,
            "kept": list(self.kept),
            "n_dense": self.n_dense,
            "n_parameters": self.n_parameters,
        }


def read_removed(config: PretrainedConfig) -> Removed | None:
    """Read from a configuration which layers are gone; None if it says of none.

    Raises:
        InputError: If it has another version, or does not say what it should.
    """
    found = getattr(config, REMOVED_KEY, None)
    if found is None:
        return None
    try:
        if found["version"] != _VERSION:
            raise ValueError
        removed = Removed(
            kept=tuple(int(number) for number in found["kept"]),
            n_dense=int(found["n_dense"]),
            n_parameters=int(found["n_parameters"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{REMOVED_KEY} in config.json must be of version {_VERSION}, with the numbers kept, n_dense and "
            f"n_parameters, got {found!r}; remove the key, or save the model again"
        ) from error
    return removed


def forget_removed(config: PretrainedConfig) -> None:
    """Drop what a configuration says of layers that are gone: the model as it is now counts as dense."""
    if hasattr(config, REMOVED_KEY):
        delattr(config, REMOVED_KEY)


def as_deep_as_dense(model: PreTrainedModel) -> PreTrainedModel:
    """Return a model of the dense model's size and speed; a copy whose answers mean nothing where layers are gone.

    Copies of the layers that are left stand in for those: what they hold changes neither bytes nor time.
    """
    removed = read_removed(model.config)
    if removed is None:
        return model
    deep = copy.deepcopy(model)
    stack, n_kept = encoder_stack(deep), len(removed.kept)
    alike = [*range(1 if stack.family.has_own_first_layer and n_kept > 1 else 0, n_kept)]
    for number in range(removed.n_dense - n_kept):
        again = alike[number % len(alike)]
        stack.layers.append(copy.deepcopy(stack.layers[again]))
        for key in stack.family.per_layer:
            values = getattr(stack.config, key)
            setattr(stack.config, key, [*values, values[again]])
    stack.config.num_hidden_layers = removed.n_dense
    forget_removed(stack.config)
    _number_layers(stack)
    return deep


def take_out(stack: Stack, is_kept: Sequence[bool]) -> None:
    """Take layers out of a model, in place; its configuration then describes the smaller stock model.

    Args:
        stack: The layers; those of a family with a first layer of its own keep it.
        is_kept: By layer, one of them True.
    """
    _shorten(stack.config, stack, is_kept)
    for number in reversed(range(len(is_kept))):
        if not is_kept[number]:
            del stack.layers[number]
    _number_layers(stack)


def _number_layers(stack: Stack) -> None:
    for number, layer in enumerate(stack.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = number  # type: ignore[assignment]


def shortened(stack: Stack, is_kept: Sequence[bool]) -> PretrainedConfig:
    """Copy the configuration of a model and let it describe the model without some layers.

    Args:
        stack: The layers, all of them still there.
        is_kept: By layer.
    """
    config = copy.deepcopy(stack.config)
    _shorten(config, stack, is_kept)
    return config


def _shorten(config: PretrainedConfig, stack: Stack, is_kept: Sequence[bool]) -> None:
    gone = [layer for layer, kept in zip(stack.layers, is_kept, strict=True) if not kept]
    removed = Removed(
        kept=tuple(number for number, kept in enumerate(is_kept) if kept),
        n_dense=len(is_kept),
        n_parameters=sum(parameter.numel() for layer in gone for parameter in layer.parameters()),
    )
    for key in stack.family.per_layer:
        values = getattr(config, key)
        setattr(config, key, [values[number] for number in removed.kept])
    config.num_hidden_layers = len(removed.kept)
    setattr(config, REMOVED_KEY, removed.to_config())


def without_layers(state: Mapping[str, Tensor], path: str, is_kept: Sequence[bool]) -> dict[str, Tensor]:
    """Leave the tensors of some layers out of a model's state, and renumber the others.

    Args:
        state: By name in the model.
        path: Dotted name of the list of layers.
        is_kept: By layer.
    """
    left: dict[str, Tensor] = {}
    for name, value in state.items():
        number, rest = _split(name, path)
        if number is None:
            left[name] = value
        elif is_kept[number]:
            left[f"{path}.{sum(is_kept[:number])}{rest}"] = value
    return left


def as_in_dense(
    model: PreTrainedModel, by_name: Mapping[str, Value], *, gone: Callable[[Value], Value]
) -> dict[str, Value]:
    """Name what belongs to encoder layers as in the dense model, and add the layers that are gone.

    Args:
        model: A saved model.
        by_name: Values by the name of a layer of ``model``, or of what lies in one; all layers have the same.
        gone: Makes the value of a layer that is gone from that of one that is left.
    """
    removed = read_removed(model.config)
    if removed is None:
        return dict(by_name)
    path = encoder_stack(model).path
    of_layer: dict[int, dict[str, Value]] = {}
    for name, value in by_name.items():
        number, rest = _split(name, path)
        of_layer.setdefault(cast(int, number), {})[rest] = value
    found: dict[str, Value] = {}
    for number in range(removed.n_dense):
        is_kept = number in removed.kept
        own = of_layer[removed.kept.index(number) if is_kept else 0]
        found |= {f"{path}.{number}{rest}": value if is_kept else gone(value) for rest, value in own.items()}
    return found


def _split(name: str, path: str) -> tuple[int | None, str]:
    """Split a name into the number of its layer, None outside, and what follows: nothing, or a dot and more."""
    prefix = f"{path}."
    if not name.startswith(prefix):
        return None, name
    number, dot, rest = name.removeprefix(prefix).partition(".")
    return int(number), dot + rest


__all__ = [
    "REMOVED_KEY",
    "LayerGate",
    "Removed",
    "as_deep_as_dense",
    "as_in_dense",
    "forget_removed",
    "read_removed",
    "shortened",
    "take_out",
    "without_layers",
]
