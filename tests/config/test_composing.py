from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from tests.composing import composed_by_hydra

OVERRIDES = {
    "none": [],
    "values": ["sparsity=0.97", "freeze=[embeddings,head]", "data_dir=null", "contrast.temperature=0.2"],
    "choices": ["task=mrpc", "pruning=structured", "contrast=none"],
    "an experiment": ["experiment=high_sparsity", "pruning=movement", "sparsity=0.9"],
    "an addition": ["+finetune.note=1", "batch_size=4"],
}


@pytest.mark.parametrize("overrides", OVERRIDES.values(), ids=OVERRIDES)
def test_a_copy_holds_what_hydra_composes(compose_config, overrides):
    expected = composed_by_hydra(*overrides)
    for _ in range(2):
        assert OmegaConf.to_container(compose_config(*overrides)) == OmegaConf.to_container(expected)


def test_what_a_test_writes_into_a_copy_is_in_no_other(compose_config):
    compose_config("task=sst2").sparsity = 0.1
    assert compose_config("task=sst2").sparsity != 0.1


def test_a_value_that_hydra_refuses_is_refused_alike(compose_config):
    from hydra.errors import ConfigCompositionException

    for compose in (compose_config, composed_by_hydra):
        with pytest.raises(ConfigCompositionException, match="spasity"):
            compose("spasity=0.5")
