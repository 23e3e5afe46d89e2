"""Devices lent between runs on one machine: each takes its own, and waits until one is free."""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cap.base.errors import InputError, RunError
from cap.base.files import content_key

_SECONDS_BETWEEN_TRIES = 1.0

log = logging.getLogger(__name__)


@contextmanager
def lease(n: int, devices: Sequence[str], *, folder: Path | None = None) -> Iterator[tuple[int, ...]]:
    """Take ``n`` devices that no other process of this user has, and give them back at the end of the block.

    All of them are taken at once or none is, so that two processes that want two devices never wait for each other with
    one device each. The price: one that wants many may wait long beside many that want one. A holder that dies, however
    it dies, gives back what it had.

    Args:
        n: How many.
        devices: Names of those that may be taken. What counts is the name, not the place in the list: processes that
            see different parts of a machine under different numbers must call the same device by the same name.
        folder: Where the locks are; None is a folder of this user's on this machine.

    Yields:
        Places in ``devices`` of those taken, in rising order.

    Raises:
        InputError: If there are fewer than ``n``.
        RunError: If the folder of the locks belongs to somebody else.
        ValueError: If two devices have one name.
    """
    if len(set(devices)) != len(devices):
        raise ValueError(f"devices must have different names, got {', '.join(devices)}")
    if not 0 <= n <= len(devices):
        raise InputError(
            f"trainer.devices must be at most the number of devices that this process sees, {len(devices)}, got {n}; "
            "ask for fewer, or make more visible (CUDA_VISIBLE_DEVICES)"
        )
    folder = folder or _own_folder()
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        is_waiting = False
        while True:
            taken, busy = _take(n, devices, folder, held)
            if len(taken) == n:
                break
            if not is_waiting:
                holders = "; ".join(f"{device} belongs to {_holder(device, folder)}" for device in busy)
                log.info("waiting for %d of %d devices: %s", n, len(devices), holders)
            is_waiting = True
            time.sleep(_SECONDS_BETWEEN_TRIES)
        if is_waiting:
            log.info("got %s", ", ".join(devices[index] for index in taken))
        yield tuple(taken)


def visible_devices() -> list[str]:
    """List the CUDA devices of this process by names that are the same in every process; empty without CUDA.

    The place in the list is the device's number in this process.
    """
    import torch  # takes seconds, and the locks need none of it

    chosen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if chosen.startswith("MIG-") and torch.cuda.is_available():
        # A process sees one part of a split GPU, under its number 0; the driver may name the whole GPU.
        return [chosen.split(",")[0]]
    return [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]


def _take(n: int, devices: Sequence[str], folder: Path, held: ExitStack) -> tuple[list[int], list[str]]:
    """Lock ``n`` devices and hand the locks to ``held``, or lock none; give their places and the devices not free."""
    with FileLock(folder / "turn.lock"), ExitStack() as trial:  # one process tries at a time
        taken: list[int] = []
        busy: list[str] = []
        for index, device in enumerate(devices):
            if len(taken) == n:
                break
            try:
                trial.enter_context(FileLock(_lock_path(device, folder)).acquire(timeout=0))
                taken.append(index)
            except Timeout:
                busy.append(device)
        if len(taken) < n:
            return [], busy
        for index in taken:
            holder = _holder_path(devices[index], folder)
            holder.write_text(str(os.getpid()), encoding="utf-8")
            trial.callback(holder.unlink, missing_ok=True)
        held.push(trial.pop_all())
        return taken, busy


def _holder(device: str, folder: Path) -> str:
    with contextlib.suppress(FileNotFoundError):  # given back just now
        return f"process {_holder_path(device, folder).read_text(encoding='utf-8')}"
    return "a process that is ending"


def _lock_path(device: str, folder: Path) -> Path:
    # Readable where the name allows it; the key keeps names apart that differ only in other characters.
    return folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', device)}.{content_key(device)}.lock"


def _holder_path(device: str, folder: Path) -> Path:
    return _lock_path(device, folder).with_suffix(".holder")


def _own_folder() -> Path:
    """Make the folder of this user's locks on this machine, which nobody else may write."""
    user = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    folder = Path(tempfile.gettempdir()) / f"cap-leases-{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if folder.is_symlink() or (hasattr(os, "getuid") and folder.stat().st_uid != os.getuid()):
        raise RunError(
            f"{folder} must be a folder of this user's, for the locks of devices, but somebody else made it; "
            "remove it or set TMPDIR"
        )
    return folder


__all__ = ["lease", "visible_devices"]
