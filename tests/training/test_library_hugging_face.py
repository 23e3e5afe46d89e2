"""``cap.PruningTrainerCallback`` in transformers' Trainer."""

from __future__ import annotations

import json

import pytest
import torch

import cap
from cap.base.errors import InputError
from cap.pruning.masks import count_matrix_zeros
from tests.cases import cases
from tests.models.tiny_models import FAMILY_NAMES as FAMILIES
from tests.models.tiny_models import tiny_batch, tiny_classifier

N_STEPS, HALF = 8, 4

PRUNERS = {
    "magnitude": cap.Magnitude,
    "movement": cap.Movement,
    "soft_movement": lambda: cap.SoftMovement(final_sparsity=0.5),
    "first_order": cap.FirstOrder,
    "platon": lambda: cap.Platon(window=3),
    "admm": lambda: cap.Admm(final_sparsity=0.5, interval=2),
    "random": cap.Random,
    "static_scores": lambda: cap.StaticScores(final_sparsity=0.5),
    "structured": lambda: cap.Structured(final_sparsity=0.5, importance="random"),
    "layers": lambda: cap.Layers(final_sparsity=0.5),
}


def rows() -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(5, 30, (32, 6), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row[0] % 2} for row in ids]


def trained(
    folder,
    pruner,
    *,
    plan=None,
    checkpoint=None,
    optimizer=True,
    importance=None,
    warn=None,
    moves=None,
    family="bert",
    cast=torch.float32,
    **options,
):
    from transformers import Trainer, TrainingArguments

    model = tiny_classifier(family).train()
    cap.attach(model, pruner)
    model.to(cast)
    given = (moves or {}) | ({} if warn is None else {"warn": warn})
    callback = cap.PruningTrainerCallback(
        pruner, plan or cap.Cubic(sparsity=0.5), importance=importance and (lambda: importance(model)), **given
    )
    groups = cap.parameter_groups(model, pruner, learning_rate=1e-3)
    defaults = {"save_steps": HALF, "logging_steps": 1, "gradient_accumulation_steps": 2}
    arguments = TrainingArguments(
        str(folder),
        max_steps=N_STEPS,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **(defaults | options),
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows(),
        optimizers=(torch.optim.AdamW(groups) if optimizer else None, None),
        callbacks=[callback],
    )
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return model, callback, trainer


@pytest.mark.parametrize("name", cases(list(PRUNERS), daily=["movement", "structured", "layers"]))
def test_target_is_met_and_a_resumed_run_ends_in_the_same_model(name, tmp_path):
    plan = cap.Cubic(sparsity=0.5, n_prunings=3 if name == "structured" else None)
    model, callback, trainer = trained(tmp_path / "whole", PRUNERS[name](), plan=plan)
    # Dropout and the order of the rows are the trainer's to restore.
    again, other, _ = trained(
        tmp_path / "resumed", PRUNERS[name](), plan=plan, checkpoint=tmp_path / "whole" / f"checkpoint-{HALF}"
    )
    state = again.state_dict()
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, state[key])] == []
    assert other.pruner.state_dict() == callback.pruner.state_dict()
    assert (callback.target, callback.reached, other.reached) == (0.5, 0.5, 0.5)
    assert [line["pruning/sparsity"] for line in trainer.state.log_history if "loss" in line][-1] == 0.5
    callback.pruner.fold()
    assert sum(zeros for zeros, _ in count_matrix_zeros(model).values()) == 8192


def test_a_checkpoint_of_a_family_that_is_saved_under_older_names_is_read_back(tmp_path):
    model, *_ = trained(tmp_path / "whole", cap.Movement(), family="gte")
    again, *_ = trained(
        tmp_path / "resumed", cap.Movement(), family="gte", checkpoint=tmp_path / "whole" / f"checkpoint-{HALF}"
    )
    state = again.state_dict()
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, state[key])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_trainer_saves_on_the_way_has_the_names_that_it_reads(family, tmp_path):
    from safetensors.torch import load_file
    from transformers import TrainerControl, TrainerState, TrainingArguments

    model, pruner = tiny_classifier(family), cap.Movement()
    cap.attach(model, pruner)
    callback = cap.PruningTrainerCallback(pruner, cap.Cubic(sparsity=0.5))
    args, state = TrainingArguments("unused", use_cpu=True, report_to="none"), TrainerState(max_steps=N_STEPS)
    optimizer = torch.optim.SGD(cap.parameter_groups(model, pruner, learning_rate=0.1), lr=0.1)
    callback.on_train_begin(args, state, TrainerControl(), model=model, optimizer=optimizer)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert not model.load_state_dict(saved, strict=False).unexpected_keys
    assert {key for key in model.state_dict() if "parametrizations" in key} <= saved.keys()


