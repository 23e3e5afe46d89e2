"""Encodings of which several processes make a share each."""

from __future__ import annotations

import copy
import itertools
import shutil
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

N_ROWS = 9
# Three batches of three rows, and what is in them: not in the order of the ids, and of different lengths.
BATCHES = [[8, 2, 5], [1, 7, 0], [3, 6, 4]]
N_TOKENS = (5, 2, 9, 3, 9, 4, 2, 6, 7)


@pytest.fixture
def classifier(tiny_model):
    return _pooled(tiny_model, "classes", ("no", "yes"))


@pytest.fixture
def reader(tiny_model):
    return _pooled(tiny_model, "span", ())


@pytest.fixture(params=["classes", "span"])
def model(request, tiny_model):
    return _pooled(tiny_model, request.param, ("no", "yes") if request.param == "classes" else ())


def _pooled(folder, kind, labels):
    from cap.base.kinds import Head
    from cap.models.encoders import load_model
    from cap.models.pooled import PooledModel
    from cap.models.sources import ModelSource

    torch.manual_seed(0)
    loaded = load_model(ModelSource(str(folder), "tiny"), head=Head(kind, labels))
    return PooledModel(loaded.model, "first_token").train()


def batch(ids: list[int]) -> dict[str, torch.Tensor]:
    width = max(N_TOKENS[row] for row in ids)
    mask = torch.tensor([[int(token < N_TOKENS[row]) for token in range(width)] for row in ids])
    tokens = torch.tensor([[5 + (3 * row + token) % 15 for token in range(width)] for row in ids])
    return {"input_ids": tokens * mask, "attention_mask": mask, "example_id": torch.tensor(ids)}


def share(rank: int, size: int, batches: list[list[int]] = BATCHES) -> DataLoader:
    return DataLoader([batch(ids) for ids in batches[rank::size]], batch_size=None)


def computation(ranks):
    from cap.training.encode import Computation

    return Computation(torch.device("cpu"), "32-true", nullcontext, ranks)


