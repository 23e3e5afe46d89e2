"""Every pruning type on every encoder family: train a few steps, fold, save, load with stock transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from tests.cases import cases
from tests.models.tiny_models import FAMILY_NAMES, LAYERS, n_prunable, tiny_batch, tiny_classifier

PRUNING_TYPES = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "pruning").glob("*.yaml"))
SPARSITY = 0.5
DAILY_TYPES = ["movement", "structured"]


@pytest.fixture
def checked(compose_config):
    """Choose a pruning type and the schedule that goes with it, as the command line would."""

    def choose(pruning: str):
        from cap.config.check import check
        from cap.training.ready import make_ready

        return make_ready(check(compose_config(f"pruning={pruning}", f"sparsity={SPARSITY}")))

    return choose


def batches() -> DataLoader:
    batch = tiny_batch() | {"labels": torch.tensor([0, 1, 1]), "example_id": torch.arange(3)}
    return DataLoader([batch] * 10, batch_size=None)


def prune(model) -> None:
    """Give a model zeros to keep."""
    from cap.models.families import prunable
    from cap.pruning.magnitude import Magnitude

    magnitude = Magnitude()
    magnitude.attach(prunable(model), seed=0)
    magnitude.update_masks(SPARSITY)
    magnitude.fold()


def fitted(model, checked, tmp_path):
    """Train ten steps with the callbacks of a run."""
    from cap.models.families import prunable
    from cap.models.pooled import PooledModel
    from cap.training.callbacks.importance import ImportanceCallback
    from cap.training.callbacks.pruning import PruningCallback
    from cap.training.module import CapModule, Distill, Optimisation
    from cap.training.trainer import build_trainer

    if checked.pruner.keeps_zeros:
        prune(model)
    checked.pruner.attach(prunable(model), seed=0)
    module = CapModule(
        PooledModel(model, "first_token"),
        distill=Distill(weight=0.0, ce_weight=1.0, temperature=1.0),
        optimisation=Optimisation(learning_rate=1e-3, weight_decay=0.0, warmup=0.1),
        metrics={},
        pruner=checked.pruner,
    )
    pruning = PruningCallback(checked.pruner, checked.plan, every_n_steps=checked.every_n_steps, adds_regularizer=False)
    importance = ImportanceCallback(pruning, loader=lambda step: batches(), batch_size=3, n_examples=30)
    options = {"max_steps": 10, "accelerator": "cpu", "enable_progress_bar": False, "limit_val_batches": 0}
    trainer = build_trainer(options, run_dir=tmp_path, callbacks=[importance, pruning])
    trainer.fit(module, train_dataloaders=batches(), val_dataloaders=batches())
    return module


# Every type meets one family, and every family the types that see more of it than its matrices: units, layers, what is
# frozen, rows of gradients. The others choose weights, as movement does.
SEES_MORE = ["layers", "second_order", "static_scores"]
COMBINATIONS = {
    f"{family}-{pruning}": (family, pruning)
    for family in FAMILY_NAMES
    for pruning in PRUNING_TYPES
    if family == "bert" or pruning in [*DAILY_TYPES, *SEES_MORE]
}
DAILY = [name for name, (family, pruning) in COMBINATIONS.items() if family == "bert" or pruning in DAILY_TYPES]


@pytest.mark.parametrize(("family", "pruning"), cases(COMBINATIONS, daily=DAILY))
def test_trains_reaches_its_sparsity_saves_and_reloads(family, pruning, checked, tmp_path):
    from transformers import AutoModelForSequenceClassification

    from cap.pruning.masks import count_matrix_zeros

    model = tiny_classifier(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    module = fitted(model, checked(pruning), tmp_path / "run")
    with torch.no_grad():
        masked = model.eval()(**tiny_batch()).logits
    module.pruner.fold()
    model.save_pretrained(tmp_path / "model")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**tiny_batch()).logits, masked, rtol=0, atol=1e-6)
    n_zero = sum(zeros for zeros, _ in count_matrix_zeros(loaded).values())  # those of layers that are gone, too
    # Rounded once per matrix at the most.
    assert abs(n_zero - SPARSITY * n_prunable(family)) <= 7 * LAYERS
    assert any(
        not torch.equal(value, before[name]) for name, value in loaded.state_dict().items() if "norm" in name.lower()
    )
