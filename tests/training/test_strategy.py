from __future__ import annotations

import os
import warnings

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForQuestionAnswering

from tests.models.tiny_models import FAMILY_NAMES, SPAN_FAMILIES, tiny_batch, tiny_classifier


@pytest.mark.parametrize("name", ["auto", "ddp", "ddp_find_unused_parameters_true"])
def test_one_process_leaves_the_choice_to_lightning(name):
    from cap.training.parallel.strategy import make_strategy

    assert make_strategy(name, n_processes=1) == "auto"


def test_one_process_leaves_nothing_in_the_environment_for_the_next_job():
    from cap.training.parallel.strategy import make_strategy

    before = dict(os.environ)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        strategy=make_strategy("ddp", n_processes=1),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=1,
    )
    trainer.fit(BoringModel(), DataLoader(torch.ones(1, 32), num_workers=0))
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("name", "finds_unused"),
    [("auto", False), ("ddp", False), ("ddp_find_unused_parameters_true", True)],
    ids=["auto", "ddp", "ddp with unused parameters"],
)
def test_several_processes_hold_the_whole_model_each(name, finds_unused):
    from lightning.pytorch.strategies import DDPStrategy

    from cap.training.parallel.strategy import make_strategy

    strategy = make_strategy(name, n_processes=2)
    assert isinstance(strategy, DDPStrategy)
    assert strategy._ddp_kwargs["find_unused_parameters"] is finds_unused


@pytest.mark.parametrize("n_processes", [1, 2])
@pytest.mark.parametrize("name", ["fsdp", "deepspeed_stage_2", "ddp_spawn", "ddp_notebook", "single_device"])
def test_a_strategy_that_splits_the_model_is_refused_with_what_to_use(name, n_processes):
    from cap.base.errors import InputError
    from cap.training.parallel.strategy import make_strategy

    with pytest.raises(InputError, match=rf"got '{name}'.*whole matrices.*trainer.strategy=ddp"):
        make_strategy(name, n_processes=n_processes)


def test_masks_are_not_sent_in_every_step_and_torch_does_not_warn(tmp_path):
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    from cap.training.parallel.strategy import make_strategy

    store = distributed.FileStore(str(tmp_path / "store"), 1)
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            wrapped = DistributedDataParallel(nn.BatchNorm1d(2), **make_strategy("ddp", n_processes=2)._ddp_kwargs)
        assert not wrapped.broadcast_buffers
    finally:
        distributed.destroy_process_group()


def pruners():
    from cap.pruning.admm import Admm
    from cap.pruning.first_order import FirstOrder
    from cap.pruning.layers import Layers
    from cap.pruning.magnitude import Magnitude
    from cap.pruning.movement import Movement
    from cap.pruning.platon import Platon
    from cap.pruning.second_order import SecondOrder
    from cap.pruning.static_scores import StaticScores
    from cap.pruning.structured import Structured

    return {
        "magnitude": Magnitude,
        "first_order": FirstOrder,
        "platon": Platon,
        "admm": lambda: Admm(final_sparsity=0.5),
        "second_order": SecondOrder,
        "movement": lambda: Movement(score_learning_rate=1e-2, score_init="zero"),
        "static_scores": lambda: StaticScores(final_sparsity=0.5),
        "layers": lambda: Layers(final_sparsity=0.5),
        "structured": lambda: Structured(
            importance="gradient", importance_rows=None, importance_loss="total", final_sparsity=0.5
        ),
    }


# Every family with a type that leaves its layers as they are and with one that takes some away; every type with BERT.
@pytest.mark.parametrize(
    ("family", "answer", "pruning"),
    [
        *((name, "classes", pruning) for name in FAMILY_NAMES for pruning in ("magnitude", "layers")),
        *((name, "span", "magnitude") for name in SPAN_FAMILIES),
        *(
            ("bert", "classes", pruning)
            for pruning in ("first_order", "platon", "admm", "second_order", "movement", "static_scores", "structured")
        ),
    ],
)
def test_labels_alone_give_every_trained_parameter_a_gradient(family, pruning, answer):
    # Otherwise processes would have to search for those without in every step.
    from cap.models.families import prunable
    from cap.models.pooled import PooledModel
    from cap.training.module import CapModule, Distill, Optimisation

    model = tiny_classifier(family)
    if answer == "span":
        model = AutoModelForQuestionAnswering.from_config(AutoConfig.for_model(**model.config.to_dict()))
    pruner = pruners()[pruning]()
    pruner.attach(prunable(model), seed=0)
    module = CapModule(
        PooledModel(model, "first_token"),
        distill=Distill(weight=0.0, ce_weight=1.0, temperature=1.0),
        optimisation=Optimisation(learning_rate=1e-3, weight_decay=0.0, warmup=0.1),
        metrics={},
        pruner=pruner,
    )
    labels = {"classes": torch.tensor([0, 1, 1]), "span": torch.tensor([[0, 6], [1, 2], [0, 0]])}[answer]
    batch = tiny_batch() | {"labels": labels, "example_id": torch.arange(3)}
    torch.stack(list(module.loss_terms(module(batch), batch).values())).sum().backward()
    assert [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("accelerator", "has_cuda", "expected"),
    [("auto", True, True), ("gpu", True, True), ("cpu", True, False), ("mps", True, False), ("auto", False, False)],
)
def test_gpus_are_taken_where_there_are_some_and_the_cpu_was_not_chosen(monkeypatch, accelerator, has_cuda, expected):
    import torch

    from cap.training.trainer import takes_gpus

    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert takes_gpus(accelerator) is expected
