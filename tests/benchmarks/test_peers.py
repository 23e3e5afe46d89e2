"""Other tools beside this one, on the same student: how a comparison runs, goes on and is shown."""

from __future__ import annotations

import json
import math
import sys

import pytest
from safetensors.torch import load_file

from cap.base.errors import InputError, RunError

OUTCOME = {
    "metric": "accuracy",
    "n_rows": 32,
    "majority": 0.5,
    "teacher": 0.9,
    "score": 0.75,
    "steps": 8,
    "seconds_per_step": 0.25,
    "sparsity": 0.5,
    "n_bytes": 2_000_000,
    "opens_with": "transformers",
}


@pytest.fixture
def fake_sides(monkeypatch):
    """Put two sides that only note their runs in the place of the structured comparison."""
    from benchmarks.peers import comparison
    from benchmarks.peers.sides import COMPARISONS, Side
    from benchmarks.peers.student import Outcome

    runs: list[str] = []

    def side(name: str, is_ours: bool, steps: int = 8) -> Side:
        def run(cfg):
            runs.append(f"{name}-{cfg.seed}")
            return Outcome(**OUTCOME | {"score": 0.75 + 0.01 * cfg.seed * is_ours, "steps": steps})

        return Side(run, is_ours=is_ours)

    def fill(**steps: int) -> list[str]:
        sides = {"cap": side("cap", True), "other": side("other", False, **steps)}
        monkeypatch.setitem(COMPARISONS, "structured", sides)
        return runs

    found = {name: {"first": 9.0, "median": 10.0, "third": 11.0} for name in ("cap", "other")}
    monkeypatch.setattr(comparison, "_latency", lambda folders: {"rows": 32, "tokens": 128, "milliseconds": found})
    monkeypatch.setattr(comparison, "require_sides", lambda sides, checked: None)
    return fill


@pytest.fixture
def structured(compose_config, tiny_overrides):
    """Compose a structured comparison of the tiny model."""
    levels = ("schedule.levels=[0.25,0.5]", "schedule.epochs_per_level=null")
    return compose_config(*tiny_overrides, "pruning=structured", "contrast=none", "sparsity=0.5", *levels)


def test_sides_alternate_and_what_is_there_is_left(fake_sides, structured, tmp_path):
    from benchmarks.peers.comparison import compare

    runs = fake_sides()
    first = compare(structured)
    assert runs == ["cap-1", "other-1", "cap-2", "other-2", "cap-3", "other-3"]
    runs.clear()
    (tmp_path / "run" / "outcomes" / "other-2.json").unlink()
    again = compare(structured)
    assert runs == ["other-2"]
    assert again["sides"] == first["sides"]
    runs.clear()
    structured.overwrite = True
    compare(structured)
    assert len(runs) == 6
    assert list(json.loads((tmp_path / "run" / "results.json").read_text())["sides"]["cap"]["seeds"]) == ["1", "2", "3"]


def test_overwriting_leaves_nothing_of_before_should_it_be_stopped(fake_sides, structured, tmp_path, monkeypatch):
    from benchmarks.peers.cap_itself import compact_folder
    from benchmarks.peers.comparison import Kept, compare

    fake_sides()
    compare(structured)
    stale = compact_folder(str(tmp_path / "run" / "cap-2"))
    stale.mkdir()
    structured.overwrite = True
    monkeypatch.setattr(Kept, "make", lambda self, side: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        compare(structured)
    assert not list((tmp_path / "run" / "outcomes").iterdir())
    assert not stale.exists()


def test_results_are_there_after_the_first_seed(fake_sides, structured, tmp_path, monkeypatch):
    from benchmarks.peers.comparison import Kept, compare

    fake_sides()
    make = Kept.make

    def stop_in_second(self, side):
        if self.seed == 2:
            raise KeyboardInterrupt
        make(self, side)

    monkeypatch.setattr(Kept, "make", stop_in_second)
    with pytest.raises(KeyboardInterrupt):
        compare(structured)
    assert list(json.loads((tmp_path / "run" / "results.json").read_text())["sides"]["cap"]["seeds"]) == ["1"]


def test_what_came_out_of_another_configuration_is_refused(fake_sides, structured):
    from benchmarks.peers.comparison import compare

    fake_sides()
    compare(structured)
    structured.learning_rate = 2e-3
    with pytest.raises(InputError, match="is of another one; give another output_dir"):
        compare(structured)


def test_sides_of_different_lengths_are_no_comparison(fake_sides, structured):
    from benchmarks.peers.comparison import compare

    fake_sides(steps=9)
    with pytest.raises(RunError, match="as many optimizer steps"):
        compare(structured)


@pytest.mark.parametrize(
    ("seconds", "left", "minutes"),
    [
        pytest.param({}, ["cap"], None, id="nothing is known"),
        pytest.param({"cap": [60.0, 180.0]}, ["cap", "cap"], 4, id="a side counts as its own mean"),
        pytest.param({"cap": [60.0], "other": [180.0]}, ["cap", "third"], 3, id="a new one as that of all"),
    ],
)
def test_what_remains_is_estimated_from_what_has_run(seconds, left, minutes):
    from benchmarks.peers.comparison import minutes_left

    assert minutes_left(seconds, left) == minutes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(["pruning=magnitude"], "set contrast=none", id="contrast"),
        pytest.param(["pruning=layers", "contrast=none"], "set pruning=structured", id="layers"),
        pytest.param(["contrast=none", "trainer.devices=2"], "in one process", id="processes"),
        pytest.param(["contrast=none", "dry_run=true"], "a comparison trains", id="dry run"),
        pytest.param(
            ["pruning=structured", "contrast=none", "distill.hidden_weight=1.0"], "hidden states of each", id="hidden"
        ),
        pytest.param(
            ["pruning=structured", "contrast=none", "sparsity=0.4"], "must be a share of this model's 2", id="no share"
        ),
        pytest.param(["pruning=magnitude", "contrast=none", "trainer.max_epochs=1"], "at least 2", id="one epoch"),
    ],
)
def test_what_cannot_work_is_refused_before_any_side_trains(
    compose_config, tiny_overrides, tmp_path, overrides, message
):
    from benchmarks.peers.comparison import compare

    with pytest.raises(InputError, match=message):
        compare(compose_config(*tiny_overrides, *overrides))
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_named_with_the_line_that_installs_it(structured, monkeypatch):
    from benchmarks.peers.comparison import compare

    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(InputError, match=r"got none called torch-pruning; run `pip install .*\[peers\]'`"):
        compare(structured)


