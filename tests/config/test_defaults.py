"""The plain command takes what held at 97 %, as experiment=high_sparsity states it and docs/method.md shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

METHOD = (Path(__file__).parents[2] / "docs" / "method.md").read_text(encoding="utf-8")
COLUMNS = {
    "default": [],
    "`high_sparsity`": ["experiment=high_sparsity"],
    "`cap_movement`": ["experiment=cap_movement"],
}
SETTINGS = METHOD.partition("| key |")[2].partition("\n\n")[0]
TABLE = [line.strip("| ").split(" | ") for line in SETTINGS.splitlines()[2:]]

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
    "trainer": ["gradient_clip_val"],
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


@pytest.mark.parametrize("column", COLUMNS)
def test_the_page_shows_the_values_of_conf(compose_config, column):
    from omegaconf import OmegaConf

    from cap.config.check import check

    model = ["model=minilm"] if column == "`high_sparsity`" else []
    resolved = check(compose_config("task=sst2", *model, *COLUMNS[column])).resolved
    header = METHOD.partition("\n| key ")[2].partition("\n")[0].strip("| ").split(" | ")
    place = 1 + header.index(column)
    assert len(TABLE) > 20
    shown = {row[0].strip("`"): yaml.safe_load(row[place].replace("e-", ".0e-")) for row in TABLE}
    assert shown == {key: OmegaConf.select(OmegaConf.create(resolved), key) for key in shown}
