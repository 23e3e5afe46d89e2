"""Runs in which a pruned model learns another task and keeps its zeros."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def matrices(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    return {
        name.removeprefix("bert."): weight for name, weight in weights.items() if ".layer." in name and weight.ndim == 2
    }


@pytest.fixture
def keeping(tiny_overrides, sparse_model) -> list[str]:
    return [*tiny_overrides, f"model.name_or_path={sparse_model}", "pruning=keep_zeros", "sparsity=0.6"]


def test_the_saved_model_has_the_zeros_that_it_came_with_and_no_others(compose_config, keeping, sparse_model, tmp_path):
    from cap.train import train

    train(compose_config(*keeping, "weight_decay=0.1"))
    before, after = matrices(sparse_model), matrices(tmp_path / "run" / "model")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name] == 0, after[name] == 0) for name in before)
    assert all(bool((before[name] != after[name]).any()) for name in before)
    record = json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))
    n_zero, n = (sum(int(count) for count in counts) for counts in zip(*map(zeros_of, after.values()), strict=True))
    assert record["sparsity"]["prunable"] == n_zero / n == pytest.approx(0.6, abs=1e-3)
    assert record["levels"][-1]["sparsity"] == pytest.approx(0.6, abs=1e-3)


def zeros_of(weight: torch.Tensor) -> tuple[int, int]:
    return int((weight == 0).sum()), weight.numel()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sparsity=0.7"], "prunable weights, got sparsity=0.7; set sparsity=0.6, or choose another pruning type"),
        (["student_init=teacher"], "the student must start from that model, got student_init=teacher"),
    ],
    ids=["other sparsity", "teacher"],
)
def test_what_cannot_keep_the_zeros_is_refused_before_anything_is_trained(
    compose_config, keeping, tmp_path, overrides, expected
):
    from cap.base.errors import InputError
    from cap.train import train

    with pytest.raises(InputError) as caught:
        train(compose_config(*keeping, *overrides))
    assert expected in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "cache" / "teachers").exists()


def test_a_dense_model_is_refused(compose_config, tiny_overrides):
    from cap.base.errors import InputError
    from cap.train import train

    with pytest.raises(InputError, match=r"prunable weights is zero; give a pruned model \(model\.name_or_path="):
        train(compose_config(*tiny_overrides, "pruning=keep_zeros", "sparsity=0.6"))


def test_a_constant_answer_is_not_blamed_on_where_the_student_starts(compose_config, keeping, tmp_path):
    from cap.train import train

    train(compose_config(*keeping, "learning_rate=1e-7"))
    (said,) = (
        warning
        for warning in json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))["warnings"]
        if "one and the same answer" in warning
    )
    assert said.endswith("Give it more steps (trainer.max_epochs) or a lower sparsity.")
