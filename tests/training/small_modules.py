"""What the small CapModules of these tests have in common."""

from __future__ import annotations

from typing import Any

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
"""Of a BERT."""


def settings(memory: Any, **contrast: Any) -> dict[str, Any]:
    """Make the arguments of a CapModule beside its student: every term of contrast has a weight.

    Args:
        memory: What the teacher and the banks gave.
        contrast: Arguments of ``Contrast`` that differ.
    """
    from cap.training.module import Contrast, Distill, Optimisation

    usual = {
        "sources": ("pretrained",),
        "unsupervised_weight": 0.5,
        "supervised_weight": 10.0,
        "temperature": 0.1,
        "extra_examples": 4,
        "reduction": "pairs",
        "anchor_dropout": 0.0,
        "seed": 0,
    }
    return {
        "distill": Distill(weight=0.9, ce_weight=0.1, temperature=2.0),
        "optimisation": Optimisation(learning_rate=1e-3, weight_decay=0.0, warmup=0.0),
        "metrics": {},
        "contrast": Contrast(**(usual | contrast)),
        "memory": memory,
    }
