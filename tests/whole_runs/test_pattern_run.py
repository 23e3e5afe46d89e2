"""``pruning.pattern=2:4`` from the door to the saved model."""

from __future__ import annotations

import json
import re

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


@pytest.mark.parametrize(("pattern", "goes"), [("2:4", "2 of every 4"), ("4:8", "4 of every 8")])
@pytest.mark.parametrize(
    "pruning", ["magnitude", "movement", "first_order", "platon", "admm", "second_order", "random"]
)
def test_pattern_with_another_sparsity_is_refused_with_the_one_that_works(compose_config, pruning, pattern, goes):
    from cap.base.errors import InputError
    from cap.config.check import check
    from cap.training.ready import make_ready

    expected = f"pruning.pattern={pattern} prunes {goes} weights, so sparsity must be 0.5, got 0.97; set sparsity=0.5"
    with pytest.raises(InputError, match=re.escape(expected)):
        make_ready(check(compose_config(f"pruning={pruning}", f"pruning.pattern={pattern}", "sparsity=0.97")))


@pytest.mark.parametrize("pruning", ["magnitude", "movement", "first_order", "platon", "second_order", "random"])
def test_sparsity_is_not_said_twice(compose_config, pruning):
    assert "final_sparsity" not in compose_config(f"pruning={pruning}").pruning


@pytest.mark.parametrize("pruning", ["soft_movement", "structured"])
def test_type_without_patterns_has_no_such_key(compose_config, pruning):
    from hydra.errors import ConfigCompositionException

    with pytest.raises(ConfigCompositionException, match=r"pruning\.pattern"):
        compose_config(f"pruning={pruning}", "pruning.pattern=2:4")
