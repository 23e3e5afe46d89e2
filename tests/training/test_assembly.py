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
