from __future__ import annotations

import contextlib
import json
import signal

import pytest
import torch
from lightning.pytorch import Trainer
from torch.distributed import DistBackendError, DistNetworkError

from tests.training.two_processes import run_two

EXPECTED = {
    "broadcast": {"rank": 0},
    "gather": ["rank 0", "rank 1"],
    "rows": [[0, 1], [10, 11], [12, 13], [14, 15]],
    "rows with counts": [[0, 1], [10, 11], [12, 13], [14, 15]],
    "rows of nobody on one rank": [[10, 11], [12, 13]],
    "flags": [True, False],
    "ids": [2**40, 2**40 + 1],
    "rows have a gradient": False,
    "mean": [1.5, 5.0],
    "total": [3, 10],
    "highest": [1, 5],
    "share": [1, 3],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder):
    first, second = run_two("tests.training.rank_program", folder)
    assert first.returncode == 0, first.stdout
    assert second.returncode == -signal.SIGKILL, second.stdout
    return [json.loads((folder / f"rank-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


@pytest.mark.ends
@pytest.mark.parametrize("rank", [0, 1], ids=["rank 0", "rank 1"])
@pytest.mark.parametrize("what", EXPECTED)
def test_every_process_gets_what_all_have(found, what, rank):
    assert found[rank][what] == EXPECTED[what]


@pytest.mark.ends
def test_a_process_closes_its_connections_before_it_ends(found, folder):
    assert (folder / "connected-0").read_text(encoding="utf-8") == "False"


@pytest.mark.ends
def test_a_killed_peer_is_named_with_what_to_do(found):
    assert "rank 0: another process of this run ended" in found[0]["error"]
    assert "resume=true" in found[0]["error"]


def test_one_process_gets_back_what_it_gave():
    from cap.training.parallel.ranks import ALONE

    rows = torch.arange(6.0).view(3, 2)
    ALONE.barrier()
    assert ALONE.is_first
    assert ALONE.broadcast("value") == "value"
    assert ALONE.gather("value") == ["value"]
    assert ALONE.highest([3, 1]) == [3, 1]
    assert torch.equal(ALONE.gather_rows(rows), rows)
    assert torch.equal(ALONE.mean(rows), rows)
    assert torch.equal(ALONE.total(rows), rows)


@pytest.mark.parametrize("method", ["gather_rows", "mean", "total"])
def test_one_process_gets_no_gradient_either(method):
    from cap.training.parallel.ranks import ALONE

    assert not getattr(ALONE, method)(torch.ones(2, 2, requires_grad=True)).requires_grad


def one_process(**options) -> Trainer:
    return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, **options)


def test_one_process_joins_nobody():
    from cap.training.parallel.ranks import ALONE, join, ranks_of

    assert join(0, 1) is ALONE
    assert ranks_of(one_process()) is ALONE


@pytest.mark.parametrize("is_ours", [True, False], ids=["our strategy", "another one"])
def test_asking_for_processes_before_they_know_of_each_other_is_refused(monkeypatch, is_ours):
    from cap.training.parallel.ranks import ranks_of
    from cap.training.parallel.strategy import make_strategy

    trainer = one_process(**({"strategy": make_strategy("ddp", n_processes=2)} if is_ours else {}))
    monkeypatch.setattr(Trainer, "world_size", property(lambda trainer: 2))
    with pytest.raises(ValueError, match="setup_environment"):
        ranks_of(trainer)


@pytest.mark.parametrize(
    ("counts", "rank", "first", "weight"),
    [((4,), 0, 0, 1.0), ((4, 4), 1, 4, 1.0), ((3, 1), 0, 0, 1.5), ((3, 1), 1, 3, 0.5), ((2, 0, 4), 2, 2, 2.0)],
    ids=["alone", "even", "the larger", "the smaller", "three"],
)
def test_a_share_knows_its_place_and_its_weight(counts, rank, first, weight):
    from cap.training.parallel.ranks import Share

    share = Share(rank, counts)
    assert (share.first, share.weight) == (first, weight)


def test_weighted_means_of_shares_average_to_the_mean_of_all_rows():
    from cap.training.parallel.ranks import Share

    rows = torch.arange(7.0, dtype=torch.float64) ** 2
    counts = (3, 3, 1)
    parts = zip(rows.split(counts), range(3), strict=True)
    means = [Share(rank, counts).weight * part.mean() for part, rank in parts]
    assert torch.stack(means).mean().item() == pytest.approx(rows.mean().item(), rel=1e-14)


@pytest.mark.parametrize(
    "message",
    [
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234",
        "NCCL communicator was aborted on rank 0",
        "[1] is setting up NCCL communicator and retrieving ncclUniqueId, got error: Broken pipe",
        "Timed out waiting 1800000ms for recv operation to complete",
    ],
    ids=["gloo", "nccl", "store", "timeout"],
)
def test_a_lost_connection_says_what_to_do(message):
    from cap.base.errors import RunError
    from cap.training.parallel.ranks import naming_lost_peers

    with pytest.raises(RunError, match=r"rank 3: another process of this run ended.*resume=true"), naming_lost_peers(3):
        raise RuntimeError(message)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"),
        RuntimeError("[enforce fail at ../gloo/transport/tcp/device.cc:84] ifa != nullptr. unable to find an address"),
        RuntimeError("NCCL communicator was aborted on rank 0"),
        DistNetworkError("recvValueWithTimeout failed: Broken pipe"),
        DistBackendError("setting up the communicator failed"),
    ],
    ids=["gloo", "enforced by gloo", "nccl", "store", "backend"],
)
def test_a_connection_that_is_lost_within_a_step_says_what_to_do(error):
    from cap.base.errors import RunError
    from cap.training.parallel.ranks import naming_lost_peers

    with pytest.raises(RunError, match="rank 3: another process"), naming_lost_peers(3, is_certain=True):
        raise error