def frozen(model, cache_dir, ranks, loader=None, *, with_hidden=False):
    from cap.training.encode import frozen_outputs

    return frozen_outputs(
        copy.deepcopy(model),
        loader or share(ranks.rank, ranks.size),
        data_key="rows",
        cache_dir=cache_dir,
        computation=computation(ranks),
        description="encoding",
        with_logits=True,
        with_hidden=with_hidden,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def entries(cache_dir: Path) -> dict[str, bytes]:
    return {name: data for name, data in contents(cache_dir).items() if not name.endswith(".lock")}


@pytest.fixture
def alone(model, tmp_path):
    from cap.training.parallel.ranks import ALONE

    frozen(model, tmp_path / "alone", ALONE)
    return tmp_path / "alone"


class Full(list):
    """Stand in for a disk that fills up while a model encodes: the second batch cannot be had."""

    def __getitem__(self, row):
        if row > 0:
            raise OSError(28, "No space left on device")
        return super().__getitem__(row)


def test_process_that_sees_an_older_state_of_the_cache_points_at_the_same_files(model, tmp_path, alone):
    from tests.training.ranks_in_threads import run_ranks

    views = [alone, tmp_path / "older"]
    first, second = run_ranks(2, lambda ranks: frozen(model, views[ranks.rank], ranks))
    assert (first.was_cached, second.was_cached) == (True, True)
    assert (first.lengths is None) == (second.lengths is None)


@pytest.mark.parametrize("size", [2, 3, 5], ids=["two", "one batch each", "two without a batch"])
def test_entry_that_several_processes_make_has_the_name_and_the_bytes_of_one(model, tmp_path, alone, size):
    from tests.training.ranks_in_threads import run_ranks

    outputs = run_ranks(size, lambda ranks: frozen(model, tmp_path / "shared", ranks))
    assert entries(tmp_path / "shared") == entries(alone)
    assert outputs == [outputs[0]] * size
    assert not outputs[0].was_cached


@pytest.mark.parametrize("size", [2, 5], ids=["two", "two without a batch"])
def test_hidden_states_of_several_processes_are_those_of_one(model, tmp_path, size):
    from cap.training.parallel.ranks import ALONE
    from tests.training.ranks_in_threads import run_ranks

    frozen(model, tmp_path / "alone", ALONE, with_hidden=True)
    run_ranks(size, lambda ranks: frozen(model, tmp_path / "shared", ranks, with_hidden=True))
    found = entries(tmp_path / "shared")
    assert found == entries(tmp_path / "alone")
    assert any(name.endswith("hidden.npy") for name in found)


def test_every_process_finds_what_is_there(model, alone):
    from tests.training.ranks_in_threads import run_ranks

    outputs = run_ranks(2, lambda ranks: frozen(model, alone, ranks, share(0, 1, [])))
    assert [output.was_cached for output in outputs] == [True, True]


def test_processes_wait_for_another_run_that_makes_the_same(model, tmp_path, alone):
    from cap.base.files import locked
    from tests.training.ranks_in_threads import run_ranks

    outputs = []
    made = next((alone / "encodings").glob("[!.]*"))
    folder = tmp_path / "shared" / "encodings" / made.name
    with locked(folder):
        waiting = threading.Thread(
            target=lambda: outputs.extend(run_ranks(2, lambda ranks: frozen(model, tmp_path / "shared", ranks)))
        )
        waiting.start()
        waiting.join(timeout=0.5)
        assert waiting.is_alive()
        shutil.copytree(made, folder)
    waiting.join()
    assert [output.was_cached for output in outputs] == [True, True]


@pytest.mark.parametrize(
    "parts", [[[[0, 1]], [[1, 2]]], [[[0, 1]], [[3]]], [[[1]], [[2]]]], ids=["twice", "gap", "no zero"]
)
def test_rows_that_are_not_each_on_one_process_are_refused_by_all(classifier, tmp_path, parts):
    from cap.base.errors import RunError
    from tests.training.ranks_in_threads import run_ranks

    loaders = [DataLoader([batch(ids) for ids in part], batch_size=None) for part in parts]
    first, second = run_ranks(2, lambda ranks: frozen(classifier, tmp_path, ranks, loaders[ranks.rank]))
    assert isinstance(first, ValueError)
    assert "exactly once" in str(first)
    assert isinstance(second, RunError)
    assert entries(tmp_path) == {}


@pytest.mark.parametrize("broken", [0, 1])
def test_process_that_fails_stops_the_others_with_its_reason_and_leaves_nothing(classifier, tmp_path, broken):
    from cap.base.errors import RunError
    from tests.training.ranks_in_threads import run_ranks

    loaders = [share(rank, 3, BATCHES * 2) for rank in range(3)]
    loaders[broken] = DataLoader(Full(loaders[broken].dataset), batch_size=None)
    outcomes = run_ranks(3, lambda ranks: frozen(classifier, tmp_path, ranks, loaders[ranks.rank]))
    assert isinstance(outcomes.pop(broken), OSError)
    assert [type(outcome) for outcome in outcomes] == [RunError, RunError]
    assert f"rank {broken} failed (OSError: [Errno 28] No space left on device)" in str(outcomes[0])
    assert entries(tmp_path) == {}


@pytest.mark.parametrize("size", [1, 2])
def test_what_a_killed_run_left_is_removed(model, tmp_path, alone, size):
    from tests.training.ranks_in_threads import run_ranks

    expected = entries(alone)
    made = next((alone / "encodings").glob("[!.]*"))
    left_over = made.parent / f".{made.name}.shares.abc" / "0"
    left_over.mkdir(parents=True)
    (left_over / "encodings.npy").write_bytes(b"half")
    (made / "meta.json").unlink()
    run_ranks(size, lambda ranks: frozen(model, alone, ranks))
    assert entries(alone) == expected


def test_more_rows_than_are_put_together_at_a_time_come_in_order(model, tmp_path, alone, monkeypatch):
    from cap.training.parallel import shares
    from tests.training.ranks_in_threads import run_ranks

    monkeypatch.setattr(shares, "_CHUNK", 2)
    run_ranks(2, lambda ranks: frozen(model, tmp_path / "shared", ranks))
    assert entries(tmp_path / "shared") == entries(alone)


def snapshot(model, path, ranks, loader=None, **options):
    from cap.training.encode import take_snapshot

    loader = loader or share(ranks.rank, ranks.size)
    return take_snapshot(model, loader, path, computation=computation(ranks), description="snapshot", **options)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_snapshot_of_several_processes_is_the_bank_that_an_entry_holds(model, tmp_path, alone, size):
    from tests.training.ranks_in_threads import run_ranks

    path = tmp_path / "run" / "step-0000003.npy"
    is_there = run_ranks(size, lambda ranks: bool(snapshot(copy.deepcopy(model), path, ranks)) and path.is_file())
    (encodings,) = (alone / "encodings").glob("[!.]*/encodings.npy")
    assert path.read_bytes() == encodings.read_bytes()
    assert is_there == [True] * size
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("with_encodings", [True, False], ids=["and encodings", "alone"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_logits_of_a_snapshot_are_those_that_an_entry_holds(model, tmp_path, alone, size, with_encodings):
    from cap.training.encode import snapshot_files
    from tests.training.ranks_in_threads import run_ranks

    path, options = tmp_path / "run" / "step-0000003.npy", {"with_logits": True, "with_encodings": with_encodings}
    written = run_ranks(size, lambda ranks: snapshot(copy.deepcopy(model), path, ranks, **options))
    (entry,) = (alone / "encodings").glob("[!.]*")
    expected = {file.name: file.read_bytes() for file in entry.glob("*.npy")}
    if not with_encodings:
        del expected["encodings.npy"]
    files = snapshot_files(path)
    assert {name: files[name].read_bytes() for name in written[0]} == expected
    assert written == [written[0]] * size
    assert {found.name for found in path.parent.iterdir()} == {files[name].name for name in expected}


def test_snapshot_is_taken_in_eval_mode_and_leaves_the_student_in_its_own(classifier, tmp_path):
    from cap.training.parallel.ranks import ALONE

    for name in ("first", "second"):
        snapshot(classifier, tmp_path / name, ALONE)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()  # dropout would differ
    assert classifier.training


def test_snapshot_that_fails_leaves_the_file_as_it_was(classifier, tmp_path):
    from cap.training.parallel.ranks import ALONE

    (tmp_path / "bank.npy").write_bytes(b"old")
    with pytest.raises(ValueError, match="exactly once"):
        snapshot(classifier, tmp_path / "bank.npy", ALONE, share(0, 1, [[0, 2]]))
    assert contents(tmp_path) == {"bank.npy": b"old"}


@pytest.fixture
def full_disk(monkeypatch):
    """Let the disk fill up when the second piece of what was encoded is put together."""
    from cap.base.files import GrowingArray
    from cap.training.parallel import shares

    append, n_appended = GrowingArray.append, itertools.count()

    def append_until_full(self, rows):
        if self._path.parent.name != "0" and next(n_appended) > 0:
            raise OSError(28, "No space left on device")
        append(self, rows)

    monkeypatch.setattr(shares, "_CHUNK", 2)
    monkeypatch.setattr(GrowingArray, "append", append_until_full)


@pytest.mark.usefixtures("full_disk")
def test_snapshot_that_is_half_written_never_has_its_name(classifier, tmp_path):
    from cap.training.parallel.ranks import ALONE

    (tmp_path / "bank.npy").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left"):
        snapshot(classifier, tmp_path / "bank.npy", ALONE)
    assert contents(tmp_path) == {"bank.npy": b"old"}


@pytest.mark.usefixtures("full_disk")
def test_entry_that_is_half_written_never_has_its_name(classifier, tmp_path):
    from cap.training.parallel.ranks import ALONE

    with pytest.raises(OSError, match="No space left"):
        frozen(classifier, tmp_path, ALONE)
    assert entries(tmp_path) == {}
