"""2:4 sparse matrices on GPUs that have kernels for them, through torch's own tensors."""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from cap.base.errors import InputError
from cap.models.families import prunable_linears

_LEAST_CAPABILITY = (8, 0)


def require_sparse_gpu() -> None:
    """Check that there is a GPU with kernels for 2:4 matrices.

    Raises:
        InputError: If there is none.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < _LEAST_CAPABILITY:
        raise InputError(
            f"format=semi_structured needs an NVIDIA GPU of compute capability {'.'.join(map(str, _LEAST_CAPABILITY))} "
            f"or higher, whose kernels skip the zeros, got none here; use format=compact or sparse, or run this there"
        )


def to_semi_structured(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model to the GPU in float16, its prunable matrices, which must be 2:4, as semi-structured tensors."""
    faster: PreTrainedModel = copy.deepcopy(model).half().cuda().eval()
    for linear in prunable_linears(faster).values():
        sparse = torch.sparse.to_sparse_semi_structured(linear.weight.detach())
        linear.weight = nn.Parameter(sparse, requires_grad=False)
    return faster


__all__ = ["require_sparse_gpu", "to_semi_structured"]
