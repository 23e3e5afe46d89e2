"""What only the class of a pruning type, and Lightning, can tell of a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

CONF = Path(__file__).parents[2] / "conf"


def ready(compose_config, *overrides: str):
    from cap.config.check import check
    from cap.training.ready import make_ready

    return make_ready(check(compose_config(*overrides)))


def message_of(compose_config, *overrides: str) -> str:
    from cap.base.errors import InputError

    with pytest.raises(InputError) as caught:
        ready(compose_config, *overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["pruning=soft_movement", "pruning.score_learning_rate=0"],
            "pruning.score_learning_rate must be > 0, got 0.0",
        ),
        (
            ["pruning=soft_movement", "pruning.score_learning_rate=fast"],
            "pruning.score_learning_rate must be a number, got 'fast'",
        ),
        (["pruning=platon", "pruning.window=0"], "pruning.window must be a whole number of at least 1, got 0"),
        (["pruning=platon", "pruning.window=fast"], "pruning.window must be a whole number of at least 1, got 'fast'"),
        (["pruning=platon", "pruning.uncertainty_decay=1"], "pruning.uncertainty_decay is what a window leaves of an"),
        (["pruning=second_order", "pruning.block_size=0"], "pruning.block_size must be at least 1, got 0"),
        (
            ["pruning=second_order", "pruning.damping=0"],
            "pruning.damping keeps blocks of the Fisher invertible and must",
        ),
        (
            ["pruning=second_order", "pruning.damping_mode=both"],
            "pruning.damping_mode must be one of relative, absolute, got 'both'",
        ),
        (
            ["pruning=static_scores", "pruning.scope=layer"],
            "pruning.scope must be one of type, matrix, global, got 'layer'",
        ),
        (
            ["pruning=static_scores", "pruning.score_learning_rate=0"],
            "pruning.score_learning_rate must be > 0, got 0.0",
        ),
        (["pruning=movement", "pruning.scope=layer"], "pruning.scope must be one of matrix, global, got 'layer'"),
        (
            ["pruning=soft_movement", "pruning.threshold=fixed"],
            "pruning.threshold must be one of target, published, got 'fixed'",
        ),
        (["pruning=soft_movement", "pruning.threshold=published"], "pruning.score_init must be zero, got 'magnitude'"),
        (
            ["pruning=soft_movement", "pruning.score_init=one"],
            "pruning.score_init must be one of zero, magnitude, got 'one'",
        ),
        (
            ["pruning=soft_movement", "sparsity=0.999"],
            "sparsity can be at most 0.995, got 0.999; use pruning=movement for more",
        ),
        (["schedule=oneshot", "schedule.flat_before=0.0"], "needs schedule.flat_before > 0, got 0"),
        (
            ["pruning=structured", "schedule=cubic"],
            "must be stepwise or oneshot, or have schedule.n_prunings, got cubic; set schedule=stepwise",
        ),
        (["pruning=structured", "pruning.importance=taylor"], "pruning.importance must be one of gradient, random"),
        (["pruning=structured", "pruning.importance_rows=0"], "must be at least 1, or null for all, got 0"),
        (["pruning=structured", "pruning.importance_rows=many"], "must be a whole number, got 'many'"),
        (["experiment=cap_structured", "pruning=movement"], "pruning.importance does not belong to pruning=movement"),
        (["pruning=magnitude", "pruning.pattern=24"], "pruning.pattern must be a text, got 24"),
        (["pruning=magnitude", "pruning.pattern=[2,4]"], "pruning.pattern must be a text, got [2, 4]"),
        (["trainer.precision=fp16x"], "trainer.* must be what Lightning's Trainer takes"),
        (["trainer.precision=transformer-engine"], "trainer.* must be what Lightning's Trainer takes"),
        (["trainer.accelerator=abacus"], "trainer.* must be what Lightning's Trainer takes"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_broken_rule_is_refused_with_what_was_required_and_given(compose_config, overrides, expected):
    assert expected in message_of(compose_config, *overrides)


def test_pruning_type_and_lightning_are_asked_at_once(compose_config):
    message = message_of(
        compose_config,
        "pruning=soft_movement",
        "pruning.score_init=one",
        "pruning.threshold=fixed",
        "trainer.precision=fp16x",
    )
    assert len(message.splitlines()) == 3


def test_what_the_values_show_is_said_before_torch_is_asked(compose_config):
    assert (
        message_of(compose_config, "pruning=soft_movement", "batch_size=0", "pruning.threshold=fixed")
        == "batch_size must be > 0, got 0"
    )


def test_weight_that_was_looked_up_is_the_pruners(compose_config):
    assert (
        ready(compose_config, "experiment=cap_soft_movement", "task=mnli", "sparsity=0.97").pruner.regularizer_weight
        == 680.0
    )


def test_oneshot_magnitude_needs_no_flat_phase(compose_config):
    assert ready(compose_config, "pruning=magnitude", "schedule=oneshot", "schedule.flat_before=0.0").pruner


def test_structured_pruning_takes_a_cubic_schedule_with_jumps(compose_config):
    plan = ready(compose_config, "pruning=structured", "schedule=cubic", "schedule.n_prunings=4").plan
    assert len(plan.levels_reached) == 4


@pytest.mark.parametrize(
    "overrides",
    [
        *(
            [f"{group.name}={file.stem}"]
            for group in sorted(CONF.iterdir())
            if group.is_dir()
            for file in sorted(group.glob("*.yaml"))
        ),
        ["experiment=demo", "debug=fast"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_every_choice_of_every_group_passes_the_rules(compose_config, overrides):
    from cap.config.check import check

    # What is chosen is what was checked.
    assert ready(compose_config, *overrides).hash == check(compose_config(*overrides)).hash
