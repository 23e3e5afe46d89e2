"""``cap.PruningCallback`` in the training of a LightningModule that knows nothing of cap."""

from __future__ import annotations

import copy

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import cap
from cap.base.errors import InputError
from tests.models.tiny_models import tiny_batch, tiny_classifier

N_STEPS = 10


class Foreign(LightningModule):
    """Fit a small network to random rows."""

    def __init__(self, pruner, *, with_scores: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
        self.early = list(self.net.parameters())
        self.pruner = cap.attach(self.net, pruner, linears={"0": self.net[0], "2": self.net[2]})
        self.with_scores = with_scores

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        groups = cap.parameter_groups(self.net, self.pruner, learning_rate=1e-2)
        return torch.optim.AdamW(groups if self.with_scores else self.early)


def rows(n: int = 4 * N_STEPS) -> DataLoader:
    inputs = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, (inputs[:, 0] > 0).long()), batch_size=4)


def fit(module, callback, tmp_path, *, loader=None, checkpoint=None, **options) -> Trainer:
    trainer = Trainer(
        **({"max_epochs": 1} | options),
        accelerator="cpu",
        callbacks=[callback],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, loader or rows(), ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    return trainer


PRUNERS = {
    "magnitude": cap.Magnitude,
    "movement": cap.Movement,
    "soft_movement": lambda: cap.SoftMovement(final_sparsity=0.5),
    "first_order": cap.FirstOrder,
    "platon": lambda: cap.Platon(window=3),
    "admm": lambda: cap.Admm(final_sparsity=0.5, interval=2),
    "random": cap.Random,
    "static_scores": lambda: cap.StaticScores(scope="matrix", final_sparsity=0.5),
}


@pytest.mark.parametrize("name", PRUNERS)
@pytest.mark.parametrize("plan", [cap.Cubic, cap.OneShot, cap.Stepwise], ids=lambda plan: plan.__name__)
def test_target_is_met_and_folded(name, plan, tmp_path):
    module = Foreign(PRUNERS[name]())
    callback = cap.PruningCallback(module.pruner, plan(sparsity=0.5))
    trainer = fit(module, callback, tmp_path)
    assert (callback.target, callback.reached) == (0.5, 0.5)
    assert float(trainer.callback_metrics["pruning/sparsity"]) == 0.5
    module.pruner.fold()
    assert sum(int((module.net[i].weight == 0).sum()) for i in (0, 2)) == (128 + 32) // 2


@pytest.mark.parametrize("name", PRUNERS)
def test_resumed_run_ends_in_the_same_model(name, tmp_path):
    def new():
        module = Foreign(PRUNERS[name]())
        return module, cap.PruningCallback(module.pruner, cap.Cubic(sparsity=0.5))

    class Halfway(cap.PruningCallback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

        state_key = cap.PruningCallback.__qualname__

    whole, _ = new()
    fit(whole, Halfway(whole.pruner, cap.Cubic(sparsity=0.5)), tmp_path, loader=rows(20), max_epochs=2)
    resumed, callback = new()
    fit(resumed, callback, tmp_path, loader=rows(20), max_epochs=2, checkpoint=tmp_path / "half.ckpt")
    state = resumed.state_dict()
    assert [key for key, value in whole.state_dict().items() if not torch.equal(value, state[key])] == []
    assert resumed.pruner.state_dict() == whole.pruner.state_dict()


def test_run_whose_scores_are_in_no_optimizer_is_refused(tmp_path):
    module = Foreign(cap.Movement(), with_scores=False)
    with pytest.raises(ValueError, match="learns scores, which must be in the optimizer"):
        fit(module, cap.PruningCallback(module.pruner, cap.Cubic(sparsity=0.5)), tmp_path)


def test_trainer_that_casts_the_weights_to_half_precision_is_refused(tmp_path):
    module = Foreign(cap.Movement())
    callback = cap.PruningCallback(module.pruner, cap.Cubic(sparsity=0.5))
    with pytest.raises(InputError, match=r"4 of 4 are in half precision, .*precision='bf16-mixed', not 'bf16-true'"):
        fit(module, callback, tmp_path, precision="bf16-true")


def test_masks_on_a_copy_of_the_model_are_refused(tmp_path):
    module = Foreign(cap.Magnitude())
    callback = cap.PruningCallback(module.pruner, cap.Cubic(sparsity=0.5))
    module.net = copy.deepcopy(module.net)
    with pytest.raises(ValueError, match="must be on the model that is trained, but 2 of 2 modules"):
        fit(module, callback, tmp_path)


class TwoLayers(Foreign):
    """Take a step every so many batches, with an optimizer for each of its two layers."""

    automatic_optimization = False
    every = 4
    order = (1, 0)

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=1e-2) for layer in (self.net[0], self.net[2])]

    def training_step(self, batch, batch_idx):
        self.manual_backward(super().training_step(batch, batch_idx))
        if (batch_idx + 1) % self.every == 0:
            for number in self.order:
                self.optimizers()[number].step()
                self.optimizers()[number].zero_grad()


