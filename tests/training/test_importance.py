"""What an importance pass leaves behind, and what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader


@pytest.fixture
def module(tmp_path):
    """Make a module with banks and a structured pruner."""
    from cap.training.parallel.ranks import ALONE
    from tests.training.share_program import CASES, make_module

    return make_module(CASES["structured, total"], tmp_path, ALONE)


def measure(module, loader: DataLoader, folder: Path, **options) -> list[torch.Tensor]:
    from cap.training.importance import measure_importance
    from tests.training.share_program import make_trainer

    trainer = _with_batches(make_trainer(folder, 1, []))
    measure_importance(module, loader, module.pruner.importance_pass, batch_size=8, trainer=trainer, **options)
    return [p.clone() for name, p in module.named_buffers() if name.endswith("importance")]


def _with_batches(trainer):
    trainer.fit_loop.max_batches = 5
    return trainer


def batches() -> DataLoader:
    from tests.training.share_program import ROWS, loader_of

    return loader_of(ROWS, "classes")


def test_a_pass_leaves_the_stream_of_extra_examples_as_it_found_it(module, tmp_path):
    before = module._extras.get_state()
    measure(module, batches(), tmp_path)
    assert torch.equal(module._extras.get_state(), before)


def test_a_pass_that_was_interrupted_can_be_repeated(module, tmp_path):
    def broken():
        yield from list(batches())[:2]
        raise KeyboardInterrupt

    class Interrupted(DataLoader):
        def __iter__(self):
            return broken()

    expected = measure(module, batches(), tmp_path)
    module.pruner.forget_importance()
    with pytest.raises(KeyboardInterrupt):
        measure(module, Interrupted(batches().dataset, batch_size=None), tmp_path)
    torch.testing.assert_close(measure(module, batches(), tmp_path), expected, atol=0, rtol=0)


def test_a_pass_without_contrast_is_that_of_a_run_without_contrast(module, tmp_path):
    with_banks = measure(module, batches(), tmp_path)
    before_banks = measure(module, batches(), tmp_path, with_contrast=False)
    module.contrast = None
    expected = measure(module, batches(), tmp_path)
    torch.testing.assert_close(before_banks, expected, atol=0, rtol=0)
    assert not all(torch.equal(one, other) for one, other in zip(with_banks, expected, strict=True))


def test_an_order_that_was_drawn_is_not_forgotten():
    from cap.models.families import prunable
    from cap.pruning.structured import Structured
    from tests.models.tiny_models import tiny_classifier

    model = tiny_classifier()
    pruner = Structured(importance="random", importance_rows=None, importance_loss="total", final_sparsity=0.5)
    pruner.attach(prunable(model), seed=0)
    before = [p.clone() for name, p in model.named_buffers() if name.endswith("importance")]
    pruner.forget_importance()
    after = [p for name, p in model.named_buffers() if name.endswith("importance")]
    torch.testing.assert_close(after, before, atol=0, rtol=0)
