"""2:4 sparse matrices on GPUs that have kernels for them, through torch's own tensors."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from cap.errors import InputError
from cap.models.families import prunable_linears

_N_KEPT, _SIZE = 2, 4
_LEAST_CAPABILITY = (8, 0)


def require_semi_structured(model: PreTrainedModel) -> None:
    """Check that every prunable matrix is 2:4, and that there is a GPU which gains from it.

    Raises:
        InputError: If a matrix keeps more than two of four consecutive weights of a row, or there is no such GPU.
    """
    for name, linear in prunable_linears(model).items():
        groups = linear.weight.detach().unflatten(1, (-1, _SIZE)) if linear.in_features % _SIZE == 0 else None
        if groups is None or int((groups != 0).sum(dim=-1).max()) > _N_KEPT:
            raise InputError(
                f"format=semi_structured needs matrices with at most {_N_KEPT} of every {_SIZE} weights kept, got "
                f"{name} with more; prune with pruning.pattern=2:4 sparsity=0.5 (magnitude, movement or first_order)"
            )
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < _LEAST_CAPABILITY:
        raise InputError(
            f"format=semi_structured needs an NVIDIA GPU of compute capability {'.'.join(map(str, _LEAST_CAPABILITY))} "
            f"or higher, whose kernels skip the zeros, got none here; use format=compact or sparse, or run this there"
        )


def to_semi_structured(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a 2:4 model to the GPU in float16, its prunable matrices as semi-structured sparse tensors."""
    faster: PreTrainedModel = copy.deepcopy(model).half().cuda().eval()
    for linear in prunable_linears(faster).values():
        sparse = torch.sparse.to_sparse_semi_structured(linear.weight.detach())
        linear.weight = nn.Parameter(sparse, requires_grad=False)
    return faster


__all__ = ["require_semi_structured", "to_semi_structured"]