def test_names_that_a_family_is_saved_under_are_the_models_own_again_after_training(tmp_path):
    model, callback, _ = trained(tmp_path, cap.Magnitude(), family="gte")
    callback.pruner.fold()
    model.save_pretrained(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved").state_dict()
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, again[key])] == []


def test_a_model_in_half_precision_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"in half precision, .* train it in mixed precision"):
        trained(tmp_path, cap.Magnitude(), cast=torch.bfloat16)


def test_structured_measures_before_each_level(tmp_path):
    pruner, passes = cap.Structured(final_sparsity=0.5), []

    def importance(model) -> None:
        passes.append(True)
        batch = tiny_batch() | {"labels": torch.tensor([0, 1, 1])}
        cap.measure_importance(pruner, model, [batch], loss=lambda batch: model(**batch).loss)

    plan = cap.Stepwise(sparsity=0.5, levels=[0.25, 0.5])
    _, callback, _ = trained(tmp_path, pruner, plan=plan, importance=importance)
    assert (len(passes), callback.reached) == (2, 0.5)


def test_the_callback_of_the_other_trainer_is_refused(tmp_path):
    from transformers import Trainer, TrainingArguments

    pruner = cap.Magnitude()
    model = tiny_classifier()
    cap.attach(model, pruner)
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(InputError, match=r"takes cap\.PruningTrainerCallback, got cap\.PruningCallback"):
        Trainer(model=model, args=arguments, callbacks=[cap.PruningCallback(pruner, cap.Cubic(sparsity=0.5))])


def test_structured_without_a_pass_is_refused():
    with pytest.raises(ValueError, match="Structured ranks by a pass over training rows"):
        cap.PruningTrainerCallback(cap.Structured(final_sparsity=0.5), cap.Stepwise(sparsity=0.5))


@pytest.mark.ends
def test_clipping_does_not_see_what_is_only_observed(tmp_path):
    """First-order pruning changes no gradient norm while it observes; after the run, gradients stay where they were."""

    def norms(pruner) -> list[float]:
        plan = cap.OneShot(sparsity=0.5, flat_before=0.99)
        _, _, trainer = trained(tmp_path / type(pruner).__name__, pruner, plan=plan, save_strategy="no")
        for parameter in pruner.auxiliary_parameters():
            parameter.sum().backward()
            assert parameter.grad is not None
        return [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line][: N_STEPS - 1]

    assert norms(cap.FirstOrder()) == pytest.approx(norms(cap.Random()), rel=1e-5)


def test_first_order_adds_up_what_the_batches_of_a_step_observe():
    from cap.training.callbacks.hugging_face import _SetAside

    model = tiny_classifier()
    pruner = cap.attach(model, cap.FirstOrder())
    aside, first = _SetAside(pruner), pruner.auxiliary_parameters()[0]
    aside.begin()
    for factor in (1.0, 2.0):
        (factor * first).sum().backward()
        assert first.grad is None
    aside.put_back()
    assert torch.equal(first.grad, torch.full_like(first, 3.0))


def test_optimizer_of_the_trainers_own_is_warned_of(tmp_path):
    said: list[str] = []
    trained(tmp_path, cap.Movement(), optimizer=False, warn=said.append, save_strategy="no")
    assert len(said) == 1
    assert "make the optimizer of cap.parameter_groups" in said[0]


def test_best_checkpoint_in_place_of_the_last_is_refused():
    with pytest.raises(InputError, match="load_best_model_at_end=True, which may load one from before"):
        begin(cap.Magnitude(), load_best_model_at_end=True)


