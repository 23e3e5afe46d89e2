"""The list of the bake-off and the processes that work it off."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.reports.made_records import TEMPLATE, made_record

FAKE = Path(__file__).with_name("fake_train.py")
LIST = """
defaults: {pruning: magnitude, sparsity: 0.97, contrast: [cap, none], seeds: [1, 2], overrides: [model=minilm, a=1]}
tasks: {sst2_8k: [task=sst2]}
blocks:
  - {name: later, priority: 2, task: mrpc, contrast: none, seeds: 1}
  - {name: first, priority: 1, task: sst2_8k}
  - {name: changed, priority: 3, task: sst2_8k, contrast: cap, seeds: 1, variants: {no rewind: [a=2]}, shown: ablation}
"""


@pytest.fixture
def cells_of(tmp_path):
    """Read the cells of a text."""

    def read(text: str):
        from benchmarks.bake_off.cells import read_cells

        path = tmp_path / "list.yaml"
        path.write_text(text)
        return read_cells(path)

    return read


# ---- the list


def test_blocks_multiply_out_by_priority_and_every_arm_has_a_seed_before_one_has_two(cells_of):
    assert [cell.name for cell in cells_of(LIST)] == [
        "sst2_8k_magnitude_0.97_cap_seed1",
        "sst2_8k_magnitude_0.97_none_seed1",
        "sst2_8k_magnitude_0.97_cap_seed2",
        "sst2_8k_magnitude_0.97_none_seed2",
        "mrpc_magnitude_0.97_none_seed1",
        "sst2_8k_magnitude_0.97_cap_no-rewind_seed1",
    ]


def test_overrides_add_up_and_the_last_word_on_a_key_counts(cells_of):
    assert cells_of(LIST)[-1].all_overrides == (
        "task=sst2",
        "model=minilm",
        "a=2",
        "pruning=magnitude",
        "sparsity=0.97",
        "contrast=cap",
        "seed=1",
    )


def test_contrast_does_not_ask_for_another_teacher_but_seed_and_rows_do(cells_of):
    cells = cells_of(LIST)
    assert cells[0].teacher_key == cells[1].teacher_key
    assert len({cells[index].teacher_key for index in (0, 2, 4)}) == 3


def test_everything_that_is_wrong_is_said_at_once(cells_of):
    from cap.base.errors import InputError

    text = """
defaults: {pruning: magnitude, seeds: [1], sparsity: 0.5, contrast: cap}
blocks:
  - {name: a, priority: 0, task: sst2, seed: 1}
  - {name: b, priority: 1, task: sst2, sparsity: 97, contrast: true}
  - {name: c, priority: 1, overrides: [resume=true, nothing]}
  - {name: d, priority: 1, task: sst2}
  - {name: e, priority: 1, task: sst2}
