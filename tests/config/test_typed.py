"""Keys that only a plus gets past the schema."""

from __future__ import annotations

import pytest

from cap.base.errors import InputError


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("+trainer.benchmark=true", r"no key 'trainer\.benchmark', and a plus adds none; .* trainer\.max_epochs"),
        ("+sparsty=0.5", r"no key 'sparsty', and a plus adds none; the nearest known ones are sparsity"),
    ],
)
def test_a_key_that_nothing_reads_is_refused(compose_config, added, said):
    from cap.config.check import check

    with pytest.raises(InputError, match=said):
        check(compose_config(added, "+finetune.note=1"))
    with pytest.raises(InputError, match=r"no key 'finetune\.note'"):
        check(compose_config(added, "+finetune.note=1"))


def test_parts_without_a_schema_take_what_their_class_takes(compose_config):
    from cap.config.check import check

    assert check(compose_config("+logger.wandb.group=a")).resolved["logger"]["wandb"]["group"] == "a"


@pytest.mark.parametrize(
    "keys", [["pruning=structured", "pruning.final_sparsity=0.3"], ["pruning=magnitude", "schedule.sparsity=0.3"]]
)
def test_what_follows_the_sparsity_is_not_set_to_another(compose_config, keys):
    from cap.config.check import check

    with pytest.raises(InputError, match=r"must be sparsity, which is 0\.5, got 0\.3; set sparsity alone"):
        check(compose_config("sparsity=0.5", *keys))
    check(compose_config("sparsity=0.3", *keys))
