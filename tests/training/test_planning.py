"""What is refused once the rows are known, and before anything is trained."""

from __future__ import annotations

import pytest

# Of four batches of 8 rows, validated in three.
REFUSED = {
    "no batch to train on": (
        ["trainer.limit_train_batches=0.2"],
        "limit_train_batches must leave at least one of the 4 batches of an epoch, got 0.2; set a whole number",
    ),
    "validations after more batches than there are": (
        ["trainer.val_check_interval=5"],
        "val_check_interval counts batches within an epoch and can be at most 4 here, got 5; set trainer.check_val",
    ),
    "validations after more batches than are left": (
        ["trainer.limit_train_batches=2", "trainer.val_check_interval=3"],
        "can be at most 2 here, got 3",
    ),
    "no batch to validate": (
        ["trainer.limit_val_batches=0.1"],
        "limit_val_batches must leave at least one of the",
    ),
}
ALLOWED = {
    "validations at the end of an epoch": ["trainer.val_check_interval=4"],
    "validations over the epochs": ["trainer.val_check_interval=5", "trainer.check_val_every_n_epoch=null"],
    "no validation": ["trainer.limit_val_batches=0", "trainer.val_check_interval=5"],
    "half of the batches": ["trainer.limit_train_batches=0.5"],
}


def prepared(compose_config, overrides: list[str]):
    from cap.config.check import check
    from cap.training.preparation import prepare
    from cap.training.ready import make_ready

    ready = make_ready(check(compose_config(*overrides)))
    return ready, prepare(ready)


def look(compose_config, overrides: list[str]) -> int:
    from cap.training.planning import require_possible

    return require_possible(*prepared(compose_config, overrides), devices=1)


@pytest.mark.parametrize(("overrides", "expected"), REFUSED.values(), ids=REFUSED)
def test_limits_that_leave_nothing_are_refused(compose_config, tiny_overrides, overrides, expected):
    from cap.base.errors import InputError

    with pytest.raises(InputError) as caught:
        look(compose_config, [*tiny_overrides, "data.eval_batch_size=8", *overrides])
    assert expected in str(caught.value)


@pytest.mark.parametrize("overrides", ALLOWED.values(), ids=ALLOWED)
def test_limits_that_leave_something_pass(compose_config, tiny_overrides, overrides):
    assert look(compose_config, [*tiny_overrides, *overrides]) > 0


CARDS = {
    "room": ([3.0], 1, True),
    "none beside the optimizer": ([2.0], 1, False),
    "a small one that the run does not take": ([3.0, 1.0], 1, True),
    "a small one that it takes": ([3.0, 1.0], 2, False),
    "which": ([1.0, 3.0], [1], True),
}


@pytest.mark.parametrize(("sizes", "devices", "fits"), CARDS.values(), ids=CARDS)
def test_a_pass_on_a_gpu_has_what_student_and_optimizer_leave(
    compose_config, tiny_overrides, monkeypatch, sizes, devices, fits
):
    from types import SimpleNamespace

    import torch

    from cap.base.errors import InputError
    from cap.training.planning import require_possible

    run = prepared(compose_config, [*tiny_overrides, "pruning=second_order", "pruning.gradient_rows=4"])
    cards = [SimpleNamespace(total_memory=int(size * 1024**3)) for size in sizes]
    monkeypatch.setattr("cap.training.planning.takes_gpus", lambda accelerator: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    if fits:
        assert require_possible(*run, devices=devices) > 0
    else:
        with pytest.raises(InputError, match=r"and the GPU has beside the student and its optimizer 0\.00"):
            require_possible(*run, devices=devices)