def test_table_has_the_best_first_and_the_sentence_says_by_how_much(fake_sides, structured, tmp_path):
    from benchmarks.peers.comparison import compare
    from benchmarks.peers.table import NOTHING, page_part

    fake_sides()
    compare(structured)
    assert page_part(tmp_path) == NOTHING
    (tmp_path / "run" / "results.json").rename(tmp_path / "peers_sst2.json")
    page = page_part(tmp_path)
    rows = [line for line in page.splitlines() if line.startswith("| sst2, 32 rows")]
    assert [row.split(" | ")[2:4] for row in rows] == [["cap", "0.770 ± 0.010"], ["other", "0.750 ± 0.000"]]
    assert (
        "cap is first; cap minus other, paired by seed: +2.00 ± 0.58 points (3 seeds, 3.5 standard errors, not clear"
        in page
    )


def test_command_that_is_shown_names_no_place():
    from benchmarks.peers.comparison import shown_command

    typed = ["task=mrpc", "data_dir=/home/data/mrpc", "sparsity=0.9", "output_dir=/home/out", "cache_dir=cache"]
    assert shown_command(typed) == "python -m benchmarks.peers task=mrpc data_dir=DIR/mrpc sparsity=0.9"


@pytest.mark.parametrize("n_epochs", [2, 3, 8])
def test_amounts_end_at_the_sparsity_and_leave_epochs_to_recover(n_epochs):
    from benchmarks.peers.model_pruning import amounts_by_epoch

    amounts = amounts_by_epoch(0.9, n_epochs)
    assert len(amounts) <= n_epochs / 2
    assert 1 - math.prod(1 - amount for amount in amounts) == pytest.approx(0.9)


@pytest.mark.ends
def test_sides_that_zero_weights_meet_the_sparsity(compose_config, tiny_overrides, tmp_path, monkeypatch):
    from benchmarks.peers import comparison
    from benchmarks.peers.__main__ import benchmark

    monkeypatch.setattr(comparison, "N_SEEDS", 1)
    benchmark(compose_config(*tiny_overrides, "pruning=magnitude", "contrast=none", "sparsity=0.75"))
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    sides = {name: side["seeds"]["1"] for name, side in results["sides"].items()}
    assert list(sides) == ["cap", "ModelPruning"]
    assert [side["sparsity"] for side in sides.values()] == pytest.approx([0.75, 0.75], abs=1e-3)
    assert all(side["seconds_per_step"] > 0 for side in sides.values())
    assert all(found["median"] > 0 for found in results["latency"]["milliseconds"].values())
    cap, peer = (load_file(tmp_path / "run" / f"{name}-1" / "model" / "model.safetensors") for name in sides)
    assert {name: value.shape for name, value in cap.items()} == {name: value.shape for name, value in peer.items()}
    others = [name for name in peer if ".layer." not in name or not name.endswith("weight") or peer[name].ndim == 1]
    zeros = {side: [int((weights[name] == 0).sum()) for name in others] for side, weights in (("a", cap), ("b", peer))}
    assert zeros["a"] == zeros["b"], "only the matrices of the encoder layers are pruned"
