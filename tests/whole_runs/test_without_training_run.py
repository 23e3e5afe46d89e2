"""A teacher that is pruned once, and not trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.formats.made_exports import make_run


@pytest.mark.parametrize("pruning", ["magnitude", "structured"])
def test_weights_that_stay_are_the_teachers_to_the_bit(tiny_model, tiny_data, tmp_path: Path, pruning) -> None:
    data = ["task=sst2", f"data_dir={tiny_data}", f"model.name_or_path={tiny_model}", "sparsity=0.5"]
    run = make_run(tmp_path / "run", *data, "experiment=without_training", f"pruning={pruning}")
    (teacher,) = (tmp_path / "cache" / "teachers").glob("*/model.safetensors")
    before, after = load_file(teacher), load_file(run / "model" / "model.safetensors")
    for name, weight in after.items():
        kept = weight != 0
        assert torch.equal(weight[kept], before[name][kept])
        if ".layer." not in name:
            assert torch.equal(weight, before[name])
    record = json.loads((run / "record.json").read_text(encoding="utf-8"))
    assert (record["steps"], record["dynamics"]["path"]) == (1, 0.0)
    assert record["sparsity"]["prunable"] == pytest.approx(0.5, abs=0.01)
