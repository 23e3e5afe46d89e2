from __future__ import annotations

import io
import os
import random

import pytest


def drawn() -> tuple[float, float, float]:
    import numpy as np
    import torch

    return random.random(), float(np.random.random()), float(torch.rand(()))


def test_generators_go_on_where_they_were():
    import torch

    from cap.training.resume.randomness import random_state, set_random_state

    drawn()
    state = random_state(torch.device("cpu"))
    expected = drawn()
    drawn()
    set_random_state(state, torch.device("cpu"))
    assert drawn() == expected


def test_state_is_read_without_executing_anything():
    import torch

    from cap.training.resume.randomness import random_state, set_random_state

    random.gauss(0.0, 1.0)  # leaves a second value behind, which is part of the state
    file = io.BytesIO()
    torch.save(random_state(torch.device("cpu")), file)
    expected = (random.gauss(0.0, 1.0), drawn())
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True), torch.device("cpu"))
    assert (random.gauss(0.0, 1.0), drawn()) == expected


def determinism() -> tuple[bool, bool, bool, str | None]:
    import torch

    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


@pytest.fixture
def default_determinism(monkeypatch):
    """Start from PyTorch's own settings, and leave the process with them."""
    import torch

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is put back whatever happens
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("asked", [True, "warn"])
def test_determinism_of_one_trainer_ends_with_the_block(default_determinism, asked):
    from lightning.pytorch import Trainer

    from cap.training.resume.randomness import keeping_determinism

    before = determinism()
    with keeping_determinism():
        Trainer(deterministic=asked, logger=False, enable_checkpointing=False, accelerator="cpu")
        assert determinism() == (True, asked == "warn", False, ":4096:8")
    assert determinism() == before == (False, False, True, None)


@pytest.mark.parametrize("door", ["train", "finetune"])
def test_determinism_does_not_leak_from_a_job_that_fails(default_determinism, compose_config, door):
    from importlib import import_module

    from cap.base.errors import InputError

    before = determinism()
    cfg = compose_config("trainer.deterministic=true", "trainer.gradient_clip_val=-1")
    with pytest.raises(InputError, match="gradient_clip_val"):
        getattr(import_module(f"cap.{door}"), door)(cfg)
    assert determinism() == before
