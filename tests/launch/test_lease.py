from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEVICES = ["GPU-0a", "GPU-0b", "GPU-0c"]
# Takes devices, says which, and keeps them until it is told to end or killed.
HOLDER = """
import sys
from pathlib import Path
from cap.launch.lease import lease
n, folder, *devices = sys.argv[1:]
with lease(int(n), devices, folder=Path(folder)) as taken:
    print(*[devices[index] for index in taken], flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def hold_elsewhere(tmp_path):
    """Start processes that take devices; give each and, once it has them, the devices it took."""
    started = []

    def start(n: int, devices: list[str] = DEVICES) -> tuple[subprocess.Popen[str], list[str]]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(n), str(tmp_path), *devices],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, process.stdout.readline().split()

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def takes(tmp_path):
    """Take devices in a thread of this process; give a list that holds them once they are taken."""

    def take(n: int, devices: list[str] = DEVICES) -> tuple[threading.Thread, list[int]]:
        taken: list[int] = []

        def run() -> None:
            from cap.launch.lease import lease

            with lease(n, devices, folder=tmp_path) as indices:
                taken.extend(indices)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread, taken

    return take


@pytest.fixture(autouse=True)
def tries_often(monkeypatch):
    monkeypatch.setattr("cap.launch.lease._SECONDS_BETWEEN_TRIES", 0.02)


def test_two_processes_at_once_get_different_devices(hold_elsewhere, tmp_path):
    from cap.launch.lease import lease

    _, theirs = hold_elsewhere(2)
    with lease(1, DEVICES, folder=tmp_path) as ours:
        assert theirs == DEVICES[:2]
        assert ours == (2,)


def test_a_device_has_one_lock_whatever_its_number_in_a_process(hold_elsewhere, tmp_path):
    from cap.launch.lease import lease

    _, theirs = hold_elsewhere(1, ["GPU-0b"])
    with lease(1, ["GPU-0b", "GPU-0c"], folder=tmp_path) as ours:
        assert theirs == ["GPU-0b"]
        assert ours == (1,)


def test_waits_until_a_device_is_given_back(hold_elsewhere, takes):
    holder, _ = hold_elsewhere(1, ["GPU-0b"])
    thread, taken = takes(1, ["GPU-0b"])
    time.sleep(0.3)
    assert taken == []
    holder.stdin.write("\n")
    holder.stdin.flush()
    thread.join(timeout=20)
    assert taken == [0]


def test_a_killed_holder_gives_back_what_it_had(hold_elsewhere, takes):
    holder, _ = hold_elsewhere(3)
    thread, taken = takes(3)
    os.kill(holder.pid, signal.SIGKILL)
    thread.join(timeout=20)
    assert taken == [0, 1, 2]


def test_one_that_waits_for_two_holds_none_meanwhile(hold_elsewhere, takes, tmp_path):
    from cap.launch.lease import lease

    holder, _ = hold_elsewhere(1, ["GPU-0a"])
    thread, taken = takes(2, ["GPU-0a", "GPU-0b"])
    time.sleep(0.3)
    with lease(1, ["GPU-0b"], folder=tmp_path) as ours:
        assert ours == (0,)
    assert taken == []
    holder.kill()
    thread.join(timeout=20)


def test_says_once_who_it_waits_for(hold_elsewhere, takes, caplog):
    holder, _ = hold_elsewhere(1, ["GPU-0a"])
    caplog.set_level(logging.INFO, logger="cap")
    thread, _ = takes(2, ["GPU-0a", "GPU-0b"])

    def said() -> list[str]:
        return [message for message in caplog.messages if "waiting" in message]

    deadline = time.monotonic() + 60
    while not said() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)  # for some more tries
    assert said() == [f"waiting for 2 of 2 devices: GPU-0a belongs to process {holder.pid}"]
    holder.kill()
    thread.join(timeout=20)


def test_devices_are_free_again_after_the_block_even_if_it_failed(tmp_path):
    from cap.launch.lease import lease

    with pytest.raises(RuntimeError, match="training went wrong"), lease(3, DEVICES, folder=tmp_path):
        raise RuntimeError("training went wrong")
    with lease(3, DEVICES, folder=tmp_path) as taken:
        assert taken == (0, 1, 2)


def test_asking_for_none_takes_none(tmp_path):
    from cap.launch.lease import lease

    with lease(0, [], folder=tmp_path) as taken:
        assert taken == ()


def test_more_than_there_are_is_bad_input(tmp_path):
    from cap.base.errors import InputError
    from cap.launch.lease import lease

    with pytest.raises(InputError, match=r"at most .* 3, got 4"), lease(4, DEVICES, folder=tmp_path):
        pass


def test_names_that_differ_only_in_signs_are_different_devices(tmp_path):
    from cap.launch.lease import lease

    with lease(1, ["MIG-1/2"], folder=tmp_path), lease(1, ["MIG-1:2"], folder=tmp_path) as taken:
        assert taken == (0,)


def test_the_folder_of_the_locks_is_this_users_alone(tmp_path, monkeypatch):
    import tempfile

    from cap.launch.lease import lease

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with lease(1, DEVICES):
        (folder,) = tmp_path.iterdir()
    assert folder.name == f"cap-leases-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_somebody_else_made_is_refused(tmp_path, monkeypatch):
    import tempfile

    from cap.base.errors import RunError
    from cap.launch.lease import lease

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"cap-leases-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="somebody else made it"), lease(1, DEVICES):
        pass


def test_sees_no_device_without_cuda(monkeypatch):
    import torch

    from cap.launch.lease import visible_devices

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert visible_devices() == []


def test_names_devices_by_what_the_driver_calls_them(monkeypatch):
    from types import SimpleNamespace

    import torch

    from cap.launch.lease import visible_devices

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"GPU-{index + 7}"))
    assert visible_devices() == ["GPU-7", "GPU-8"]
