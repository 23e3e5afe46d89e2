"""Other tools beside this one, on the same student."""

from __future__ import annotations

import json
import math

import pytest
from safetensors.torch import load_file

from cap.base.errors import InputError


@pytest.mark.parametrize("n_epochs", [2, 3, 8])
def test_amounts_end_at_the_sparsity_and_leave_epochs_to_recover(n_epochs):
    from benchmarks.peers.__main__ import amounts_by_epoch

    amounts = amounts_by_epoch(0.9, n_epochs)
    assert len(amounts) <= n_epochs / 2
    assert 1 - math.prod(1 - amount for amount in amounts) == pytest.approx(0.9)


def test_both_sides_meet_the_sparsity_and_say_what_came_out(compose_config, tiny_overrides, tmp_path, monkeypatch):
    from benchmarks.peers import __main__ as peers

    monkeypatch.setattr(peers, "N_SEEDS", 1)
    peers.benchmark(compose_config(*tiny_overrides, "pruning=magnitude", "contrast=none", "sparsity=0.75"))
    sides = json.loads((tmp_path / "run" / "results.json").read_text())["sides"]
    assert list(sides) == ["cap", "ModelPruning"]
    assert [side["seeds"][0]["sparsity"] for side in sides.values()] == pytest.approx([0.75, 0.75], abs=1e-3)
    assert all(side["milliseconds"] > 0 and side["seeds"][0]["seconds_per_step"] > 0 for side in sides.values())
    cap, peer = (load_file(tmp_path / "run" / f"{name}-1" / "model" / "model.safetensors") for name in sides)
    assert {name: value.shape for name, value in cap.items()} == {name: value.shape for name, value in peer.items()}
    others = [name for name in peer if ".layer." not in name or not name.endswith("weight") or peer[name].ndim == 1]
    zeros = {side: [int((weights[name] == 0).sum()) for name in others] for side, weights in (("a", cap), ("b", peer))}
    assert zeros["a"] == zeros["b"], "only the matrices of the encoder layers are pruned"


def test_contrast_is_refused(compose_config, tiny_overrides):
    from benchmarks.peers.__main__ import benchmark

    with pytest.raises(InputError, match="set contrast=none"):
        benchmark(compose_config(*tiny_overrides, "pruning=magnitude"))
