"""What an importance pass leaves behind, and what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader


@pytest.fixture
def module(tmp_path):
    """Make a module with banks and a structured pruner."""
    from tests.training.share_program import CASES, make_module

    return make_module(CASES["structured, total"], tmp_path)


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


def second_order(folder: Path):
    from tests.training.share_program import CASES, make_module

    return make_module(CASES["second order"], folder)


def squares(module, loader: DataLoader, folder: Path, **options) -> tuple[float, float]:
    """Run a pass over rows of its own, and return the sum of all squared gradients and how many there were."""
    measure(module, loader, folder, **options)
    *sums, n = module.pruner.importance_sums()
    return sum(float(one.diagonal(dim1=1, dim2=2).sum()) for one in sums), int(n)


def test_a_pass_over_batches_of_its_own_adds_up_their_gradients_of_the_labels_loss(tmp_path):
    from torch.nn.functional import cross_entropy

    module = second_order(tmp_path)
    found, n = squares(module, batches(), tmp_path)
    module.eval()
    expected = 0.0
    for batch in batches():
        loss = cross_entropy(module(batch).logits, batch["labels"])
        gradients = torch.autograd.grad(loss, module.pruner.gate_parameters())
        expected += sum(float(gradient.square().sum()) for gradient in gradients)
    assert n == 5
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("n_trained", "n_gradients"), [(5, 5), (2, 2), (0, 1)])
def test_a_run_on_part_of_the_rows_ranks_by_part_of_the_rows(tmp_path, n_trained, n_gradients):
    from cap.training.importance import measure_importance
    from tests.training.share_program import make_trainer

    module = second_order(tmp_path)
    trainer = make_trainer(tmp_path, 1, [])
    trainer.fit_loop.max_batches = n_trained
    measure_importance(module, batches(), module.pruner.importance_pass, batch_size=8, trainer=trainer)
    assert int(module.pruner.importance_sums()[-1]) == n_gradients


@pytest.mark.parametrize("can_stop", [True, False])
def test_a_pass_is_given_up_when_the_run_is_to_stop_unless_masks_have_moved(tmp_path, monkeypatch, can_stop):
    from cap.base.errors import StoppedError
    from cap.training.resume.stop import stop

    module = second_order(tmp_path)
    monkeypatch.setattr(stop, "signal", 15)
    if can_stop:
        with pytest.raises(StoppedError):
            squares(module, batches(), tmp_path, can_stop=True)
    else:
        assert squares(module, batches(), tmp_path, can_stop=False)[1] == 5


def test_a_total_loss_over_batches_of_its_own_is_refused_where_processes_share_batches(tmp_path):
    import dataclasses

    from cap.base.errors import RunError
    from cap.training.importance import measure_importance
    from cap.training.parallel.ranks import Ranks
    from tests.training.share_program import make_trainer

    module = second_order(tmp_path)
    wanted = dataclasses.replace(module.pruner.importance_pass, loss="total")
    trainer = _with_batches(make_trainer(tmp_path, 1, []))
    measure_importance(module, batches(), wanted, batch_size=8, trainer=trainer)
    assert int(module.pruner.importance_sums()[-1]) == 5
    module.ranks = Ranks(0, 2)
    with pytest.raises(RunError, match=r"takes loss='task' where 2 processes take part, got loss='total' of SecondOrd"):
        measure_importance(module, batches(), wanted, batch_size=8, trainer=trainer)


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
