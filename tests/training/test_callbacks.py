from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn


@pytest.fixture
def tiny_module(tiny_model):
    """Make a CapModule that only sees labels, with a movement pruner on the tiny model."""

    def make(pruner=None):
        from cap.base.kinds import Head
        from cap.models.encoders import load_model
        from cap.models.families import prunable
        from cap.models.pooled import PooledModel
        from cap.models.sources import ModelSource
        from cap.pruning.movement import Movement
        from cap.training.module import CapModule, Distill, Optimisation

        torch.manual_seed(0)
        loaded = load_model(ModelSource(str(tiny_model), "tiny"), head=Head("classes", ("no", "yes")))
        pruner = pruner or Movement(score_learning_rate=1e-2, score_init="zero")
        pruner.attach(prunable(loaded.model), seed=0)
        return CapModule(
            PooledModel(loaded.model, "pooler"),
            distill=Distill(weight=0.0, ce_weight=1.0, temperature=1.0),
            optimisation=Optimisation(learning_rate=1e-3, weight_decay=0.0, warmup=0.0),
            metrics={},
            pruner=pruner,
        )

    return make


def loader(n_batches: int):
    from torch.utils.data import DataLoader

    generator = torch.Generator().manual_seed(0)
    batches = [
        {
            "input_ids": torch.randint(5, 20, (4, 6), generator=generator),
            "attention_mask": torch.ones(4, 6, dtype=torch.int64),
            "labels": torch.randint(0, 2, (4,), generator=generator),
            "example_id": torch.arange(4) + 4 * i,
        }
        for i in range(n_batches)
    ]
    return DataLoader(batches, batch_size=None)


def fit(module, tmp_path, callbacks, *, n_batches: int, **options) -> Trainer:
    from cap.training.trainer import build_trainer

    trainer = build_trainer(
        {
            "max_epochs": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
            **options,
        },
        run_dir=tmp_path,
        callbacks=callbacks,
    )
    # Lightning warns of a module that could validate and has no data for it.
    trainer.fit(module, train_dataloaders=loader(n_batches), val_dataloaders=loader(1))
    return trainer


@dataclass
class Recording:
    """A plan whose schedule writes down the steps it is asked for."""

    sparsity: float = 0.4
    warmup: float = 0.0
    rewind_warmup: float = 0.0
    n_epochs: int | None = None
    levels_reached: tuple[float, ...] | None = None
    targets: list[float] = field(default_factory=list)

    def over(self, n_steps: int):
        return lambda step: step / 10

    def level_starts(self, n_steps: int):
        return None

    def jumps(self, n_steps: int):
        return [n_steps - 1]

    def rewinds(self, n_steps: int):
        return []

    def restarts(self, n_steps: int):
        return []

    def problems(self, n_steps: int):
        return []


def recorded_targets(module) -> list[float]:
    targets: list[float] = []
    real = module.pruner.update_masks

    def update(sparsity: float):
        targets.append(sparsity)
        return real(sparsity)

    module.pruner.update_masks = update
    return targets


def test_masks_follow_optimizer_steps_not_batches(tiny_module, tmp_path):
    from cap.training.callbacks.pruning import PruningCallback

    module = tiny_module()
    targets = recorded_targets(module)
    callback = PruningCallback(module.pruner, Recording(), every_n_steps=1)
    fit(module, tmp_path, [callback], n_batches=6, accumulate_grad_batches=2)
    assert targets == [0.1, 0.2]  # step 0 asks for nothing


