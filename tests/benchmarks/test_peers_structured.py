"""Tools that take whole parts out of the same student."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from cap.base.errors import InputError


@pytest.fixture
def tiny_classifier(tiny_model):
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(tiny_model).eval()


@pytest.mark.ends
def test_sides_leave_half_of_the_weights_after_as_many_steps(compose_config, tiny_overrides, tmp_path, monkeypatch):
    from benchmarks.peers import comparison
    from benchmarks.peers.__main__ import benchmark
    from cap.formats.load import load
    from cap.models.layout import Layout

    monkeypatch.setattr(comparison, "N_SEEDS", 1)
    half = ("sparsity=0.5", "schedule.levels=[0.25,0.5]", "schedule.epochs_per_level=null")
    benchmark(compose_config(*tiny_overrides, "pruning=structured", "contrast=none", *half))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    sides = {name: side["seeds"]["1"] for name, side in results["sides"].items()}
    assert [side["sparsity"] for side in sides.values()] == [0.5] * 4
    assert [side["steps"] for side in sides.values()] == [8] * 4
    folders = ("cap-1-compact", "cap-layers-1/model", "Torch-Pruning-1/model", "sentence-transformers-1/model")
    layouts = [Layout.of(load(tmp_path / "run" / folder)) for folder in folders]
    assert [sum(layout.heads) for layout in layouts] == [4] * 4
    assert [layout.heads for layout in layouts[1:]] == [(4,), (2, 2), (4,)]
    opens_with = [side["opens_with"] for side in sides.values()]
    assert opens_with == ["cap.load", "transformers", "cap.load", "transformers"]


def test_torch_pruning_takes_out_the_heads_and_units_of_least_importance(tiny_classifier):
    from benchmarks.peers.heads_and_ffn import prune_to, units_of

    heads, ffn = units_of(tiny_classifier)
    before = [units.incoming[-1].weight.detach().clone() for units in (heads[0], ffn[0])]
    for parameter in tiny_classifier.parameters():
        parameter.grad = parameter.detach().clone()
    for units in (*heads, *ffn):  # importance is |weight * gradient|
        for linear in units.incoming:
            linear.weight.grad[: linear.out_features // 4] = 0.0
        units.outgoing.weight.grad[:, : units.outgoing.in_features // 4] = 0.0
    prune_to(tiny_classifier, n_heads=3, n_ffn=48)
    after = [units.incoming[-1].weight for units in (found[0] for found in units_of(tiny_classifier))]
    assert [bool((rows[len(rows) // 4 :] == left).all()) for rows, left in zip(before, after, strict=True)] == [
        True
    ] * 2
    assert tiny_classifier.bert.encoder.layer[0].attention.self.num_attention_heads == 3
    assert tiny_classifier.config.hidden_size == tiny_classifier.bert.pooler.dense.out_features == 32


@pytest.mark.parametrize("n_left", [4, 3, 2, 1])
def test_several_levels_count_from_the_dense_model(tiny_classifier, n_left):
    import torch

    from benchmarks.peers.heads_and_ffn import prune_to
    from cap.models.layout import Layout

    for left in range(4, n_left - 1, -1):
        tiny_classifier(torch.ones(1, 4, dtype=torch.int64)).logits.sum().backward()
        prune_to(tiny_classifier, n_heads=left, n_ffn=16 * left - 1)
        tiny_classifier.zero_grad()
    assert Layout.of(tiny_classifier) == Layout((n_left,) * 2, (16 * n_left - 1,) * 2)


def test_optimizer_goes_on_with_the_smaller_weights(tiny_classifier):
    import torch

    from benchmarks.peers.heads_and_ffn import TorchPruningCallback
    from cap.models.pooled import PooledModel
    from cap.training.learning_rate import Optimisation
    from cap.training.module import CapModule, Distill

    module = CapModule(
        PooledModel(tiny_classifier, "pooler"),
        distill=Distill(weight=0.0, ce_weight=1.0, temperature=1.0),
        optimisation=Optimisation(learning_rate=1e-3, weight_decay=0.0, warmup=0.0),
        metrics={},
    )
    optimizer = torch.optim.AdamW(module.parameter_groups())
    ids, rows = torch.ones(2, 4, dtype=torch.int64), torch.arange(2)
    batch = {"input_ids": ids, "attention_mask": ids, "labels": rows, "example_id": rows}
    callback = TorchPruningCallback(tiny_classifier, {1: 0.5}, [batch])
    sizes = []
    for step in range(3):
        trainer = SimpleNamespace(global_step=step, optimizers=[optimizer])
        callback.on_train_batch_start(trainer, module, batch, step)
        sizes.append(sum(parameter.numel() for parameter in module.student.parameters()))
    assert sizes[0] > sizes[1] == sizes[2]
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == set(module.student.parameters())


@pytest.mark.parametrize(
    ("n", "n_kept", "kept"),
    [
        pytest.param(24, 8, [0, 3, 6, 9, 12, 15, 18, 21], id="every third"),
        pytest.param(12, 8, [0, 1, 3, 4, 6, 7, 9, 10], id="two of three"),
        pytest.param(6, 3, [0, 2, 4], id="every other"),
    ],
)
def test_layers_are_those_of_the_documented_example(n, n_kept, kept):
    from benchmarks.peers.depth import every_nth

    assert every_nth(n, n_kept) == kept


def test_a_model_whose_heads_cannot_go_is_refused(tiny_classifier):
    from benchmarks.peers.heads_and_ffn import require_separate_heads

    tiny_classifier.config.model_type = "modernbert"
    prepared = SimpleNamespace(pretrained=SimpleNamespace(model=tiny_classifier))
    with pytest.raises(InputError, match="got a modernbert model; choose a BERT"):
        require_separate_heads(None, prepared)