def begin(
    pruner,
    *,
    load_best_model_at_end: bool = False,
    n_processes: int = 1,
    n_devices: int = 0,
    step: int = 0,
    saved=None,
) -> None:
    """Begin a run with what a trainer would tell a callback."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    class Arguments(TrainingArguments):
        world_size = n_processes
        n_gpu = n_devices

    model = tiny_classifier()
    cap.attach(model, pruner)
    args = Arguments("unused", use_cpu=True, report_to="none")
    args.load_best_model_at_end = load_best_model_at_end
    state = TrainerState(max_steps=N_STEPS, global_step=step, stateful_callbacks=saved or {})
    callback = cap.PruningTrainerCallback(pruner, cap.Cubic(sparsity=0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    callback.on_train_begin(args, state, TrainerControl(), model=model, optimizer=optimizer)


def test_second_order_measures_before_its_masks_move(tmp_path):
    pruner = cap.SecondOrder(n_gradients=2)

    def importance(model) -> None:
        batch = tiny_batch() | {"labels": torch.tensor([0, 1, 1])}
        cap.measure_importance(pruner, model, [batch] * 2, loss=lambda batch: model(**batch).loss)

    _, callback, _ = trained(tmp_path, pruner, plan=cap.OneShot(sparsity=0.5), importance=importance)
    assert callback.reached == 0.5


def begun(pruner, model, plan, **options):
    """Begin a run of one callback, and return what its hooks take."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    callback = cap.PruningTrainerCallback(pruner, plan, **options)
    args, state = TrainingArguments("unused", use_cpu=True, report_to="none"), TrainerState(max_steps=N_STEPS)
    optimizer = torch.optim.SGD(cap.parameter_groups(model, pruner, learning_rate=0.1), lr=0.1)
    given = {"model": model, "optimizer": optimizer}
    callback.on_train_begin(args, state, TrainerControl(), **given)
    return callback, (args, state, TrainerControl()), given


def test_masks_on_another_model_than_the_trainers_are_refused():
    pruner = cap.attach(tiny_classifier(), cap.Magnitude())
    with pytest.raises(ValueError, match="must be on the model that is trained"):
        begun(pruner, tiny_classifier(), cap.Cubic(sparsity=0.5))


def test_a_run_that_ends_before_its_target_is_warned_of():
    model, said = tiny_classifier(), []
    pruner = cap.attach(model, cap.Magnitude())
    plan = cap.OneShot(sparsity=0.5, flat_before=0.5)
    callback, arguments, given = begun(pruner, model, plan, warn=said.append, n_steps=100)
    for step in range(N_STEPS):
        arguments[1].global_step = step
        callback.on_step_begin(*arguments, **given)
    callback.on_train_end(*arguments, **given)
    assert said == [
        "The masks stop at a target of 0.0000, reached 0.0000, and not at 0.5: the schedule lies over 100 optimizer "
        "steps, of which number 8 was the last to begin. Give the callback n_steps, the steps that there are, or let "
        "the run go to its end."
    ]


def test_a_run_after_an_interrupted_one_observes_gradients_and_gives_the_names_back():
    model = tiny_classifier("gte").train()
    names = vars(model).get("_weight_conversions")
    pruner = cap.attach(model, cap.FirstOrder())
    begun(pruner, model, cap.Cubic(sparsity=0.5))  # an exception leaves it, and nothing ends it
    callback, arguments, given = begun(pruner, model, cap.Cubic(sparsity=0.5))
    model(**tiny_batch(), labels=torch.tensor([0, 1, 1])).loss.backward()
    callback.on_pre_optimizer_step(*arguments, **given)
    assert all(bool(pruner.importance(name).any()) for name in pruner.masks)
    callback.on_train_end(*arguments, **given)
    assert vars(model).get("_weight_conversions") == names
    assert not any(p._post_accumulate_grad_hooks for p in pruner.auxiliary_parameters())


def test_first_order_in_several_processes_is_refused():
    with pytest.raises(InputError, match=r"FirstOrder sees the gradients of one process"):
        begin(cap.FirstOrder(), n_processes=2)


def test_layers_on_several_devices_of_one_process_are_refused():
    with pytest.raises(InputError, match=r"got 2 devices in one process; start the program with torchrun"):
        begin(cap.Layers(final_sparsity=0.5), n_devices=2)


