from __future__ import annotations

import contextlib

import pytest


@pytest.mark.parametrize(
    ("visible", "given"), [(["a-b", "c-d"], "GPU-c-d"), (["GPU-a", "GPU-b"], "GPU-b"), (["MIG-a", "MIG-b"], "MIG-b")]
)
def test_a_leased_device_has_the_name_that_cuda_knows(monkeypatch, visible, given):
    from cap.launch import devices

    monkeypatch.setattr(devices, "visible_devices", lambda: visible)
    monkeypatch.setattr(devices, "lease", lambda n, names: contextlib.nullcontext([1]))
    trainer = type("T", (), {"accelerator": "gpu", "devices": 1})
    checked = type("Checked", (), {"config": type("C", (), {"trainer": trainer})})
    with devices.leased_devices(checked, is_grid=True) as leased:
        assert leased.names == [given]


@pytest.mark.parametrize("is_used", [True, False], ids=["used", "not used"])
@pytest.mark.parametrize("error", [None, RuntimeError], ids=["ended", "failed"])
def test_a_leased_gpu_is_left_without_memory_if_it_was_used(monkeypatch, is_used, error):
    import torch

    from cap.launch import devices

    emptied = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: is_used)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    monkeypatch.setattr(devices, "visible_devices", lambda: ["GPU-a", "GPU-b"])
    monkeypatch.setattr(devices, "lease", lambda n, names: contextlib.nullcontext([1]))
    checked = type(
        "Checked", (), {"config": type("C", (), {"trainer": type("T", (), {"accelerator": "gpu", "devices": 1})})}
    )
    with contextlib.suppress(RuntimeError), devices.leased_devices(checked, is_grid=True) as given:
        assert (given.places, given.names, emptied) == ([1], ["GPU-b"], [])
        if error is not None:
            raise error
    assert emptied == ([True] if is_used else [])


def test_what_a_failed_job_held_is_gone_when_its_gpu_is_given_back(monkeypatch):
    import weakref

    import torch

    from cap.launch import devices

    class Activations:
        pass

    def forward():
        held = Activations()
        known.append(weakref.ref(held))
        raise ValueError("no room")

    def job():
        try:
            forward()
        except ValueError as error:
            raise RuntimeError("a readable one") from error

    known, left = [], []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append(known[0]()))
    with pytest.raises(RuntimeError, match="a readable one"), devices._left_empty():
        job()
    assert left == [None]
