"""Start two processes that know of each other, on this machine's CPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def _wait_for(processes: list[subprocess.Popen[bytes]], timeout: float) -> None:
    """Wait until all have ended, or one has failed: another one may wait for that for ever.

    One that kills itself on purpose has not failed.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        if None not in codes or any(code is not None and code not in (0, -signal.SIGKILL) for code in codes):
            return
        time.sleep(0.1)
    raise subprocess.TimeoutExpired(processes[0].args, timeout)


def run_two(program: str, folder: Path, *, timeout: float = 600) -> list[subprocess.CompletedProcess[str]]:
    """Run ``python -m program folder`` as rank 0 and rank 1, and wait for both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", program, str(folder)]
    outputs = [folder / f"output-{rank}.txt" for rank in range(2)]
    processes = []
    for rank, path in enumerate(outputs):
        with path.open("w", encoding="utf-8") as output:
            environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
            processes.append(
                subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
            )
    try:
        _wait_for(processes, timeout)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for rank, (process, path) in enumerate(zip(processes, outputs, strict=True)):
        if process.returncode > 0:  # what the other one says has no end
            raise AssertionError(f"rank {rank} failed:\n{path.read_text(encoding='utf-8')}")
    return [
        subprocess.CompletedProcess(command, process.returncode, path.read_text(encoding="utf-8"))
        for process, path in zip(processes, outputs, strict=True)
    ]
