"""Count what a model holds and what it computes, from the shapes of its own modules."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel

from cap.models.families import prunable


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """Hold the size of a model and the work of one row.

    Args:
        parameters: All parameters: embeddings, biases and head included.
        prunable_parameters: The weights of the prunable matrices, zeros included.
        multiply_adds: Of one row through the encoder layers, see ``count_cost``.
    """

    parameters: int
    prunable_parameters: int
    multiply_adds: int


def count_cost(model: PreTrainedModel, *, tokens: int) -> ModelCost:
    """Count parameters, and the multiply-adds of one row through the encoder layers.

    Counted are the linear layers of each encoder layer, and in the attention the products of queries with keys and of
    attention weights with values, all as a dense product computes them: a zero costs as much as any weight, a pair of
    tokens outside ModernBERT's windows as much as one inside, a unit that is gone costs nothing. Not counted:
    embeddings, biases, norms, activations, softmax, task head, the product of the two sides of a gated FFN, and
    DeBERTa's products with relative positions.

    Args:
        model: A stock model of a known family, or a compact one.
        tokens: Tokens of the row, at least 1; padding counts as tokens.

    Raises:
        ValueError: If ``tokens`` is not positive.
    """
    if tokens < 1:
        raise ValueError(f"a row must have at least one token, got {tokens}")
    found = prunable(model)
    n_prunable = sum(linear.weight.numel() for linear in found.linears.values())
    # Each of the two products multiplies tokens x tokens pairs over the width of all heads together.
    attention_width = sum(units.n * units.size for units in found.heads.values())
    return ModelCost(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        prunable_parameters=n_prunable,
        multiply_adds=tokens * n_prunable + 2 * tokens**2 * attention_width,
    )


__all__ = ["ModelCost", "count_cost"]
