from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture
def module(tmp_path):
    """Make a module with scores, three banks, labels and a teacher's logits; its model has no dropout."""
    from tests.training.share_program import CASES, make_module

    return make_module(CASES["soft movement"], tmp_path)


@pytest.fixture
def computation():
    from contextlib import nullcontext

    from cap.training.encode import Computation

    return Computation(torch.device("cpu"), "32-true", nullcontext)


def batch():
    from tests.training.share_program import ROWS, make_batch

    return make_batch(ROWS[0], "classes")


TERMS = ["ce", "kd", "prc", "snc", "fic"]


def slow_norm(module, term: str) -> float:
    """Differentiate a term by everything and pick the weights of the layers by their names."""
    module.zero_grad()
    with module.keeping_extras():
        module.loss_terms(module(batch()), batch())[term].backward()
    named = module.student.model.named_parameters()
    squares = [p.grad.double().square().sum() for name, p in named if ".layer." in name and "scores" not in name]
    module.zero_grad()
    return float(torch.stack(squares).sum().sqrt())


def test_norms_are_those_of_each_term_alone(module, computation):
    from cap.training.callbacks.gradient_shares import gradient_norms

    module.pruner.update_masks(0.25)  # so that there is a regulariser, which is left out
    assert "scores" in module.loss_terms(module(batch()), batch())
    expected = {term: slow_norm(module, term) for term in TERMS}
    assert gradient_norms(module, batch(), computation=computation) == pytest.approx(expected, rel=1e-4)


def test_terms_that_are_not_wanted_are_left_out(module, computation):
    from cap.training.callbacks.gradient_shares import gradient_norms

    found = gradient_norms(module, batch(), computation=computation, leave_out={"prc", "fic"})
    assert set(found) == {"ce", "kd", "snc"}