"""
    with pytest.raises(InputError) as caught:
        cells_of(text)
    said = str(caught.value).splitlines()
    wanted = [
        "block 'a' has the key 'seed', must be one of seeds,",
        "block 'a': priority must be a whole number of at least 1, got 0",
        "block 'b': sparsity must be a fraction in [0, 1), got 97",
        "block 'b': contrast must be one of cap, none, got True",
        "block 'c': resume must be left to",
        "block 'c': overrides must be a list of key=value, got 'nothing'",
        "block 'c' has no task",
        "but sst2_magnitude_0.5_cap_seed1 is in the blocks 'd' and 'e'",
    ]
    assert [any(words in line for line in said) for words in wanted] == [True] * len(wanted)
    assert len(said) == len(wanted)


def test_the_committed_list_has_a_name_for_every_cell_and_pairs_contrast_with_none():
    from benchmarks.bake_off.cells import read_cells
    from benchmarks.bake_off.places import LIST as COMMITTED

    cells = read_cells(COMMITTED)
    first = [cell for cell in cells if cell.priority == 1]
    assert {(cell.contrast, cell.seed) for cell in first} == {(c, s) for c in ("cap", "none") for s in (1, 2, 3)}


# ---- the processes


@pytest.fixture
def places(tmp_path):
    from benchmarks.bake_off.places import Places

    (tmp_path / "outputs").mkdir()
    return Places(tmp_path / "outputs", tmp_path / "records", tmp_path)


@pytest.fixture
def pool_of(places):
    """Make a pool whose commands are fake; ``steps`` by name, and who fails."""

    def make(*, limit=60.0, steps=1, failing="nobody", n_slots=2):
        from benchmarks.bake_off.pool import Pool
        from benchmarks.bake_off.workers import Slot

        def command(cell):
            bad = ["failing"] if failing in cell.name else []
            return [sys.executable, str(FAKE), str(places.run(cell)), str(steps), str(TEMPLATE), *bad]

        said: list[str] = []
        slots = [Slot(environment={"WORKER": str(number)}) for number in range(n_slots)]
        pool = Pool(places, slots, limit_seconds=limit, say=said.append, command=command, poll_seconds=0.02)
        pool.said = said
        return pool

    return make


def as_soon_as(places, n_running: int, act) -> None:
    """Act once so many fake runs have begun to listen."""

    def watch() -> None:
        while len(list(places.outputs.glob("*/*/record.json"))) < n_running:
            time.sleep(0.02)
        act()

    threading.Thread(target=watch, daemon=True).start()


def test_cells_end_with_small_records_and_are_not_run_again(cells_of, pool_of, places):
    cells = cells_of(LIST)[:3]
    outcomes = pool_of().run(cells)
    assert sorted(outcome.cell.name for outcome in outcomes) == sorted(cell.name for cell in cells)
    assert {outcome.outcome for outcome in outcomes} == {"completed"}
    assert [places.state(cell).kind for cell in cells] == ["done"] * 3
    assert {path.stem for path in places.records.iterdir()} == {cell.name for cell in cells}


def test_a_record_of_other_overrides_is_none(cells_of, pool_of, places):
    (cell, *_) = cells_of(LIST)
    pool_of().run([cell])
    (changed, *_) = cells_of(LIST.replace("a=1", "a=3"))
    assert (changed.name, places.is_done(cell), places.is_done(changed)) == (cell.name, True, False)
    assert places.run(changed) != places.run(cell)


def test_a_finished_run_of_other_code_is_made_again(cells_of, places):
    cell = cells_of(LIST)[0]
    run = places.run(cell)
    run.mkdir(parents=True)
    made = {"status": "completed", "environment": {"git_commit": "old"}}
    (run / "record.json").write_text(json.dumps(made))
    assert places.is_finished_by_other_code(cell, "new")
    assert not places.is_finished_by_other_code(cell, "old")
    (run / "record.json").write_text(json.dumps(made | {"status": "interrupted"}))
    assert not places.is_finished_by_other_code(cell, "new")


def test_the_last_words_are_those_of_the_last_attempt(tmp_path):
    from benchmarks.bake_off.pool import last_words

    log = tmp_path / "log"
    log.write_text("error: the old one\n")
    before = log.stat().st_size
    assert last_words(log) == "error: the old one"
    log.write_text("error: the old one\nstep 1\n")
    assert last_words(log, after=before) == "step 1"


def test_what_runs_at_the_limit_saves_and_goes_on_when_the_command_is_repeated(cells_of, pool_of, places):
    cells = cells_of(LIST)[:3]
    pool = pool_of(steps=100_000)
    as_soon_as(places, 2, lambda: setattr(pool, "_deadline", 0.0))
    outcomes = pool.run(cells)
    assert [outcome.outcome for outcome in outcomes] == ["interrupted"] * 2
    begun = [outcome.cell for outcome in outcomes]
    assert {str(places.state(cell)).split(" at step ")[0] for cell in begun} == {"interrupted"}
    steps = {cell.name: places.state(cell).step for cell in begun}
    assert all(step > 0 for step in steps.values())
    assert [places.state(cell).kind for cell in cells if cell not in begun] == ["missing"]
    pool_of(steps=max(steps.values()) + 1).run(cells)
    assert [places.state(cell).kind for cell in cells] == ["done"] * 3
    records = {cell.name: json.loads(places.record(cell).read_text()) for cell in begun}
    assert {name: record["resumed_at"] for name, record in records.items()} == {n: [s] for n, s in steps.items()}


def test_a_cell_that_fails_is_noted_and_stops_no_other(cells_of, pool_of, places):
    cells = cells_of(LIST)[:3]
    outcomes = pool_of(failing="none_seed1").run(cells)
    failed = [outcome for outcome in outcomes if outcome.outcome == "failed"]
    assert [outcome.reason for outcome in failed] == ["exit code 2, error: sparsity lies in [0, 1), got 97"]
    assert str(places.state(cells[1])) == "failed: exit code 2, error: sparsity lies in [0, 1), got 97"
    assert [places.state(cell).kind for cell in cells] == ["done", "failed", "done"]


def test_two_cells_that_need_one_teacher_are_not_begun_together(cells_of, pool_of, places, monkeypatch):
    cells = cells_of(LIST)[:4]
    pool = pool_of(steps=3)
    pool.run(cells)
    begun = [line.split(";")[0].removeprefix("started ") for line in pool.said if line.startswith("started ")]
    assert begun[:2] == ["sst2_8k_magnitude_0.97_cap_seed1", "sst2_8k_magnitude_0.97_cap_seed2"]


def test_no_cell_is_begun_that_ends_long_after_the_limit(cells_of, pool_of):
    cells = cells_of(LIST)
    pool = pool_of()
    pool.pending = cells[:2]
    pool._deadline = float("inf")
    assert pool._next() is cells[0]
    pool.times.add(cells[2], 100.0)
    assert pool.times.expected(cells[4]) is None
    assert pool.times.expected(cells[0], spent=70.0) == pytest.approx(30.0)
    pool._deadline = time.monotonic() + 70.0
    assert pool._next() is None
    pool._deadline = time.monotonic() + 80.0
    assert pool._next() is cells[0]


def test_a_signal_ends_the_processes_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    from benchmarks.bake_off import __main__ as door
    from benchmarks.bake_off.places import Places
    from benchmarks.bake_off.workers import Slot

    (tmp_path / "list.yaml").write_text(LIST)
    for task in ("sst2_8k", "mrpc"):
        (tmp_path / task).mkdir()

    def command(self, cell):
        return [sys.executable, str(FAKE), str(self.run(cell)), "100000", str(TEMPLATE)]

    monkeypatch.setattr(Places, "command", command)
    monkeypatch.setattr(door, "slots", lambda n: [Slot()])
    as_soon_as(Places(tmp_path / "outputs"), 1, lambda: os.kill(os.getpid(), 15))
    folders = [f"--outputs={tmp_path / 'outputs'}", f"--records={tmp_path / 'records'}", f"--data-root={tmp_path}"]
    assert door.main(["--minutes=1", f"--cells={tmp_path / 'list.yaml'}", *folders]) == 143
    said = capsys.readouterr()
    assert "1 interrupted; 6 cells are left" in said.out
    assert "repeat the command to go on" in said.err
    assert len(list(tmp_path.glob("outputs/*/*/checkpoints/step-*.json"))) == 1


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "--minutes must be more than 0, got None"),
        (["--minutes=1"], "--data-root must be the folder that holds mrpc, sst2_8k"),
        (["--minutes=1", "--data-root=."], "without mrpc, sst2_8k"),
        (["--only=nothing", "--list"], "--only must match the name of a cell or block, got nothing"),
        (["--hours=1"], "unrecognized arguments: --hours=1"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, arguments, problem):
    from benchmarks.bake_off.__main__ import main

    (tmp_path / "list.yaml").write_text(LIST)
    folders = [f"--outputs={tmp_path / 'outputs'}", f"--records={tmp_path / 'records'}"]
    assert main([f"--cells={tmp_path / 'list.yaml'}", *folders, *arguments]) == 2
    assert problem in capsys.readouterr().err


def test_the_command_names_folders_of_data_and_of_the_run(cells_of, places, tmp_path):
    (cell, *_) = cells_of(LIST.replace("a=1", "data.unlabelled=DIR/sst2/train.parquet"))
    words = places.command(cell)
    assert words[1:3] == ["-m", "cap.train"]
    wanted = [f"data_dir={tmp_path}/sst2_8k", f"data.unlabelled={tmp_path}/sst2/train.parquet", "resume=true", "seed=1"]
    assert [word in words for word in wanted] == [True] * 4


def test_every_worker_has_a_core_of_its_own_and_one_thread(monkeypatch):
    from benchmarks.bake_off import workers
    from cap.base.errors import InputError

    monkeypatch.setattr(workers, "_gpus", lambda: [])
    monkeypatch.setattr(workers, "_cores", lambda: [3, 5, 8])
    two = workers.slots(None)
    assert [(set(slot.cores), slot.environment["OMP_NUM_THREADS"]) for slot in two] == [({3}, "1"), ({5}, "1")]
    with pytest.raises(InputError, match="--workers must be at most the number of cores, 3"):
        workers.slots(4)


def test_every_worker_has_a_gpu_of_its_own(monkeypatch):
    from benchmarks.bake_off import workers

    monkeypatch.setattr(workers, "_gpus", lambda: ["2", "7"])
    assert [(slot.environment["CUDA_VISIBLE_DEVICES"], set(slot.cores)) for slot in workers.slots(None)] == [
        ("2", set()),
        ("7", set()),
    ]


# ---- small records


def test_a_small_record_names_no_folder_and_holds_no_long_list(cells_of, tmp_path):
    from benchmarks.bake_off.records import small_record

    (cell, *_) = cells_of(LIST)
    record = made_record(score=0.8)
    levels = [(1, 0.5, 0.86), (2, 0.9, 0.81), (3, 0.9, 0.84), (4, 0.9, 0.8)]
    record["levels"] = [{"step": s, "target": t, "sparsity": t, "scores": {"accuracy": a}} for s, t, a in levels]
    record["config"]["data_dir"] = f"{tmp_path}/sst2_8k"
    record["command"] = f"python -m cap.train task=sst2 data_dir={tmp_path}/sst2_8k output_dir=/x/y resume=true seed=1"
    record["warnings"] = [f"{tmp_path}/sst2_8k and /somewhere/else/file.txt are read"]
    record["dynamics"] = {"path_after_target": 0.12, "curve": list(range(1000))}
    small = small_record(record, cell, data_root=tmp_path, commits=["a", "b-dirty"])
    assert small["command"] == "python -m cap.train task=sst2 data_dir=DIR/sst2_8k seed=1"
    assert small["config"]["data_dir"] == "DIR/sst2_8k"
    assert small["warnings"] == ["DIR/sst2_8k and file.txt are read"]
    assert small["dynamics"] == {"path_after_target": 0.12}
    assert [small["validations"][key]["step"] for key in ("best", "best_at_target", "last")] == [1, 3, 4]
    assert (small["seconds_comparable"], small["commits"]) == (False, ["a", "b-dirty"])
    assert not {"levels", "matrices", "units"} & small.keys()
    assert len(json.dumps(small)) < 6000
