"""What the plain command takes is what held at 97 %, as experiment=high_sparsity states it."""

from __future__ import annotations

import pytest

# They differ in the jumps, which belong to the recipe's length, and in second order, which needs memory for its blocks.
SHARED = {
    "": ["student_init", "batch_size", "learning_rate", "learning_rate_start", "learning_rate_floor", "weight_decay"],
    "schedule": ["warmup", "flat_before", "flat_after", "rewind", "rewind_warmup", "restart_optimizer"],
    "contrast": [
        "reduction",
        "unsupervised_weight",
        "supervised_weight",
        "ignore_same_label",
        "extra_examples",
        "snapshot_count",
    ],
    "pruning": ["scope", "every_n_steps"],
}


@pytest.mark.parametrize("part", SHARED)
def test_the_plain_command_takes_what_was_measured(compose_config, part):
    from cap.config.check import check

    given = ["task=sst2", "model=minilm", "sparsity=0.97"]
    recipe = check(compose_config("experiment=high_sparsity", "pruning=first_order", *given)).resolved
    plain = check(compose_config(*given)).resolved
    assert plain["pruning"]["name"] == "first_order"
    assert plain["freeze"] == recipe["freeze"] == ["embeddings"]
    values = [of[part] if part else of for of in (plain, recipe)]
    assert {key: values[0][key] for key in SHARED[part]} == {key: values[1][key] for key in SHARED[part]}


@pytest.mark.parametrize(
    ("given", "is_on"), [([], False), (["contrast=cap"], True)], ids=["as it stands", "where it is asked for"]
)
def test_the_recipe_leaves_contrast_out(compose_config, given, is_on):
    contrast = compose_config("experiment=high_sparsity", "task=sst2", *given).contrast
    assert [contrast.pretrained, contrast.snapshots, contrast.finetuned] == [is_on] * 3


def test_the_long_recipe_has_contrast(compose_config):
    contrast = compose_config("experiment=high_sparsity_long", "task=sst2").contrast
    assert [contrast.pretrained, contrast.snapshots, contrast.finetuned] == [True] * 3