def test_measuring_leaves_streams_gradients_and_modes_as_they_were(module, computation):
    from cap.training.callbacks.gradient_shares import gradient_norms

    def states():
        # Not Python's own: the checker of annotations draws from it what it looks at.
        numbers = [np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
        return [*numbers, module._extras.get_state().tolist(), [part.training for part in module.modules()]]

    module.student.model.bert.encoder.layer[0].eval()
    before = states()
    gradient_norms(module, batch(), computation=computation)
    assert states() == before
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_frozen_part_of_the_encoder_is_no_hindrance(module, computation):
    from cap.training.callbacks.gradient_shares import gradient_norms

    for parameter in module.student.model.bert.encoder.layer[0].parameters():
        parameter.requires_grad_(False)
    assert set(gradient_norms(module, batch(), computation=computation)) == set(TERMS)


RELATIVE = {
    "to distillation": ([{"ce": 1.0, "kd": 2.0, "prc": 6.0}], {"ce": 0.5, "kd": 1.0, "prc": 3.0}),
    "to the labels": ([{"ce": 2.0, "prc": 6.0}], {"ce": 1.0, "prc": 3.0}),
    "over batches": ([{"kd": 1.0, "prc": 0.0}, {"kd": 3.0, "prc": 8.0}], {"kd": 1.0, "prc": 2.0}),
    "one term": ([{"ce": 1.0}], {}),
    "nothing": ([], {}),
    "no reference": ([{"prc": 1.0, "fic": 2.0}], {}),
    "a reference without gradient": ([{"kd": 0.0, "prc": 1.0}], {}),
    "an overflow": ([{"kd": 1.0, "prc": float("inf")}], {}),
}


@pytest.mark.parametrize(("norms", "expected"), RELATIVE.values(), ids=RELATIVE)
def test_norms_are_related_to_those_of_distillation_or_else_of_the_labels(norms, expected):
    from cap.training.callbacks.gradient_shares import relative_norms

    assert relative_norms(norms) == expected


def run(compose_config, overrides: list[str]) -> tuple[Path, dict]:
    from cap.train import train

    cfg = compose_config(*overrides)
    train(cfg)
    return Path(cfg.output_dir), json.loads((Path(cfg.output_dir) / "record.json").read_text())


def warnings_of(record: dict) -> list[str]:
    return [warning for warning in record["warnings"] if "the encoder's gradient of" in warning]


def test_record_names_the_share_of_every_term_and_warns_of_none_without_reason(compose_config, tiny_overrides):
    light = ["contrast.unsupervised_weight=1e-4", "contrast.supervised_weight=1e-4"]
    _, record = run(compose_config, [*tiny_overrides, *light])
    assert set(record["gradient_shares"]) == set(TERMS)
    assert record["gradient_shares"]["kd"] == 1.0
    assert all(0 < share < 10 for share in record["gradient_shares"].values())
    assert record["seconds"]["gradients"] > 0
    assert warnings_of(record) == []


def test_record_warns_of_a_term_that_outweighs_distillation(compose_config, tiny_overrides):
    heavy = ["contrast.unsupervised_weight=1000", "contrast.finetuned=false"]
    _, record = run(compose_config, [*tiny_overrides, *heavy])
    warnings = warnings_of(record)
    assert [warning.partition("gradient of ")[2].split()[0] for warning in warnings] == ["loss/prc", "loss/snc"]
    assert "lower contrast.unsupervised_weight or" in warnings[0]
    assert record["gradient_shares"]["prc"] > 10


def test_a_second_term_is_set_beside_the_labels_without_a_teacher(compose_config, tiny_overrides):
    _, record = run(compose_config, [*tiny_overrides, "teacher=none", "contrast.snapshots=false"])
    assert set(record["gradient_shares"]) == {"ce", "prc"}
    assert record["gradient_shares"]["ce"] == 1.0


SNAPSHOTS_LATE = {
    # The first batches are over when the only snapshot comes.
    "logits alone": (
        ["contrast=none", "distill.snapshot_weight=1", "contrast.snapshot_count=1", "student_init=pretrained"],
        {"ce", "kd", "snapshot_kd"},
    ),
    "hidden states": (["contrast=none", "distill.hidden_weight=1"], {"ce", "kd", "hidden"}),
    "at the target": (["schedule.flat_after=0.85", "schedule.flat_before=0"], set(TERMS)),
    "dense": (["sparsity=0"], set(TERMS)),
    "layers": (["pruning=layers"], set(TERMS)),
}


@pytest.mark.parametrize(("overrides", "expected"), SNAPSHOTS_LATE.values(), ids=SNAPSHOTS_LATE)
def test_every_term_has_a_share_whenever_snapshots_come(compose_config, tiny_overrides, overrides, expected):
    _, record = run(compose_config, [*tiny_overrides, *overrides])
    assert set(record["gradient_shares"]) == expected


def test_a_run_without_room_for_the_measurement_goes_on(compose_config, tiny_overrides, monkeypatch):
    from cap.training.callbacks import gradient_shares

    asked = []

    def no_room(*arguments, **options):
        asked.append(True)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(gradient_shares, "gradient_norms", no_room)
    _, record = run(compose_config, tiny_overrides)
    assert (record["status"], "gradient_shares" in record) == ("completed", False)
    assert len(asked) == 1
    assert any(said.startswith("There was no memory to measure how hard") for said in record["warnings"])


def test_labels_alone_have_no_share(compose_config, tiny_overrides):
    _, record = run(compose_config, [*tiny_overrides, "distill=none", "contrast=none"])
    assert "gradient_shares" not in record


def test_student_that_starts_from_its_teacher_is_measured_once_weights_are_missing(
    compose_config, tiny_overrides, monkeypatch
):
    from cap.training.callbacks import gradient_shares

    measured, real = [], gradient_shares.gradient_norms

    def recorded(module, *arguments, **options):
        masks = torch.cat([mask.flatten() for mask in module.pruner.masks.values()])
        measured.append(1 - float(masks.float().mean()))
        return real(module, *arguments, **options)

    monkeypatch.setattr(gradient_shares, "gradient_norms", recorded)
    run(compose_config, [*tiny_overrides, "pruning=magnitude", "student_init=teacher", "sparsity=0.8"])
    assert measured
    assert min(measured) >= 0.4


def test_training_goes_to_the_same_bits_with_and_without_measuring(
    compose_config, tiny_overrides, tmp_path, monkeypatch
):
    from cap.training.callbacks.gradient_shares import GradientShares

    with_it, record = run(compose_config, [*tiny_overrides, f"output_dir={tmp_path / 'with'}"])
    monkeypatch.setattr(GradientShares, "on_train_batch_start", lambda *arguments: None)
    without, other = run(compose_config, [*tiny_overrides, f"output_dir={tmp_path / 'without'}"])
    assert "gradient_shares" in record
    assert "gradient_shares" not in other
    for name in ("model/model.safetensors", "logs/metrics.csv"):
        assert (with_it / name).read_bytes() == (without / name).read_bytes()


@pytest.mark.parametrize("scaler", [None, object()], ids=["no scaler", "a scaler"])
def test_halves_are_left_out_where_a_loss_scaler_works(module, monkeypatch, scaler):
    from contextlib import contextmanager
    from types import SimpleNamespace

    from cap.training.callbacks.gradient_shares import GradientShares
    from cap.training.encode import Computation

    entered = []

    @contextmanager
    def autocast():
        entered.append(True)
        yield

    used = Computation(torch.device("cpu"), "16-mixed", autocast)
    monkeypatch.setattr("cap.training.callbacks.gradient_shares.computation_of", lambda trainer: used)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler), global_step=7)
    pruning = SimpleNamespace(reached=0.4, moves=SimpleNamespace(has_arrived=False))
    shares = GradientShares(pruning, from_sparsity=0.0, note=dict, warn=str)
    shares.on_train_batch_start(trainer, module, batch(), 0)
    assert (entered, shares.seconds) == ([], 0.0)  # the student still is its snapshot
    pruning.reached = 0.5
    shares.on_train_batch_start(trainer, module, batch(), 0)
    assert entered == ([True] if scaler is None else [])
    assert shares.seconds > 0