@pytest.mark.parametrize(
    "message",
    [
        "DataLoader timed out after 5 seconds",
        "DataLoader worker (pid 7) exited unexpectedly: connection reset by peer",
        "mat1 [4, 2] was received from the nccl group of the gloo model",
    ],
    ids=["data loader", "its worker", "words in the middle"],
)
@pytest.mark.parametrize("method", ["training_step", "backward"])
def test_other_errors_of_a_step_stay_what_they_are(monkeypatch, method, message):
    from lightning.pytorch.strategies import DDPStrategy

    from cap.training.parallel.strategy import make_strategy

    def fail(*unused):
        raise RuntimeError(message)

    strategy = make_strategy("ddp", n_processes=2)
    monkeypatch.setattr(DDPStrategy, method, fail)
    with pytest.raises(RuntimeError) as caught:
        getattr(strategy, method)(torch.zeros(()))
    assert (type(caught.value), str(caught.value)) == (RuntimeError, message)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), torch.OutOfMemoryError("NCCL: out of memory")],
    ids=["shapes", "memory"],
)
def test_other_errors_stay_what_they_are(error):
    from cap.training.parallel.ranks import naming_lost_peers

    with pytest.raises(type(error)) as caught, naming_lost_peers(0):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("backend", "error", "code"),
    [
        ("nccl", ValueError("a row"), 1),
        ("nccl", KeyboardInterrupt(), 130),
        ("nccl", None, None),
        ("gloo", ValueError("a row"), None),
    ],
    ids=["failed", "interrupted", "ended well", "gloo"],
)
def test_a_process_that_failed_alone_waits_for_no_other(monkeypatch, backend, error, code):
    import os

    import torch.distributed as dist

    from cap.training.parallel import ranks

    class Gone(Exception):
        pass

    def end(given):
        ended.append(given)
        raise Gone

    ended, closed = [], []
    monkeypatch.setattr(ranks, "_failure", ranks._Failure())
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_backend", lambda: backend)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: closed.append(True))
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(ranks.logging, "shutdown", lambda: None)
    if error is not None:
        ranks.note_failure(error)
    with contextlib.suppress(Gone):
        ranks.leave()
    assert (ended, closed) == (([], [True]) if code is None else ([code], []))
