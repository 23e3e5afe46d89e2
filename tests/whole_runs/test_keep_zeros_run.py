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
    card = (tmp_path / "run" / "model" / "README.md").read_text(encoding="utf-8")
    assert card.count(" before, trained on sst2 with its zeros kept\n") == 1


def zeros_of(weight: torch.Tensor) -> tuple[int, int]:
    return int((weight == 0).sum()), weight.numel()


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["sparsity=0.7"], "prunable weights, got sparsity=0.7; set sparsity=0.6, or choose another pruning type"),
        (["student_init=teacher"], "got student_init=teacher and schedule=oneshot; leave experiment= out, or set"),
        (
            ["schedule.flat_before=0.5"],
            "the schedule at its sparsity, got student_init=pretrained and schedule=oneshot",
        ),
        (["schedule=cubic"], "student_init=pretrained schedule=oneshot schedule.flat_before=0"),
        (["experiment=high_sparsity"], "got student_init=teacher and schedule=cubic; leave experiment= out"),
        (["task=embed", "task.label_column=null"], "task=embed learns from the model that it starts from"),
    ],
    ids=["other sparsity", "teacher", "later", "gradual", "recipe", "encodings"],
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

    with pytest.raises(InputError, match=r"none of its .* prunable weights is zero; give a model that single weights"):
        train(compose_config(*tiny_overrides, "pruning=keep_zeros", "sparsity=0.6"))


def test_a_high_sparsity_that_was_reached_before_needs_no_path(compose_config, keeping, sparse_model, caplog):
    from cap.pruning.schedule import OneShot
    from cap.training.dynamics import Dynamics

    counts = dict.fromkeys(["trained", "frozen", "kept", "encodings"], 0)
    dynamics = Dynamics(
        steps=8, steps_after_target=8, path=1e-3, path_after_target=1e-3, bank_disk_gb=0, bank_memory_gb=0, **counts
    )
    plan = OneShot(sparsity=0.97, flat_before=0.0, warmup=0.0)
    assert dynamics.say(plan, max_steps=-1, prunes=False) is None
    # What is pruned by one shot at the start has no longer path by a rewind there, and no key for what comes after.
    assert dynamics.say(plan, max_steps=-1, prunes=True).endswith("raise learning_rate or trainer.max_epochs.")


@pytest.mark.ends
def test_a_constant_answer_is_not_blamed_on_where_the_student_starts(compose_config, keeping, tmp_path):
    from cap.train import train

    train(compose_config(*keeping, "learning_rate=1e-7"))
    (said,) = (
        warning
        for warning in json.loads((tmp_path / "run" / "record.json").read_text(encoding="utf-8"))["warnings"]
        if "one and the same answer" in warning
    )
    assert said.endswith("Give it more steps (trainer.max_epochs) or a model that is less sparse.")
