"""``pruning.pattern=2:4`` from the door to the saved model."""

from __future__ import annotations

import json

import pytest


def test_run_leaves_a_model_all_of_whose_groups_are_in_the_pattern(compose_config, tiny_overrides, tmp_path):
    from transformers import AutoModelForSequenceClassification

    from cap.models.families import prunable_linears
    from cap.pruning.patterns import follows_pattern
    from cap.train import train

    pattern = ["pruning=magnitude", "pruning.pattern=2:4", "sparsity=0.5", "contrast=none"]
    train(compose_config(*tiny_overrides, *pattern, "teacher=none", "distill=none"))
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["status"] == "completed"
    assert record["config"]["pruning"]["pattern"] == "2:4"
    assert record["sparsity"]["prunable"] == 0.5
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert all(follows_pattern(linear.weight, 2, 4) for linear in prunable_linears(model).values())


@pytest.mark.parametrize("pruning", ["magnitude", "movement", "first_order", "random"])
def test_pattern_with_another_sparsity_is_refused_before_anything_is_loaded(compose_config, pruning):
    from cap.config import check
    from cap.errors import InputError

    with pytest.raises(InputError, match=r"sparsity must be 0\.5, got 0\.97"):
        check(compose_config(f"pruning={pruning}", "pruning.pattern=4:8", "sparsity=0.97"))


@pytest.mark.parametrize("pruning", ["soft_movement", "structured"])
def test_type_without_patterns_has_no_such_key(compose_config, pruning):
    from hydra.errors import ConfigCompositionException

    with pytest.raises(ConfigCompositionException, match=r"pruning\.pattern"):
        compose_config(f"pruning={pruning}", "pruning.pattern=2:4")