def test_two_pruners_of_one_model_keep_their_states_apart():
    from torch import nn
    from transformers import TrainerControl, TrainerState, TrainingArguments

    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    pruners = [cap.attach(model, cap.Magnitude(), linears={name: model.get_submodule(name)}) for name in ("0", "1")]
    plans = [cap.Cubic(sparsity=0.5), cap.Cubic(sparsity=0.75)]
    args, state, control = TrainingArguments("unused", use_cpu=True), TrainerState(max_steps=N_STEPS), TrainerControl()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def new() -> list[cap.PruningTrainerCallback]:
        return [cap.PruningTrainerCallback(pruner, plan) for pruner, plan in zip(pruners, plans, strict=True)]

    callbacks = new()
    for callback in callbacks:
        callback.on_train_begin(args, state, control, model=model, optimizer=optimizer)
    for state.global_step in range(N_STEPS):
        for callback in callbacks:
            callback.on_step_begin(args, state, control)
            callback.on_step_end(args, state, control)
    resumed = new()
    for callback in resumed:
        callback.on_train_begin(args, state, control, model=model, optimizer=optimizer)
    assert [callback.reached for callback in resumed] == [0.5, 0.75]


def test_checkpoint_without_masks_is_refused():
    with pytest.raises(InputError, match=r"got one of step 4 without a state of masks"):
        begin(cap.Magnitude(), step=4)


def test_checkpoint_of_other_masks_is_refused(tmp_path):
    trained(tmp_path, cap.Magnitude(), save_steps=N_STEPS)
    state = json.loads((tmp_path / f"checkpoint-{N_STEPS}" / "trainer_state.json").read_text(encoding="utf-8"))
    with pytest.raises(InputError, match=r"at sparsity 0.5000, but those of the model are at 0.0000"):
        begin(cap.Magnitude(), step=N_STEPS, saved=state["stateful_callbacks"])


@pytest.mark.parametrize(("clips", "factor"), [(True, 1.0), (False, 8.0)], ids=["clipped", "as they came"])
def test_regulariser_has_the_scale_that_is_on_the_other_gradients(clips, factor):
    from transformers import TrainerControl, TrainerState, TrainingArguments

    class Scaler:
        def get_scale(self) -> float:
            return 8.0

    model = tiny_classifier()
    pruner = cap.attach(model, cap.SoftMovement(final_sparsity=0.5, regularizer_weight=3.0))
    pruner.update_masks(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.scaler = Scaler()
    args = TrainingArguments("unused", use_cpu=True, report_to="none", max_grad_norm=1.0 if clips else 0.0)
    told = []
    pruner.adjust_gradients = lambda *, scale: told.append(scale)
    callback = cap.PruningTrainerCallback(pruner, cap.Cubic(sparsity=0.5))
    callback.on_pre_optimizer_step(args, TrainerState(), TrainerControl(), optimizer=optimizer)
    for scores in pruner.score_parameters():
        slope = scores.sigmoid() * (1 - scores.sigmoid()) / scores.numel() / len(pruner.score_parameters())
        torch.testing.assert_close(scores.grad, factor * 3.0 * slope)
    assert told == [factor]


@pytest.mark.ends
def test_state_between_two_moves_comes_back(tmp_path):
    """Masks that stand still after a checkpoint leave target, counts and regulariser to what was written in it."""
    plan, options = cap.OneShot(sparsity=0.5, flat_before=0.25), {"every_n_steps": 100}
    model, callback, _ = trained(tmp_path / "whole", PRUNERS["soft_movement"](), plan=plan, moves=options)
    checkpoint = tmp_path / "whole" / f"checkpoint-{HALF}"
    again, other, trainer = trained(
        tmp_path / "resumed", PRUNERS["soft_movement"](), plan=plan, moves=options, checkpoint=checkpoint
    )
    state = again.state_dict()
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, state[key])] == []
    assert other.moves.state_dict() == callback.moves.state_dict()
    logged = [line["pruning/sparsity"] for line in trainer.state.log_history if "loss" in line]
    assert logged == [0.0, 0.0] + [0.5] * (N_STEPS - 2)
