"""What a run runs on: versions, commit and device; and the most memory that its process has held."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("torch", "lightning", "transformers", "datasets", "torchmetrics", "numpy")
_BYTES_PER_GB = 1e9
_CODE = (".py", ".yaml")
_GIT_TIMEOUT_SECONDS = 10
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def environment(*, on_gpu: bool = True) -> dict[str, str | None]:
    """Describe what the process runs on, without naming the host or any folder.

    Args:
        on_gpu: False where it leaves a GPU of this machine alone.

    Returns:
        Versions of Python and of the packages that shape a result (None where one is missing), ``git_commit``,
        ``device`` (the accelerator's name, or the CPU's with its number of threads) and ``platform``.
    """
    versions = {name: _version(name) for name in _PACKAGES}
    return {
        "python": platform.python_version(),
        **versions,
        "git_commit": git_commit(Path(__file__).resolve().parent),
        "device": _device_name(on_gpu=on_gpu),
        "platform": _platform_name(),
    }


def device_name(device: torch.device) -> str:
    """Name what computes: the GPU, or the CPU without its number of threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def git_commit(folder: Path) -> str | None:
    """Name the commit of the checkout that tracks a folder.

    Args:
        folder: A folder of source code.

    Returns:
        The full hash, with ``-dirty`` behind it when a tracked file differs from the commit or code lies in ``cap`` or
        ``conf`` that is in none; None when nothing in the folder is tracked (an installed package may lie inside a
        stranger's checkout) or git cannot be asked.
    """
    if not _git(folder, "ls-files"):
        return None
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    others = _git(folder, "ls-files", "--others", "--exclude-standard", "--full-name", "--", ":/cap", ":/conf")
    if not commit or changes is None or others is None:
        return None
    has_new_code = any(Path(name).suffix in _CODE for name in others.splitlines())
    return f"{commit}-dirty" if changes or has_new_code else commit


def peak_memory_gb() -> dict[str, float | None]:
    """Measure the most memory that this process has held since ``forget_peak_memory``, or at all.

    Returns:
        Gigabytes (10^9 bytes): ``host`` is the peak resident set, ``device`` the most that PyTorch had allocated on
        one CUDA device, None when the process has not used any.
    """
    device = max((torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count())), default=0)
    return {"host": _peak_host_bytes() / _BYTES_PER_GB, "device": device / _BYTES_PER_GB if device else None}


def forget_peak_memory() -> None:
    """Count peak memory from here on: what an earlier job of this process held says nothing of the next one.

    Only Linux forgets the peak of a process; elsewhere ``host`` stays that of all its jobs.
    """
    with suppress(OSError):  # no Linux, or a sandbox that keeps this file from us
        _CLEAR_REFS.write_text("5")  # proc(5): resets the peak resident set
    if torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    # Inside a git hook GIT_DIR and its kin point at that hook's repository, whatever folder is asked for.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        answer = subprocess.run(
            # Without the option, `status` refreshes the index and so takes a lock that a user's own command may want.
            ["git", "--no-optional-locks", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            env=variables,
            timeout=_GIT_TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _device_name(*, on_gpu: bool) -> str:
    if on_gpu and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), flags=re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine() or "unknown CPU"


def _platform_name() -> str:
    # The release of a self-built kernel may carry the name of the machine that built it: the numbers are enough.
    release = re.match(r"[\d.]*\d", platform.release())
    return " ".join(part for part in (platform.system(), release[0] if release else "", platform.machine()) if part)


def _peak_host_bytes() -> int:
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    if _STATUS.is_file():
        # Not getrusage: a process begins with the peak of the one that it was forked from.
        found = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(errors="replace"), flags=re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, everyone else kibibytes.
    return peak if sys.platform == "darwin" else peak * 1024


__all__ = ["device_name", "environment", "forget_peak_memory", "git_commit", "peak_memory_gb"]
