"""Read the pooled vector off a stock model with a task head, in the same forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from cap.models.families import encoder_layers

Pooling = Literal["pooler", "first_token", "mean"]
_MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class EncoderOutput(NamedTuple):
    """Hold what one forward pass gives: the head's logits and the pooled vector before normalisation.

    Logits are (batch, outputs); those of a span are (batch, tokens, 2), start and end, those of tags (batch, tokens,
    tags). What a model without a head answers is its encoding. Hidden states are the outputs of the encoder layers, in
    order; there are none unless they were asked for.
    """

    logits: Float[Tensor, "batch ..."]
    pooled: Float[Tensor, "batch dim"]
    hidden: tuple[Float[Tensor, "batch tokens dim"], ...] = ()


class PooledModel(nn.Module):
    """Run a stock model, with a task head or bare, and keep its pooled vector.

    Args:
        model: A transformers model for classification of texts or tokens, question answering, or an encoder without a
            head; it is not changed.
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
        pooled = self.pool(base[0], inputs["attention_mask"])
        # A layer gives its hidden states alone in some families, and with its attention in others.
        states = tuple(given[0] if isinstance(given, tuple) else given for given in hidden)
        return EncoderOutput(_logits(output, pooled), pooled, states)

    def pool(self, base_output: Any, attention_mask: Tensor) -> Tensor:
        """Return the pooled vectors of what the base model gave, not normalised."""
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


def _logits(output: Any, pooled: Tensor) -> Tensor:
    """Return what a model answers."""
    if "start_logits" in output:
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    logits: Tensor = output.logits if "logits" in output else normalise(pooled)
    return logits


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


__all__ = [
    "EncoderOutput",
    "PooledModel",
    "Pooling",
    "evaluating",
    "mean_over_tokens",
    "normalise",
]
