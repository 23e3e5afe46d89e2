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
