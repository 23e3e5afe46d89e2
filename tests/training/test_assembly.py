from __future__ import annotations

import pytest


def test_pass_beyond_the_memory_budget_is_refused_before_anything_is_trained(compose_config, tiny_overrides, tmp_path):
    from cap.base.errors import InputError
    from cap.train import train

    with pytest.raises(InputError, match=r"pruning=second_order needs .* set memory\.budget_gb=0\.1"):
        train(compose_config(*tiny_overrides, "pruning=second_order", "memory.budget_gb=0"))
    assert not (tmp_path / "cache" / "teachers").exists()


@pytest.mark.parametrize(("given", "n"), [("12", 12), ("0", 0), ("0.25", 8), ("0.001", 1)])
def test_extra_examples_are_a_number_or_a_fraction_of_the_training_rows(compose_config, given, n):
    from cap.config.check import check
    from cap.models.pooled import PooledModel
    from cap.training.assembly import _contrast
    from tests.models.tiny_models import tiny_classifier

    checked = check(compose_config(f"contrast.extra_examples={given}"))
    contrast = _contrast(checked, PooledModel(tiny_classifier(), "mean"), None, n_examples=32)
    assert contrast is not None
    assert contrast.extra_examples == n


def test_contrast_and_distillation_are_what_the_keys_say(compose_config):
    from cap.config.check import check
    from cap.models.pooled import PooledModel
    from cap.training.assembly import _contrast, optimisation_of
    from cap.training.contrast import Contrast
    from tests.models.tiny_models import tiny_classifier

    student = PooledModel(tiny_classifier(), "mean")
    given = [
        "contrast.temperature=0.3",
        "contrast.extra_examples=5",
        "contrast.anchor_dropout=true",
        "contrast.unsupervised_weight=0.25",
        "contrast.supervised_weight=0.75",
        "contrast.snapshots=false",
        "seed=3",
    ]
    for reduction, ignores in (("anchors", True), ("pairs", False)):
        own = [f"contrast.reduction={reduction}", f"contrast.ignore_same_label={str(ignores).lower()}"]
        checked = check(compose_config(*given, *own))
        assert _contrast(checked, student, None, n_examples=32) == Contrast(
            sources=("pretrained",),  # without a teacher there is no FiC
            unsupervised_weight=0.25,
            supervised_weight=0.75,
            temperature=0.3,
            extra_examples=5,
            reduction=reduction,
            anchor_dropout=student.head_dropout(),
            seed=3,
            ignore_same_label=ignores,
        )
    assert student.head_dropout() > 0
    without = check(compose_config("contrast.anchor_dropout=false"))
    assert _contrast(without, student, None, n_examples=32).anchor_dropout == 0.0
    optimisation = optimisation_of(check(compose_config("weight_decay=0.125", "learning_rate=2e-3")))
    assert (optimisation.weight_decay, optimisation.learning_rate) == (0.125, 2e-3)


def test_distillation_is_what_the_keys_say(compose_config, tiny_overrides):
    from cap.config.check import check
    from cap.training.assembly import _distill_settings
    from cap.training.preparation import prepare

    given = ["distill.temperature=5.5", "distill.weight=0.75", "distill.ce_weight=0.25"]
    checked = check(compose_config(*tiny_overrides, *given))
    settings = _distill_settings(checked, prepare(checked))
    assert (settings.temperature, settings.weight, settings.ce_weight) == (5.5, 0.75, 0.25)


def test_rows_and_masks_follow_the_seed_and_processes_share_the_memory(compose_config, tiny_overrides):
    from cap.config.check import check
    from cap.objectives.memory import Memory
    from cap.training.assembly import new_module
    from cap.training.preparation import prepare
    from cap.training.ready import make_ready

    def of_seed(seed: int) -> tuple[list[int], list[bool], float]:
        own = ["pruning=random", "teacher=none", "distill=none", f"seed={seed}", "memory.budget_gb=1"]
        ready = make_ready(check(compose_config(*tiny_overrides, *own, "trainer.devices=2", "trainer.strategy=ddp")))
        prepared = prepare(ready)
        memory = Memory(n_examples=prepared.datamodule.n_train, budget=prepared.budget)
        new_module(ready, prepared, None, memory, warn=print)
        ready.pruner.update_masks(0.5)
        rows = [*prepared.datamodule.train_dataloader().batch_sampler]
        mask = next(iter(ready.pruner.masks.values()))
        return rows, mask.flatten().tolist(), prepared.budget._limit

    first, second = of_seed(1), of_seed(2)
    assert first[0] != second[0]
    assert first[1] != second[1]
    assert first == of_seed(1)
    assert first[2] == 2**30 / 2
