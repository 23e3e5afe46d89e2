"""Every example runs, reaches its sparsity, and resumes to the same model."""

from __future__ import annotations

import importlib

import pytest

N_MATRICES, N_WEIGHTS = 12, 2 * (4 * 32 * 32 + 2 * 32 * 64)


# The example resumes into another folder on purpose.
@pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning")
@pytest.mark.parametrize("name", ["lightning_module", "hugging_face_trainer", "plain_loop"])
def test_example_prunes_saves_and_resumes_to_the_same_model(name, tmp_path):
    example = importlib.import_module(f"examples.{name}")
    shown = example.main(tmp_path)
    # Movement rounds once per matrix, the others once for all.
    assert shown["saved"] == pytest.approx(example.SPARSITY, abs=0.5 * N_MATRICES / N_WEIGHTS)
    assert shown.get("reached", shown["saved"]) == shown["saved"]
    assert (shown["equal_masks"], shown["equal_weights"]) == (True, True)


def test_pruner_outside_the_package_runs_by_its_name(tiny_model, tiny_data, tmp_path):
    import json
    import os
    import subprocess
    import sys
    from pathlib import Path

    folder = Path(__file__).parent.parent / "examples" / "own_pruner"
    path = os.pathsep.join([str(folder), str(folder.parent.parent)])
    keys = ["pruning=wanda", "sparsity=0.5", "task=sst2", f"data_dir={tiny_data}", f"model.name_or_path={tiny_model}"]
    places = [
        f"output_dir={tmp_path}/run",
        f"cache_dir={tmp_path}/cache",
        "trainer.max_epochs=1",
        "finetune.max_epochs=1",
    ]
    command = [sys.executable, "-m", "cap.train", "--config-dir", str(folder / "conf"), *keys, *places]
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))
    assert record["sparsity"]["prunable"] == pytest.approx(0.5, abs=0.5 * N_MATRICES / N_WEIGHTS)
    assert (record["config"]["pruning"]["name"], len(record["config"]["pruning"]["code_sha256"])) == ("wanda", 16)


def test_scores_of_that_pruner_are_those_of_a_loop():
    import torch

    import cap
    from examples.own_pruner.wanda import Wanda

    torch.manual_seed(0)
    layer, batches = torch.nn.Linear(6, 4, bias=False), [torch.randn(3, 5, 6) for _ in range(2)]
    model = torch.nn.Sequential(layer)
    pruner = cap.attach(model, Wanda(), linears={"0": layer})
    cap.measure_importance(pruner, model, batches, loss=lambda batch: model(batch).mean())
    for row in range(4):
        for column in range(6):
            norm = sum(float(batch[i, j, column]) ** 2 for batch in batches for i in range(3) for j in range(5)) ** 0.5
            expected = abs(float(pruner.weight("0")[row, column])) * norm
            assert float(pruner.importance("0")[row, column]) == pytest.approx(expected, rel=1e-5)
