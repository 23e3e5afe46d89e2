from __future__ import annotations

from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "conf" / "experiment"
PUBLISHED = sorted(path.stem for path in EXPERIMENTS.glob("cap_*.yaml"))


def message_of(compose_config, *overrides: str) -> str:
    from cap.base.errors import InputError
    from cap.config.check import check

    with pytest.raises(InputError) as caught:
        check(compose_config(*overrides))
    return str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["sparsity=97"],
            "sparsity is the fraction of weights pruned and lies in [0, 1), got 97.0; did you mean 0.97?",
        ),
        (["sparsity=-0.1"], "sparsity is the fraction of weights pruned and lies in [0, 1), got -0.1"),
        (["sparsity=1"], "sparsity is the fraction of weights pruned and lies in [0, 1), got 1.0"),
        (["batch_size=0"], "batch_size must be > 0, got 0"),
        (["batch_size=-4"], "batch_size must be > 0, got -4"),
        (["learning_rate=-1"], "learning_rate must be >= 0, got -1.0"),
        (["finetune.learning_rate=-1"], "finetune.learning_rate must be > 0, got -1.0"),
        (["contrast.temperature=0"], "contrast.temperature must be > 0, got 0.0"),
        (["distill.temperature=-2"], "distill.temperature must be > 0, got -2.0"),
        (["max_length=0"], "max_length must be > 0, got 0"),
        (["contrast.pool=max"], "contrast.pool must be one of auto, cls, mean, got 'max'"),
        (["contrast.extra_examples=-1"], "a whole number of training rows, or a fraction of them in (0, 1), got -1"),
        (["contrast.extra_examples=1.5"], "or a fraction of them in (0, 1), got 1.5"),
        (["contrast.extra_examples=1.0"], "or a fraction of them in (0, 1), got 1.0"),
        (["contrast.extra_examples=many"], "or a fraction of them in (0, 1), got many"),
        (["contrast.unsupervised_weight=-1"], "contrast.unsupervised_weight must be >= 0, got -1.0"),
        (
            ["contrast.reduction=anchors", "contrast.supervised_weight=10"],
            "contrast.supervised_weight must be at most 2 with contrast.reduction=anchors, got 10",
        ),
        (["experiment=cap_structured", "contrast.reduction=anchors"], "set contrast.supervised_weight=null for the"),
        (["contrast.reduction=sum"], "contrast.reduction must be one of pairs, anchors, got 'sum'"),
        (["student_init=random"], "student_init must be one of auto, pretrained, teacher, got 'random'"),
        (
            ["freeze=[encoder]"],
            "out of embeddings, pooler, head, got ['encoder']; the encoder layers, which are pruned,",
        ),
        (["freeze=[embeddings,heads]"], "out of embeddings, pooler, head, got ['embeddings', 'heads']"),
        (
            ["freeze=[head]", "student_init=pretrained"],
            "with student_init=pretrained it starts from random weights; set student_init=teacher",
        ),
        (["freeze=[embeddings,pooler,head]", "student_init=pretrained"], "keeps an untrained task head"),
        (["trainer.devices=0"], "trainer.devices is a number of processes and must be at least 1, got 0"),
        (["trainer.num_nodes=0"], "trainer.num_nodes is a number of processes and must be at least 1, got 0"),
        (["trainer.devices=2", "trainer.strategy=fsdp"], "trainer.strategy must be auto, ddp or"),
        (["trainer.max_epochs=-1"], "trainer.max_epochs or trainer.max_steps must end the run, but both are -1"),
        (["trainer.max_steps=0"], "trainer.max_steps must be > 0, or -1"),
        (["distill.weight=0", "distill.ce_weight=0"], "must not both be 0"),
        (["teacher=none", "distill.ce_weight=0"], "teacher=none leaves only the labels"),
        (["teacher=none", "student_init=teacher"], "student_init=teacher needs a teacher"),
        (["distill.hidden_weight=-1"], "distill.hidden_weight must be >= 0, got -1.0"),
        (["distill.hidden=mean"], "distill.hidden must be one of pooled, tokens, got 'mean'"),
        (
            ["teacher=none", "distill.hidden_weight=1"],
            "distill.hidden_weight=1 compares hidden states with a teacher's",
        ),
        (["distill.snapshot_weight=-1"], "distill.snapshot_weight must be >= 0, got -1.0"),
        (
            ["distill.snapshot_weight=1", "contrast.snapshot_count=0"],
            "distill.snapshot_weight=1 distils from snapshots, which need contrast.snapshot_count > 0, got 0",
        ),
        (
            ["distill.snapshot_weight=1", "schedule=stepwise", "contrast.snapshot_count=0"],
            "distils from snapshots, which need contrast.snapshot_count > 0, got 0; change that",
        ),
        (["pruning.every_n_steps=0"], "pruning.every_n_steps must be a whole number of at least 1, got 0"),
        (["pruning.every_n_steps=true"], "pruning.every_n_steps must be a whole number of at least 1, got Tr"),
        (
            ["pruning.every_n_steps=null"],
            "pruning.every_n_steps is null, which moves masks at the jumps of the schedule alone, but this one rises",
        ),
        (
            ["pruning.freezes=null"],
            "pruning.freezes lists what keeps its weights where freeze=null, out of embeddings,",
        ),
        (["pruning.freezes=[encoder]"], "pooler, head, got ['encoder']; write freezes: [embeddings], or freezes: []"),
        (["schedule.flat_before=0.6", "schedule.flat_after=0.5"], "must leave room for the pruning itself"),
        (["schedule.warmup=soon"], "schedule.warmup must be a number, got 'soon'"),
        (["schedule.rewind=each"], "schedule.rewind=each needs prunings with steps between them"),
        (["schedule.rewind=last", "schedule.flat_after=0.0"], "schedule.rewind=last leaves no steps"),
        (["schedule.rewind=first"], "schedule.rewind must be one of none, last, each, got 'first'"),
        (["schedule.restart_optimizer=1"], "schedule.restart_optimizer must be true or false, got 1"),
        (["schedule.n_prunings=2.5"], "schedule.n_prunings must be a whole number, got 2.5"),
        (
            ["schedule.n_prunings=8", "trainer.max_steps=10"],
            "schedule.n_prunings must be at most 6 in a run of 10 steps",
        ),
        (["schedule.initial_sparsity=0.5"], "schedule.initial_sparsity is where the rise to sparsity begins"),
        (["learning_rate_floor=1.5"], "learning_rate_floor is a fraction of learning_rate and lies in [0, 1], got 1.5"),
        (
            ["learning_rate_floor=-0.1"],
            "learning_rate_floor is a fraction of learning_rate and lies in [0, 1], got -0.1",
        ),
        (["learning_rate_start=2"], "learning_rate_start is a fraction of learning_rate and lies in [0, 1], got 2.0"),
        (["schedule=stepwise", "schedule.levels=[0.5,0.3]"], "schedule.levels must rise and end at sparsity=0.5"),
        (
            ["schedule=stepwise", "schedule.levels=0.5"],
            "must be a list of numbers, like [0.5,0.9], got 0.5",
        ),
        (["schedule=stepwise", "schedule.levels=[0.1,abc,0.5]"], "must be a list of numbers, like [0.5,0.9], got [0.1"),
        (["experiment=cap_structured", "schedule=oneshot"], "schedule.levels does not belong to schedule=oneshot"),
        (
            ["schedule=stepwise", "schedule.restart_optimizer=no"],
            "schedule.restart_optimizer must be true or false, got 'no'",
        ),
        (["schedule=stepwise", "schedule.epochs_per_level=true"], "epochs_per_level must be a whole number, got True"),
        (["schedule.warmup=true"], "schedule.warmup must be a number, got True"),
        (["trainer.limit_train_batches=0"], "trainer.limit_train_batches must be a fraction of an epoch's batches in"),
        (["trainer.limit_train_batches=null"], "or a whole number of them, at least 1, got None; 1.0 stands for all"),
        (["trainer.limit_train_batches=some"], "a whole number of them, at least 1, got some"),
        (["trainer.limit_val_batches=1.5"], "trainer.limit_val_batches must be a fraction of an epoch's batches in"),
        (["trainer.val_check_interval=0"], "trainer.val_check_interval must be a fraction of an epoch's batches in"),
        (["trainer.val_check_interval=0.0"], "a whole number of them, at least 1, got 0.0"),
        (["trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch must be at least 1, or null for"),
        (["trainer.gradient_clip_val=0"], "trainer.gradient_clip_val must be > 0 or null, got 0"),
        (["memory.budget_gb=-1"], "memory.budget_gb must be >= 0, got -1.0"),
        (["data.max_train_rows=0"], "data.max_train_rows must be > 0 or null, got 0"),
        (["data.max_unlabelled_rows=0"], "data.max_unlabelled_rows must be > 0 or null, got 0"),
        (["task=squad", "data.unlabelled=a.csv"], "got data.unlabelled=a.csv with task=squad, whose answers are spans"),
        (["task=squad", "data.keep_unlabelled=true"], "got data.keep_unlabelled=true with task=squad"),
        (
            ["data.unlabelled=a.csv", "teacher=none", "contrast=none"],
            "got data.unlabelled=a.csv with teacher=none, distill.weight=0.9 and no unsupervised contrast",
        ),
        (["data.unlabelled=a.csv", "distill=none", "contrast=none"], "teacher=auto, distill.weight=0 and no"),
        (
            ["data.keep_unlabelled=true", "distill=none", "contrast.unsupervised_weight=0"],
            "got data.keep_unlabelled=true with teacher=auto, distill.weight=0 and no unsupervised contrast",
        ),
        (
            ["data.unlabelled=a.csv", "teacher=none", "contrast.pretrained=false", "contrast.snapshots=false"],
            "and no unsupervised contrast; set distill=logits with a teacher, or contrast=cap, or leave it out",
        ),
        (["seed=4294967296"], "seed must lie between 0 and 4294967295 (2**32 - 1), got 4294967296; choose another"),
        (["seed=-1"], "seed must lie between 0 and 4294967295 (2**32 - 1), got -1; choose another"),
        (["learning_rate=inf"], "learning_rate must be a finite number, got inf"),
        (["weight_decay=inf"], "weight_decay must be a finite number, got inf"),
        (
            ["pruning=soft_movement", "pruning.score_learning_rate=inf"],
            "pruning.score_learning_rate must be a finite number, got inf",
        ),
        (
            ["pruning=soft_movement", "pruning.regularizer_weight=nan"],
            "pruning.regularizer_weight must be a finite number, got nan",
        ),
        (["memory.budget_gb=inf"], "memory.budget_gb must be a finite number, got inf"),
        (["trainer.precision=bf16-true"], "in half precision, got bf16-true; use bf16-mixed"),
        (["trainer.gradient_clip_val=inf"], "trainer.gradient_clip_val must be a finite number, got inf"),
        (["checkpoint.every_n_minutes=0"], "checkpoint.every_n_minutes must be > 0 or null, got 0.0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_broken_rule_is_refused_with_what_was_required_and_given(compose_config, overrides, expected):
    assert expected in message_of(compose_config, *overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["contrast=none"],
        ["contrast.snapshots=false"],
        ["schedule=stepwise", "contrast.snapshot_count=1"],
        ["schedule=oneshot"],
        ["distill=none"],
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_snapshots_are_distilled_from_wherever_the_schedule_can_take_them(compose_config, overrides):
    from cap.config.check import check

    assert check(compose_config(*overrides, "distill.snapshot_weight=1")).hash


def test_all_broken_rules_are_reported_at_once(compose_config):
    message = message_of(compose_config, "sparsity=97", "batch_size=0", "contrast.temperature=-1")
    assert len(message.splitlines()) == 3


WEIGHTS = {
    "": (0.03, 0.1),
    "contrast.reduction=pairs": (0.1, 10.0),
    "contrast.reduction=pairs contrast.supervised_weight=0.5": (0.1, 0.5),
    "contrast.unsupervised_weight=0": (0.0, 0.1),
    "experiment=cap_structured": (0.3, 3.0),
    "contrast=none": (0.03, 0.1),
    "experiment=high_sparsity contrast=cap": (0.03, 0.1),
    "experiment=high_sparsity contrast=cap contrast.reduction=pairs": (0.1, 10.0),
}


@pytest.mark.parametrize(("overrides", "expected"), WEIGHTS.items(), ids=WEIGHTS)
def test_weights_of_contrast_are_those_of_the_reduction_unless_they_are_given(compose_config, overrides, expected):
    from cap.config.check import check

    checked = check(compose_config(*overrides.split()))
    keys = ("unsupervised_weight", "supervised_weight")
    assert tuple(getattr(checked.config.contrast, key) for key in keys) == expected
    assert tuple(checked.resolved["contrast"][key] for key in keys) == expected


def test_hash_is_that_of_the_weights_however_they_were_said(compose_config):
    from cap.config.check import check

    given = [[], ["contrast.supervised_weight=0.1"], ["contrast.default_weights.pairs.supervised=1"]]
    assert len({check(compose_config(*overrides)).hash for overrides in given}) == 1


FREEZES = {
    **{
        f"pruning={name}": ["embeddings"]
        for name in (
            *("movement", "soft_movement", "magnitude", "first_order", "platon", "admm", "second_order", "random"),
            *("static_scores", "keep_zeros"),
        )
    },
    "pruning=structured": [],
    "pruning=layers": [],
    "pruning=structured freeze=[embeddings]": ["embeddings"],
    "pruning=movement freeze=[]": [],
    "freeze=[pooler,embeddings,pooler]": ["embeddings", "pooler"],
    "freeze=[head,pooler,embeddings] student_init=teacher": ["embeddings", "pooler", "head"],
}


@pytest.mark.parametrize(("overrides", "expected"), FREEZES.items(), ids=FREEZES)
def test_what_is_frozen_follows_from_the_pruning_type_unless_it_is_given(compose_config, overrides, expected):
    from cap.config.check import check

    checked = check(compose_config(*overrides.split()))
    assert (checked.config.freeze, checked.resolved["freeze"]) == (expected, expected)


STARTS = {
    "": "teacher",
    "pruning=structured": "pretrained",
    "pruning=structured student_init=auto": "teacher",
    "student_init=pretrained": "pretrained",
    "teacher=none distill=none": "pretrained",
}


@pytest.mark.parametrize(("overrides", "expected"), STARTS.items(), ids=STARTS)
def test_student_starts_at_its_teacher_where_there_is_one_unless_told_otherwise(compose_config, overrides, expected):
    from cap.config.check import check

    checked = check(compose_config(*overrides.split()))
    assert (checked.config.student_init, checked.resolved["student_init"]) == (expected, expected)


def test_what_a_pruning_type_freezes_is_written_down_as_freeze_alone(compose_config):
    from cap.config.check import check

    assert "freezes" not in check(compose_config()).resolved["pruning"]


def test_hash_is_that_of_what_is_frozen_however_it_was_said(compose_config):
    from cap.config.check import check

    wanted = ([], ["freeze=null"], ["freeze=[embeddings]"], ["freeze=[]"])
    hashes = [check(compose_config("pruning=magnitude", *overrides)).hash for overrides in wanted]
    assert hashes[0] == hashes[1] == hashes[2] != hashes[3]


@pytest.mark.parametrize(
    "overrides",
    [
        ["contrast=none"],
        ["distill=none"],
        ["teacher=none"],
        ["teacher=none", "contrast.snapshots=false"],
        ["contrast=none", "distill=none", "distill.hidden_weight=1"],
        ["contrast=none", "distill=none", "distill.snapshot_weight=1"],
    ],
    ids=" ".join,
)
def test_one_way_to_learn_from_rows_without_a_label_is_enough(compose_config, overrides):
    from cap.config.check import check

    assert check(compose_config("data.unlabelled=a.csv", *overrides)).hash


@pytest.mark.parametrize(
    "override",
    ["output_dir=a", "cache_dir=b", "logger=wandb", "traceback=true", "overwrite=true", "resume=true", "dry_run=true"],
)
def test_hash_ignores_what_does_not_change_the_result(compose_config, override):
    from cap.config.check import check

    assert check(compose_config(override)).hash == check(compose_config()).hash


def test_a_key_that_is_null_does_not_change_the_hash(compose_config):
    from dataclasses import replace

    from cap.config.check import check

    checked = check(compose_config())
    newer = {"key": None, "group": {"key": None}, "trainer": {**checked.resolved["trainer"], "key": None}}
    assert checked.resolved["data_dir"] is None
    assert replace(checked, resolved=checked.resolved | newer).hash == checked.hash
    without = {key: value for key, value in checked.resolved.items() if key != "data_dir"}
    assert replace(checked, resolved=without).hash == checked.hash


def test_what_is_not_finite_is_named_once(compose_config):
    assert message_of(compose_config, "learning_rate=nan") == "learning_rate must be >= 0, got nan"


def test_highest_seed_is_taken(compose_config):
    from cap.config.check import check

    assert check(compose_config("seed=4294967295")).config.seed == 2**32 - 1


@pytest.mark.parametrize(
    "override", ["sparsity=0.6", "seed=2", "pruning=movement", "data.max_train_rows=10", "teacher=none"]
)
def test_hash_follows_what_changes_the_result(compose_config, override):
    from cap.config.check import check

    assert check(compose_config(override)).hash != check(compose_config()).hash


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("cap_movement", {"pruning": "movement"}),
        ("cap_soft_movement", {"pruning": "soft_movement"}),
    ],
    ids=["movement", "soft movement"],
)
def test_published_recipe_holds_the_published_numbers(compose_config, recipe, expected):
    from cap.config.check import check

    checked = check(compose_config(f"experiment={recipe}", "task=qqp", "sparsity=0.97"))
    c = checked.config
    assert checked.pruning_name == expected["pruning"]
    assert (c.batch_size, c.learning_rate, c.weight_decay, c.trainer.max_epochs, c.max_length) == (
        32,
        3e-5,
        0.0,
        10,
        128,
    )
    assert (c.distill.ce_weight, c.distill.weight, c.distill.temperature) == (0.1, 0.9, 2.0)
    assert (c.contrast.unsupervised_weight, c.contrast.supervised_weight, c.contrast.temperature) == (0.1, 10.0, 0.1)
    assert (c.contrast.extra_examples, c.contrast.reduction, c.contrast.anchor_dropout) == (4096, "pairs", True)
    assert (checked.plan.warmup, c.schedule["flat_before"], c.schedule["flat_after"]) == (0.1, 0.2, 0.3)
    assert c.pruning["score_learning_rate"] == 1e-2


def test_transfer_of_a_sparse_model_falls_to_a_hundredth_of_the_published_rate(compose_config):
    from cap.config.check import check
    from cap.training.assembly import optimisation_of

    checked = check(compose_config("experiment=obert_transfer", "task=qqp"))
    c = checked.config
    assert (checked.pruning_name, c.student_init, c.trainer.max_epochs, c.freeze) == ("keep_zeros", "pretrained", 8, [])
    assert (c.distill.ce_weight, c.distill.weight, c.distill.temperature) == (0.0, 1.0, 5.5)
    assert set(checked.plan.over(80)(step) for step in range(80)) == {0.97}
    rate = optimisation_of(checked).over(80)
    assert c.learning_rate * rate(0) == pytest.approx(1.5e-4)
    assert c.learning_rate * rate(80) == pytest.approx(1.5e-6)


@pytest.mark.parametrize("recipe", ["experiment=cap_structured", "pruning=structured"])
def test_levels_of_structured_pruning_are_trainings_of_their_own_as_published(compose_config, recipe):
    from cap.config.check import check

    plan = check(compose_config(recipe, "schedule.warmup=0.1")).plan
    assert (plan.rewind, plan.restart_optimizer, plan.warmup, plan.rewind_warmup) == ("each", True, 0.1, 0.1)


def test_structured_pruning_brings_levels_of_ten_points_and_two_epochs(compose_config):
    from cap.config.check import check

    checked = check(compose_config("pruning=structured", "sparsity=0.5"))
    assert checked.plan.resolved_levels == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert checked.config.trainer.max_epochs == 10


def test_a_schedule_that_is_typed_wins_over_the_one_that_a_pruning_type_brings(compose_config):
    from cap.config.check import check

    checked = check(compose_config("pruning=structured", "schedule=oneshot"))
    assert type(checked.plan).__name__ == "OneShot"


def test_the_length_of_rows_is_said_once(compose_config):
    from cap.config.check import check

    first, second = (check(compose_config("task=squad", f"{key}=200")) for key in ("max_length", "task.max_length"))
    assert first.resolved["task"]["max_length"] == first.resolved["max_length"] == 200
    assert first.hash == second.hash


def test_levels_that_set_the_length_of_the_run_are_said(compose_config, caplog):
    import logging

    from cap.config.check import check

    caplog.set_level(logging.INFO, logger="cap")
    check(compose_config("pruning=structured", "sparsity=0.5", "trainer.max_epochs=3"))
    assert "the schedule takes 10 epochs (schedule.epochs_per_level), not trainer.max_epochs=3" in caplog.text


def test_overfitting_takes_the_trainers_epochs_whatever_the_pruning_type(compose_config):
    from cap.config.check import check

    assert check(compose_config("pruning=structured", "debug=overfit")).config.trainer.max_epochs == 30


KINDS = {
    "a flag": (bool, "yes", "true or false"),
    "a text": (str, True, "a text"),
    "a text or null": (str | None, 1.5, "a text"),
    "a whole number": (int, 1.0, "a whole number"),
    "a whole number, not a flag": (int, False, "a whole number"),
    "a number or null": (float | None, "much", "a number"),
    "a list": (tuple[float, ...] | list[float] | None, "a", "a list of numbers, like [0.5,0.9]"),
    "a number or a text": (float | str, True, "a number or a text"),
}


@pytest.mark.parametrize(("kind", "value", "required"), KINDS.values(), ids=KINDS)
def test_any_class_that_conf_chooses_has_its_annotations_checked(monkeypatch, kind, value, required):
    from cap.config import rules as config_rules

    class Chosen:
        def __init__(self, key) -> None: ...

    Chosen.__init__.__annotations__["key"] = kind
    monkeypatch.setattr(config_rules, "get_class", lambda name: Chosen)
    assert config_rules.type_problems("part", {"_target_": "a.Chosen", "key": value}) == [
        f"part.key must be {required}, got {value!r}"
    ]


@pytest.mark.parametrize(
    ("overrides", "weight"),
    [
        (["experiment=cap_soft_movement", "task=qqp", "sparsity=0.9"], 190.0),
        (["experiment=cap_soft_movement", "task=qqp", "sparsity=0.97"], 550.0),
        (["experiment=cap_soft_movement", "task=mnli", "sparsity=0.9"], 290.0),
        (["experiment=cap_soft_movement", "task=mnli", "sparsity=0.97"], 680.0),
        (["experiment=cap_soft_movement_squad", "sparsity=0.9"], 600.0),
        (["experiment=cap_soft_movement_squad", "sparsity=0.97"], 2000.0),
        (["experiment=cap_soft_movement", "task=mnli", "sparsity=0.9", "pruning.regularizer_weight=300"], 300.0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_published_threshold_takes_the_weight_published_for_task_and_target(compose_config, overrides, weight):
    from cap.config.check import check

    checked = check(compose_config(*overrides))
    assert checked.pruning["regularizer_weight"] == checked.resolved["pruning"]["regularizer_weight"] == weight
    assert checked.resolved["pruning"]["regularizer_weights"] is None
    assert checked.notes == ()


@pytest.mark.parametrize("overrides", [["task=sst2", "sparsity=0.97"], ["task=qqp", "sparsity=0.8"]], ids=" ".join)
def test_weight_that_nobody_has_published_is_noted(compose_config, overrides):
    from cap.config.check import check

    (note,) = check(compose_config("experiment=cap_soft_movement", *overrides)).notes
    assert "which may be missed" in note
    assert check(compose_config("experiment=cap_soft_movement", *overrides, "pruning.threshold=target")).notes == ()


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_settings_take_nine_snapshots(compose_config, recipe):
    from cap.config.check import check

    assert check(compose_config(f"experiment={recipe}", "sparsity=0.9")).config.contrast.snapshot_count == 9


def test_table_of_weights_that_is_none_is_refused(compose_config):
    overrides = ["pruning=soft_movement", "pruning.regularizer_weight=null", "pruning.regularizer_weights={qqp:5}"]
    assert "must give weights > 0 by task and sparsity" in message_of(compose_config, *overrides)