def test_a_level_is_scored_on_the_rows_of_all_processes(tiny_module, tmp_path, monkeypatch):
    from cap.training.callbacks import scores as callbacks
    from cap.training.callbacks.pruning import PruningCallback
    from cap.training.parallel.ranks import ranks_of

    seen = []
    monkeypatch.setattr(
        callbacks, "evaluate", lambda *given, **keys: seen.append(keys["ranks"]) or ({"accuracy": 0.5}, None)
    )
    module, plan = tiny_module(structured(importance="random")), levels()
    pruning = PruningCallback(module.pruner, plan)
    callback = callbacks.ScoreCallback(pruning, plan=plan, loaders=dict, share=lambda: 1.0, metric="accuracy")

    class Validates(Callback):
        """Let the trainer have validation rows while a step begins, and not when its epoch ends."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trainer.limit_val_batches = 1

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.limit_val_batches = 0

    trainer = fit(module, tmp_path, [Validates(), callback, pruning], n_batches=8)
    assert seen
    assert seen == [ranks_of(trainer)] * len(seen)


def test_losses_are_logged_as_often_as_the_trainer_asks(tiny_module, tmp_path):
    def logged(every: int) -> dict[str, str]:
        folder = tmp_path / str(every)
        torch.manual_seed(0)
        fit(tiny_module(), folder, [], n_batches=7, log_every_n_steps=every)
        columns, *lines = ((folder / "logs" / "metrics.csv").read_text()).splitlines()
        rows = [dict(zip(columns.split(","), line.split(","), strict=True)) for line in lines]
        return {row["step"]: row["loss/total"] for row in rows if row["loss/total"]}

    each = logged(1)
    assert logged(3) == {"2": each["2"], "5": each["5"]}  # of these steps, not of the ones before


@pytest.mark.parametrize(("every", "expected"), [(2, [0.2, 0.4]), (3, [0.3, 0.4]), (10, [0.4])])
def test_masks_move_every_n_steps_and_at_the_last_one(tiny_module, tmp_path, every, expected):
    from cap.training.callbacks.pruning import PruningCallback

    module = tiny_module()
    targets = recorded_targets(module)
    fit(module, tmp_path, [PruningCallback(module.pruner, Recording(), every_n_steps=every)], n_batches=5)
    assert targets == expected


@pytest.mark.parametrize("name", ["movement", "static_scores"])
def test_last_step_moves_the_masks_of_a_sparsity_that_no_longer_rises_only_where_weights_stand_still(
    tiny_module, tmp_path, name
):
    from cap.pruning.movement import Movement
    from cap.pruning.schedule import OneShot
    from cap.pruning.static_scores import StaticScores
    from cap.training.callbacks.pruning import PruningCallback

    module = tiny_module(Movement(score_learning_rate=1e-2) if name == "movement" else StaticScores(final_sparsity=0.5))
    targets = recorded_targets(module)
    plan = OneShot(sparsity=0.5, warmup=0.0, flat_before=0.0)
    fit(module, tmp_path, [PruningCallback(module.pruner, plan, every_n_steps=3)], n_batches=5)
    assert targets == [0.5] * (2 if name == "movement" else 3)  # steps 0 and 3, and the last, 4


@pytest.mark.parametrize("name", ["magnitude", "random", "structured", "movement"])
def test_so_many_prunings_move_the_masks_so_many_times_unless_scores_are_learned(tiny_module, tmp_path, name):
    from cap.pruning.magnitude import Magnitude
    from cap.pruning.movement import Movement
    from cap.pruning.random import Random
    from cap.pruning.schedule import Cubic
    from cap.training.callbacks.pruning import PruningCallback

    plan = Cubic(sparsity=0.5, warmup=0.0, flat_before=0.2, flat_after=0.3, initial_sparsity=0.25, n_prunings=3)
    types = {
        "magnitude": Magnitude,
        "random": Random,
        "structured": lambda: structured(importance="random"),
        "movement": lambda: Movement(score_learning_rate=1e-2, score_init="zero"),
    }
    module = tiny_module(types[name]())
    targets = recorded_targets(module)
    fit(module, tmp_path, [PruningCallback(module.pruner, plan, every_n_steps=1)], n_batches=10)
    per_step = [plan.over(10)(step) for step in range(2, 10)]
    assert targets == (per_step if name == "movement" else list(plan.levels_reached))


def test_masks_of_learned_scores_move_at_the_prunings_alone_where_asked(tiny_module, tmp_path):
    from cap.pruning.movement import Movement
    from cap.pruning.schedule import Cubic
    from cap.training.callbacks.pruning import PruningCallback

    plan = Cubic(sparsity=0.5, warmup=0.0, flat_before=0.2, flat_after=0.3, initial_sparsity=0.25, n_prunings=3)
    module = tiny_module(Movement(score_learning_rate=1e-2, score_init="zero"))
    targets = recorded_targets(module)
    fit(module, tmp_path, [PruningCallback(module.pruner, plan, every_n_steps=None)], n_batches=10)
    assert targets == list(plan.levels_reached)


def test_masks_move_to_the_initial_sparsity_whatever_the_steps_between_moves(tiny_module, tmp_path):
    from cap.pruning.schedule import Cubic
    from cap.training.callbacks.pruning import PruningCallback

    plan = Cubic(sparsity=0.5, warmup=0.0, flat_before=0.3, flat_after=0.3, initial_sparsity=0.25)
    module = tiny_module()
    targets = recorded_targets(module)
    fit(module, tmp_path, [PruningCallback(module.pruner, plan, every_n_steps=100)], n_batches=10)
    assert targets == pytest.approx([0.25, 0.5])  # steps 3 and 7


def test_log_names_target_reached_and_counts(tiny_module, tmp_path, caplog):
    import logging

    from cap.pruning.schedule import OneShot
    from cap.training.callbacks.pruning import PruningCallback

    caplog.set_level(logging.INFO, logger="cap")
    plan = OneShot(sparsity=0.5, warmup=0.0, flat_before=0.5)
    module = tiny_module()
    fit(module, tmp_path, [PruningCallback(module.pruner, plan, every_n_steps=1)], n_batches=4)
    n = 2 * (4 * 32 * 32 + 2 * 32 * 64)
    first = next(record.message for record in caplog.records if "target sparsity" in record.message)
    assert first == f"step 2: target sparsity 0.5000, reached 0.5000; pruned 0 -> {n // 2:,} of {n:,} prunable weights"


@pytest.mark.parametrize(
    ("n_steps", "n_snapshots", "expected"),
    [(100, 9, [10, 20, 30, 40, 50, 60, 70, 80, 90]), (5, 9, [1, 2, 3, 4]), (1, 9, []), (100, 0, []), (10, 1, [5])],
)
def test_gradual_schedule_takes_equally_spaced_snapshots(n_steps, n_snapshots, expected):
    from cap.pruning.schedule import Cubic, snapshot_steps

    plan = Cubic(sparsity=0.5, warmup=0.1, flat_before=0.2, flat_after=0.3)
    assert snapshot_steps(plan, n_steps, n_snapshots) == expected


def test_levels_take_a_snapshot_before_each_rise_after_the_first():
    from cap.pruning.schedule import Stepwise, snapshot_steps

    plan = Stepwise(sparsity=0.3, warmup=0.1)
    assert snapshot_steps(plan, 30, 9) == [10, 20]


@pytest.mark.parametrize("flat_before", [0.0, 0.3])
def test_snapshots_of_a_single_rise_are_equally_spaced(flat_before):
    from cap.pruning.schedule import OneShot, snapshot_steps

    assert snapshot_steps(OneShot(sparsity=0.5, flat_before=flat_before), 100, 4) == [20, 40, 60, 80]


@pytest.mark.parametrize(
    ("n_snapshots", "expected"),
    [(9, [20, 30, 40, 50]), (2, [30, 50]), (1, [50]), (0, [])],
    ids=lambda value: str(value),
)
def test_levels_take_no_more_snapshots_than_asked_for(n_snapshots, expected):
    from cap.pruning.schedule import Cubic, snapshot_steps

    plan = Cubic(sparsity=0.9, warmup=0.0, flat_before=0.1, flat_after=0.5, initial_sparsity=0.3, n_prunings=5)
    assert plan.level_starts(100) == [10, 20, 30, 40, 50]
    assert snapshot_steps(plan, 100, n_snapshots) == expected


class AfterEachStep(Callback):
    """Write down which loss terms there were, and what the memory holds of a snapshot."""

    def __init__(self) -> None:
        self.terms: list[set[str]] = []
        self.logits: list[torch.Tensor | None] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.terms.append({name for name in trainer.callback_metrics if name.startswith("loss/")})
        memory = pl_module.memory
        self.logits.append(memory.snapshot_logits(torch.arange(32)) if memory.has_snapshot_logits else None)


def distilled_from_snapshots(tiny_module, tmp_path, *, weight: float, state: dict | None = None, **options):
    """Train four steps of 32 rows with a snapshot after two, and return what was seen after each."""
    from cap.base.memory_budget import MemoryBudget
    from cap.objectives.memory import Memory
    from cap.training.callbacks.snapshots import SnapshotCallback
    from cap.training.module import Distill

    module, seen = tiny_module(), AfterEachStep()
    module.memory = Memory(n_examples=32, budget=MemoryBudget(1.0))
    module.distill = Distill(weight=0.0, ce_weight=1.0, temperature=2.0, snapshot_weight=weight)
    snapshots = SnapshotCallback(
        Recording(),
        n_snapshots=1,
        loader=lambda rank, size: loader(8),
        folder=tmp_path / "snapshots",
        with_encodings=False,
        with_logits=True,
    )
    if state is not None:
        snapshots.load_state_dict(state)
    fit(module, tmp_path, [snapshots, seen], n_batches=4, **options)
    return module, snapshots, seen


def test_nothing_is_distilled_from_snapshots_before_the_first(tiny_module, tmp_path):
    _, snapshots, seen = distilled_from_snapshots(tiny_module, tmp_path, weight=0.5)
    first = {"loss/ce", "loss/total"}
    assert seen.terms == [first, first, first | {"loss/snapshot_kd"}, first | {"loss/snapshot_kd"}]
    assert [logits is not None for logits in seen.logits] == [False, False, True, True]
    assert (snapshots.n_taken, snapshots.terms) == (1, "loss/snapshot_kd")


def test_snapshot_without_encodings_leaves_its_bank_empty_and_writes_its_logits_alone(tiny_module, tmp_path):
    module, _, _ = distilled_from_snapshots(tiny_module, tmp_path, weight=0.5)
    assert module.memory.n_encodings("snapshots") == 0
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["step-0000002.logits.npy"]


def test_several_batches_of_a_step_take_one_snapshot(tiny_module, tmp_path):
    _, snapshots, seen = distilled_from_snapshots(tiny_module, tmp_path, weight=0.5, accumulate_grad_batches=2)
    assert snapshots.n_taken == 1
    assert [logits is not None for logits in seen.logits] == [False, False, True, True]


def test_snapshot_that_a_checkpoint_of_its_own_step_knows_is_not_taken_again(tiny_module, tmp_path):
    _, snapshots, _ = distilled_from_snapshots(tiny_module, tmp_path, weight=0.5)
    before = snapshots.state_dict()["taken"]
    assert list(before) == ["step-0000002.npy"]
    _, again, seen = distilled_from_snapshots(tiny_module, tmp_path, weight=0.5, state=snapshots.state_dict())
    assert again.state_dict()["taken"] == before
    assert [logits is not None for logits in seen.logits] == [True] * 4


@pytest.mark.parametrize(
    ("with_encodings", "with_logits", "expected"),
    [(True, False, "loss/snc"), (False, True, "loss/snapshot_kd"), (True, True, "loss/snc and loss/snapshot_kd")],
)
def test_run_too_short_for_a_snapshot_says_which_terms_it_misses(
    tiny_module, tmp_path, caplog, with_encodings, with_logits, expected
):
    from cap.training.callbacks.snapshots import SnapshotCallback

    snapshots = SnapshotCallback(
        Recording(),
        n_snapshots=1,
        loader=lambda rank, size: loader(8),
        folder=tmp_path,
        with_encodings=with_encodings,
        with_logits=with_logits,
    )
    fit(tiny_module(), tmp_path, [snapshots], n_batches=1)
    assert f"left out is {expected}" in caplog.text


# --- levels of structured pruning


def levels(**options):
    from cap.pruning.schedule import Stepwise

    defaults = {"rewind": "each", "rewind_warmup": 0.25, "restart_optimizer": True}
    return Stepwise(sparsity=0.5, warmup=0.25, levels=[0.25, 0.5], epochs_per_level=None, **(defaults | options))


def structured(**options):
    from cap.pruning.structured import Structured

    defaults = {"importance": "gradient", "importance_rows": None, "importance_loss": "total", "final_sparsity": 0.5}
    return Structured(**(defaults | options))


def structured_callbacks(module, n_rows: int = 32, **options):
    from cap.training.callbacks.importance import ImportanceCallback
    from cap.training.callbacks.pruning import PruningCallback
    from cap.training.callbacks.restart import RestartCallback

    pruning = PruningCallback(module.pruner, levels(), every_n_steps=1)
    importance = ImportanceCallback(pruning, loader=lambda step: loader(8), batch_size=4, n_examples=n_rows)
    return [importance, pruning, RestartCallback(levels(**options))]


def test_units_move_once_a_level(tiny_module, tmp_path):
    module = tiny_module(structured())
    targets = recorded_targets(module)
    fit(module, tmp_path, structured_callbacks(module), n_batches=8)
    assert targets == [0.25, 0.5]


@pytest.mark.parametrize(
    ("rows", "n_batches"), [(None, 8), (1, 1), (4, 1), (5, 2), (32, 8), (1000, 8)], ids=lambda value: str(value)
)
def test_importance_is_measured_on_as_many_rows_as_asked_for(tiny_module, tmp_path, rows, n_batches):
    module = tiny_module(structured(importance_rows=rows))
    seen: list[bool] = []
    real = module.pruner.observe_importance
    module.pruner.observe_importance = lambda gradients: (seen.append(module.training), real(gradients))
    fit(module, tmp_path, structured_callbacks(module), n_batches=8)
    assert seen == [False] * 2 * n_batches  # in eval mode, at each of two levels


def test_first_level_is_ranked_without_contrast_and_the_others_with_it(tiny_module, tmp_path, monkeypatch):
    seen: list[tuple[bool, bool]] = []
    module = tiny_module(structured())
    real, matrix = module.loss_terms, module.student.model.bert.encoder.layer[0].output.dense

    def loss_terms(output, batch, *, with_contrast=True):
        if not module.training:
            seen.append((bool(matrix.weight.eq(0).any()), with_contrast))
        return real(output, batch, with_contrast=with_contrast)

    monkeypatch.setattr(module, "loss_terms", loss_terms)
    fit(module, tmp_path, structured_callbacks(module), n_batches=8)
    # Before anything is pruned without, and where a level is pruned already with it.
    assert seen == [(False, False)] * 8 + [(True, True)] * 8


def test_more_importance_rows_than_there_are_is_said(tiny_module, tmp_path, caplog):
    module = tiny_module(structured(importance_rows=33))
    fit(module, tmp_path, structured_callbacks(module), n_batches=8)
    assert "pruning.importance_rows=33, but there are 32: all are used" in caplog.text


def test_a_run_on_some_of_the_batches_measures_importance_on_as_many(tiny_module, tmp_path):
    module = tiny_module(structured())
    seen: list[bool] = []
    real = module.pruner.observe_importance
    module.pruner.observe_importance = lambda gradients: (seen.append(True), real(gradients))
    fit(module, tmp_path, structured_callbacks(module), n_batches=8, limit_train_batches=2)
    assert len(seen) == 2 * 2  # two levels


def test_importance_that_is_not_finite_stops_the_run(tiny_module, tmp_path):
    from cap.base.errors import RunError
    from cap.training.importance import measure_importance

    module = tiny_module(structured())
    with torch.no_grad():
        module.student.model.classifier.bias.fill_(float("inf"))
    with pytest.raises(RunError, match="the loss must be finite"):
        measure_importance(module, loader(2), module.pruner.importance_pass, batch_size=4, trainer=trainer_of(tmp_path))


def test_levels_without_a_step_of_their_own_are_said(tiny_module, tmp_path):
    from cap.pruning.schedule import Stepwise
    from cap.training.callbacks.pruning import PruningCallback

    said: list[str] = []
    plan = Stepwise(sparsity=0.5, warmup=0.0)
    module = tiny_module()
    callback = PruningCallback(module.pruner, plan, every_n_steps=1, warn=said.append)
    fit(module, tmp_path, [callback], n_batches=2)
    assert said == ["5 levels found only 2 steps of their own in a run of 2 steps: the others were passed over."]


def test_an_importance_pass_leaves_weights_modes_and_gradients_as_they_were(tiny_module, tmp_path):
    from cap.training.importance import measure_importance

    module = tiny_module(structured())
    weights = {name: value.clone() for name, value in module.student.state_dict().items()}
    wanted = {name: p.requires_grad for name, p in module.student.named_parameters()}
    trainer = trainer_of(tmp_path)
    measure_importance(module, loader(2), module.pruner.importance_pass, batch_size=4, trainer=trainer)
    after = module.student.state_dict()
    assert {name for name in after if not torch.equal(after[name], weights[name])} == measured(after)
    assert {name: p.requires_grad for name, p in module.student.named_parameters()} == wanted
    assert not [name for name, p in module.student.named_parameters() if p.grad is not None]
    assert module.training


def measured(names) -> set[str]:
    return {name for name in names if name.endswith(".importance")}


def trainer_of(tmp_path):
    from cap.training.trainer import build_trainer

    return build_trainer({"accelerator": "cpu", "enable_progress_bar": False}, run_dir=tmp_path, callbacks=[])


def test_the_task_loss_leaves_distillation_out(tiny_module, tmp_path):
    from dataclasses import replace

    from cap.training.importance import measure_importance

    def importance(loss: str, ce_weight: float) -> list[torch.Tensor]:
        module = tiny_module(structured(importance_loss=loss))
        module.distill = replace(module.distill, ce_weight=ce_weight)
        wanted = module.pruner.importance_pass
        measure_importance(module, loader(2), wanted, batch_size=4, trainer=trainer_of(tmp_path))
        return [gated.importance for layers in module.pruner._kinds.values() for gated in layers]

    # The only term here is the labels' own, with a weight in the total and without one in the task's loss.
    for total, task in zip(importance("total", 0.25), importance("task", 0.25), strict=True):
        torch.testing.assert_close(total, 0.25 * task)


@pytest.mark.parametrize(
    ("restart_optimizer", "expected"),
    [(True, [1, 2, 3, 4, 1, 2, 3, 4]), (False, [1, 2, 3, 4, 5, 6, 7, 8])],
    ids=["restart", "kept"],
)
def test_optimizer_starts_anew_at_a_rewind_if_asked_to(tiny_module, tmp_path, restart_optimizer, expected):
    module = tiny_module(structured())
    steps: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            weight = pl_module.student.model.classifier.weight
            steps.append(float(trainer.optimizers[0].state[weight]["step"]))

    callbacks = structured_callbacks(module, restart_optimizer=restart_optimizer)
    fit(module, tmp_path, [*callbacks, Watch()], n_batches=8)
    assert steps == expected


def test_learning_rate_rises_and_falls_in_each_level(tiny_module, tmp_path):
    from dataclasses import replace

    module = tiny_module(structured())
    module.optimisation = replace(module.optimisation, warmup=0.25, plan=levels())
    rates: list[float] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"] / 1e-3)

    fit(module, tmp_path, [*structured_callbacks(module), Watch()], n_batches=8)
    assert rates == pytest.approx([0, 1, 2 / 3, 1 / 3, 0, 1, 2 / 3, 1 / 3])


@pytest.mark.parametrize(("warmup", "n_steps"), [(0.0, 7), (0.1, 30), (0.5, 9)])
def test_learning_rate_without_rewinds_is_transformers_linear_schedule(warmup, n_steps):
    from transformers import get_linear_schedule_with_warmup

    from cap.training.module import Optimisation

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    (expected,) = get_linear_schedule_with_warmup(optimizer, round(warmup * n_steps), n_steps).lr_lambdas
    optimisation = Optimisation(learning_rate=1.0, weight_decay=0.0, warmup=warmup)
    rates = [*map(optimisation.over(n_steps), range(n_steps + 1))]
    assert rates == pytest.approx([expected(step) for step in range(n_steps + 1)])


def test_accumulation_gives_the_scores_of_one_large_batch(tiny_module, tmp_path):
    """Movement scores after one step on two half batches equal those after one step on the whole."""

    def gradient(n_parts: int) -> list[torch.Tensor]:
        module = tiny_module()
        module.student.eval()  # no dropout
        batch = next(iter(loader(1)))
        for part in range(n_parts):
            rows = slice(part * 4 // n_parts, (part + 1) * 4 // n_parts)
            cut = {name: value[rows] for name, value in batch.items()}
            terms = module.loss_terms(module(cut), cut)
            (sum(terms.values()) / n_parts).backward()
        return [scores.grad for scores in module.pruner.score_parameters()]

    for whole, halves in zip(gradient(1), gradient(2), strict=True):
        torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-7)


def test_optimizer_decays_matrices_only_and_gives_scores_their_own_rate(tiny_module):
    from dataclasses import replace

    module = tiny_module()
    module.optimisation = replace(module.optimisation, weight_decay=0.01)
    decayed, others, scores = module.parameter_groups()
    assert (decayed["weight_decay"], others["weight_decay"], scores["weight_decay"]) == (0.01, 0.0, 0.0)
    assert {p.ndim for p in others["params"]} == {1}
    assert scores["lr"] == 1e-2
    n_listed = sum(len(group["params"]) for group in (decayed, others, scores))
    assert n_listed == len(list(module.student.parameters()))


def test_first_orders_observed_scores_reach_no_optimizer(tiny_module):
    from cap.pruning.first_order import FirstOrder

    pruner = FirstOrder()
    module = tiny_module(pruner)
    listed = {id(p) for group in module.parameter_groups() for p in group["params"]}
    assert not listed & {id(p) for p in pruner.auxiliary_parameters()}


def test_student_trains_with_dropout_although_it_was_loaded_in_eval_mode(tiny_module):
    module = tiny_module()
    assert all(part.training for part in module.student.modules() if isinstance(part, nn.Dropout))


def test_contrast_without_memory_is_refused(tiny_model):
    from cap.base.kinds import Head
    from cap.models.encoders import load_model
    from cap.models.pooled import PooledModel
    from cap.models.sources import ModelSource
    from cap.training.module import CapModule, Distill, Optimisation

    loaded = load_model(ModelSource(str(tiny_model), "tiny"), head=Head("classes", ("no", "yes")))
    with pytest.raises(ValueError, match="a memory is required"):
        CapModule(
            PooledModel(loaded.model, "pooler"),
            distill=Distill(weight=0.9, ce_weight=0.1, temperature=2.0),
            optimisation=Optimisation(learning_rate=1e-3, weight_decay=0.0, warmup=0.0),
            metrics={},
        )


@pytest.mark.parametrize(("n_accumulated", "scales"), [(1, False), (2, False), (2, True)])
def test_loss_that_is_not_finite_is_named_before_the_weights_move(
    tiny_module, tmp_path, n_accumulated, scales, monkeypatch
):
    from cap.base.errors import RunError

    monkeypatch.setattr("cap.training.module.has_scaler", lambda trainer: scales)
    module = tiny_module()
    bias = module.student.model.classifier.bias

    def break_first_batch(batch, batch_idx):
        with torch.no_grad():
            bias.fill_(float("nan") if batch_idx == 0 else 0.0)

    module.on_train_batch_start = break_first_batch
    before = module.student.model.classifier.weight.detach().clone()
    with pytest.raises(RunError, match="the loss must be finite, but at step 0 loss/ce = nan"):
        fit(module, tmp_path, [], n_batches=2, accumulate_grad_batches=n_accumulated, gradient_clip_val=1.0)
    assert torch.equal(module.student.model.classifier.weight, before)


def test_gradient_that_is_not_finite_is_told_from_the_loss(tiny_module, tmp_path):
    from cap.base.errors import RunError

    module = tiny_module()
    module.student.model.classifier.bias.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(RunError, match=r"the gradient must be finite, but its norm is .* although the loss is finite"):
        fit(module, tmp_path, [], n_batches=1, gradient_clip_val=1.0)


def test_gradient_that_is_not_finite_is_the_loss_scalers_to_deal_with(tiny_module, tmp_path, monkeypatch):
    monkeypatch.setattr("cap.training.module.has_scaler", lambda trainer: True)
    module = tiny_module()
    module.student.model.classifier.bias.register_hook(lambda gradient: gradient * float("inf"))
    assert fit(module, tmp_path, [], n_batches=1, gradient_clip_val=1.0).global_step == 1


def test_numbers_of_examples_stay_with_the_host():
    from torch.distributed.utils import _to_kwargs  # what DDP does to a batch before every step

    from cap.data.batch import host_ids, on_device

    batch = {"example_id": torch.tensor([3, 1]), "input_ids": torch.tensor([[5], [6]])}
    moved = on_device(batch, torch.device("meta"))  # nothing can be read back from there
    assert [moved[name].device.type for name in batch] == ["meta", "meta"]
    (by_ddp,), _ = _to_kwargs((moved,), {}, torch.device("meta"), use_side_stream_for_tensor_copies=False)
    assert host_ids(by_ddp[0]).tolist() == [3, 1]
    assert host_ids(moved).tolist() == [3, 1]
    assert host_ids(batch).tolist() == [3, 1]


def test_places_of_a_boolean_column_are_found_on_the_host():
    from cap.data.batch import on_device, places

    batch = {"example_id": torch.tensor([3, 1]), "is_word": torch.tensor([[True, False, True], [False, True, False]])}
    assert places(batch, "is_word").tolist() == places(on_device(batch, torch.device("cpu")), "is_word").tolist()
    assert places(batch, "is_word").tolist() == [0, 2, 4]
    assert places(on_device(batch, torch.device("meta")), "is_word").shape == (3,)  # a device cannot tell how many
