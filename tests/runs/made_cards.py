"""What a record and an export's result hold of what cards say."""

from __future__ import annotations

from typing import Any

RECORD: dict[str, Any] = {
    "command": "python -m cap.train task=sst2 sparsity=0.9",
    "asks": {"kind": "classes", "columns": ["sentence"]},
    "config": {"max_length": 16, "task": {"name": "sst2"}, "pruning": {"name": "movement"}},
    "environment": {"git_commit": "0123abc"},
    "model": "package some-encoder",
    "seed": 7,
    "metric": "accuracy",
    "scores": {"teacher": {"accuracy": 0.9}, "pruned": {"accuracy": 0.81}, "majority": {"accuracy": 0.5}},
    "retention": 0.9,
    "retention_reason": None,
    "retention_above_majority": 0.775,
    "retention_above_majority_reason": None,
    "sparsity": {"asked": 0.9, "prunable": 0.90004, "encoder": 0.8921, "model": 0.4217},
    "data": {"source": "folder sst2", "fingerprint": "feed", "n_rows": {"train": 8000, "validation": 872}},
    "warnings": ["The teacher stayed at chance level."],
}
EXPORT: dict[str, Any] = {
    "format": "compact",
    "command": "python -m cap.export run=/home/me/runs/a format=compact",
    "vocabulary": None,
    "check": {"rows": 16, "largest_difference": 2.5e-7},
    "scores_of_run": {"accuracy": 0.81},
    "scores": None,
    "retention": None,
    "sparsity": {"dense_prunable": 1000, "left": 400, "zero_left": 300, "zero_or_gone": 0.9, "counted": None},
    "size": {
        "bytes": 50,
        "dense_bytes": 100,
        "dense_bytes_gzipped": 40,
        "parameters": 2400,
        "dense_parameters": 3000,
        "prunable_parameters": 400,
        "dense_prunable_parameters": 1000,
        "multiply_adds_of_128_tokens": 5,
        "dense_multiply_adds_of_128_tokens": 9,
    },
    "bytes": 50,
    "details": {"note": None},
    "latency_ms": {"batch=1,tokens=32": 2.0},
    "dense_latency_ms": {"batch=1,tokens=32": 3.0},
    "speed_up": {"batch=1,tokens=32": 1.5},
    "speed_up_quartiles": {"batch=1,tokens=32": [1.4, 1.6]},
    "rounds": {"batch=1,tokens=32": 5},
    "device": "some CPU",
    "threads": 2,
    "notes": ["The logits were compared on other rows."],
    "loads_with_transformers": False,
    "how_to_load": None,
    "sentence": "It is smaller.",
}