def test_a_module_that_optimizes_by_hand_says_how_many_steps_it_takes(tmp_path):
    def sparsity(**options) -> tuple[float, list[str]]:
        said: list[str] = []
        module = TwoLayers(cap.Magnitude())
        callback = cap.PruningCallback(
            module.pruner, cap.OneShot(sparsity=0.5, flat_before=0.7), warn=said.append, **options
        )
        fit(module, callback, tmp_path, loader=rows(4 * 40))
        return callback.reached, said

    reached, (warning,) = sparsity()  # 40 are announced, and 20 counted
    assert reached == 0.0
    assert "the schedule lies over 40 optimizer steps, of which number 19 was the last to begin" in warning
    assert sparsity(n_steps=20) == (0.5, [])
    assert sparsity(may_go_on=True) == (0.0, [])


def test_of_several_optimizers_one_counts(tmp_path):
    class OfTheFirst(TwoLayers):
        every = 1

        def __init__(self, pruner):
            super().__init__(cap.Random())
            self.pruner.fold()
            self.pruner = cap.attach(self.net, pruner, linears={"2": self.net[2]})

    module = OfTheFirst(cap.Admm(final_sparsity=0.5, interval=2))
    plan = cap.OneShot(sparsity=0.5, flat_before=0.8)
    fit(module, cap.PruningCallback(module.pruner, plan, n_steps=2 * N_STEPS), tmp_path)
    assert module.pruner.state_dict()["n_seen"] == 8  # of 10 batches, until the masks moved


def test_first_order_observes_every_step(tmp_path):
    module = Foreign(cap.FirstOrder())
    fit(module, cap.PruningCallback(module.pruner, cap.OneShot(sparsity=0.5, flat_before=0.9)), tmp_path)
    assert all(bool(module.pruner.importance(name).any()) for name in module.pruner.masks)


@pytest.mark.parametrize("adds", [True, False])
def test_regulariser_reaches_the_scores_unless_the_module_adds_it(adds, tmp_path):
    def scores(weight: float) -> torch.Tensor:
        module = Foreign(cap.SoftMovement(final_sparsity=0.5, regularizer_weight=weight))
        callback = cap.PruningCallback(module.pruner, cap.Cubic(sparsity=0.5), adds_regularizer=adds)
        fit(module, callback, tmp_path)
        return torch.cat([scores.detach().flatten() for scores in module.pruner.score_parameters()])

    assert bool((scores(0.0) != scores(500.0)).any()) is adds


class Encoder(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_classifier().train()
        self.pruner = cap.attach(self.model, cap.Structured(final_sparsity=0.5))

    def training_step(self, batch, batch_idx):
        return self.model(**batch).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(cap.parameter_groups(self.model, self.pruner, learning_rate=1e-3))


def batches() -> DataLoader:
    return DataLoader([tiny_batch() | {"labels": torch.tensor([0, 1, 1])}] * N_STEPS, batch_size=None)


def test_structured_without_a_pass_is_refused(tmp_path):
    module = Encoder()
    with pytest.raises(ValueError, match="Structured ranks by a pass over training rows"):
        fit(module, cap.PruningCallback(module.pruner, cap.Stepwise(sparsity=0.5)), tmp_path, loader=batches())


def test_structured_measures_before_each_level(tmp_path):
    module, passes = Encoder(), []

    def importance() -> None:
        passes.append(module.trainer.global_step)
        cap.measure_importance(module.pruner, module.model, batches(), loss=lambda batch: module.model(**batch).loss)

    callback = cap.PruningCallback(module.pruner, cap.Stepwise(sparsity=0.5, levels=[0.25, 0.5]), importance=importance)
    fit(module, callback, tmp_path, loader=batches())
    assert passes == [0, 5]
    assert callback.reached == 0.5


def test_second_order_measures_before_each_part_of_each_move(tmp_path):
    module, passes = Encoder(), []
    module.model = tiny_classifier().train()
    module.pruner = cap.attach(module.model, cap.SecondOrder(recomputations=2))

    def importance() -> None:
        passes.append(module.trainer.global_step)
        cap.measure_importance(module.pruner, module.model, batches(), loss=lambda batch: module.model(**batch).loss)

    plan = cap.Cubic(sparsity=0.75, flat_before=0.2, flat_after=0.3, initial_sparsity=0.5, n_prunings=2)
    callback = cap.PruningCallback(module.pruner, plan, importance=importance)
    fit(module, callback, tmp_path, loader=batches())
    assert passes == [2, 2, 7, 7]
    assert callback.reached == 0.75


@pytest.mark.parametrize(("unscales", "factor"), [(False, 1.0), (True, 8.0)], ids=["unscaled", "by the optimizer"])
def test_loss_scaler_is_taken_off_what_is_observed_and_put_on_the_regulariser(unscales, factor):
    from types import SimpleNamespace

    from cap.training.precision import handles_unscaling, loss_scale

    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert loss_scale(trainer) is None
    trainer.precision_plugin.scaler = SimpleNamespace(get_scale=lambda: 8.0)
    module = Foreign(cap.SoftMovement(final_sparsity=0.5, regularizer_weight=3.0))
    module.pruner.update_masks(0.5)
    optimizer = torch.optim.AdamW(module.net.parameters())
    optimizer._step_supports_amp_scaling = unscales  # as torch marks fused optimizers
    assert handles_unscaling(optimizer) is unscales
    measured = []
    module.pruner.observe_gradients = module.pruner.adjust_gradients = lambda *, scale: measured.append(scale)
    callback = cap.PruningCallback(module.pruner, cap.Cubic(sparsity=0.5))
    trainer.optimizers, module.trainer = [optimizer], trainer
    callback.on_train_start(trainer, module)
    callback.on_before_optimizer_step(trainer, module, optimizer)
    module.configure_gradient_clipping(optimizer, 0.0, "norm")
    assert measured == [8.0, factor]
    for scores in module.pruner.score_parameters():
        slope = scores.sigmoid() * (1 - scores.sigmoid()) / scores.numel() / len(module.pruner.score_parameters())
        torch.testing.assert_close(scores.grad, factor * 3.0 * slope)


class ByHand(Foreign):
    """Clip and step in the training step."""

    def __init__(self, pruner) -> None:
        super().__init__(pruner)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        nn.utils.clip_grad_norm_(self.parameters(), CLIP)
        optimizer.step()


CLIP = 1e-3


@pytest.mark.parametrize(
    ("new", "options"), [(Foreign, {"gradient_clip_val": CLIP}), (ByHand, {})], ids=["by the trainer", "by the module"]
)
def test_gradients_are_changed_after_they_are_clipped_and_once_a_step(tmp_path, new, options):
    module = new(cap.Admm(final_sparsity=0.5, interval=2))
    adjust, norms, pulls = module.pruner.adjust_gradients, [], []

    def measured(*, scale):
        before = [module.pruner.original(name).grad.clone() for name in ("0", "2")]
        adjust(scale=scale)
        after = [module.pruner.original(name).grad for name in ("0", "2")]
        norms.append(float(nn.utils.get_total_norm(before)))
        pulls.append(float(nn.utils.get_total_norm([b - a for a, b in zip(after, before, strict=True)])))

    module.pruner.adjust_gradients = measured
    trainer = fit(
        module, cap.PruningCallback(module.pruner, cap.OneShot(sparsity=0.5, flat_before=0.9)), tmp_path, **options
    )
    assert len(norms) == trainer.global_step == N_STEPS
    assert max(norms) <= CLIP * 1.001
    assert pulls[0] == 0.0
    assert max(pulls) > CLIP


def test_a_module_has_its_own_clipping_back_when_training_ends(tmp_path):
    def own(optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        calls.append(gradient_clip_val)

    calls = []
    plain, with_own = (Foreign(cap.Magnitude()) for _ in range(2))
    with_own.configure_gradient_clipping = own
    for module in (plain, with_own):
        fit(module, cap.PruningCallback(module.pruner, cap.Cubic(sparsity=0.5)), tmp_path)
    assert "configure_gradient_clipping" not in vars(plain)
    assert with_own.configure_gradient_clipping is own
    assert len(calls) == N_STEPS


def test_state_between_two_moves_comes_back(tmp_path):
    def new():
        module = Foreign(cap.SoftMovement(final_sparsity=0.5))
        return module, cap.PruningCallback(module.pruner, cap.Cubic(sparsity=0.5), every_n_steps=3)

    first, moved = new()
    trainer = fit(first, moved, tmp_path)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    second, callback = new()
    # As many steps as there were: everything is loaded, and nothing is trained.
    fit(second, callback, tmp_path, checkpoint=tmp_path / "end.ckpt")
    assert callback.state_dict() == moved.state_dict()
    assert second.pruner.state_dict() == first.pruner.state_dict()
    assert second.pruner.state_dict()["progress"] == 1.0
