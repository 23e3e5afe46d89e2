"""The one JSON file that says what a run was, what it reached and what it cost.

``record.json`` is an object with the keys below. A run that did not complete leaves out, or sets to null, what it does
not know. Scores, sparsities and retentions are fractions; nothing is ever NaN or infinite.

=================================  =====================================================================================
``status``, ``error``              ``completed``, ``interrupted`` or ``failed``; one line that says why, or null
``command``                        what was typed
``config``, ``config_hash``        the resolved configuration and its content key
``environment``                    see ``environment``
``seed``                           the seed of everything random
``data``                           ``source``, ``fingerprint``, ``n_rows`` by split: ``{"train": n, ...}``;
                                   ``unlabelled``, if there are rows without a label: their ``source`` and
                                   ``fingerprint``, ``n_repeated`` (left out: training has their texts already) and
                                   ``n_validated`` (with texts of validation rows);
                                   ``files``: SHA-256 by name of the files of a ``data_dir``
``model``, ``pooling``             where the pre-trained model comes from; how every encoding of the run is pooled:
                                   ``pooler``, ``first_token`` or ``mean``
``weights_sha256``                 of the ``model`` and of a given ``teacher``: SHA-256 by name of their files
``metric``                         the task's first metric, which retention is computed on
``scores``                         ``majority``, ``teacher``, ``pruned``: each ``{metric: x}``, or null (no teacher)
``levels``                         list of ``{"step", "target", "sparsity", "scores": {metric: x}, "share",
                                   "precision"}``: validations, ends of levels, and the end of the run; each of a share
                                   of the rows in a precision, the end of all rows in float32
``teacher``                        its ``name``, and ``was_cached``: made by an earlier run
``retention``                      pruned / teacher, or null; ``retention_reason`` then says why
``retention_above_majority``       (pruned - majority) / (teacher - majority), or null with its ``..._reason``
``sparsity``                       ``asked``, and reached, as a fraction of ``prunable``, ``encoder``, ``model`` weights
``matrices``                       ``{module name: [n_pruned, n]}`` for every prunable matrix, ordered by layer
``units``                          ``heads`` and ``ffn``: by layer ``[n_pruned, n]``, units with no outgoing
                                   weight but zeros
``dynamics``                       what was known before training, see ``cap.training.dynamics``, and
                                   ``minutes_estimated`` for the steps, from the first ten, or null
``gradient_shares``                by loss term: the norm of its gradient with respect to the encoder layers, over that
                                   of ``kd``, or of ``ce`` where there is no distillation, on the first batches of
                                   training (from half of the sparsity on where the student starts from the teacher;
                                   for ``snc`` behind the first snapshot); absent where there is one term alone
``steps``, ``seconds_per_step``    optimizer steps of the run, and the median time of one
``seconds``                        by phase: ``data``, ``teacher``, ``encode``, ``fit``, ``importance``,
                                   ``snapshots`` and ``gradients`` (during the fit, not counted in it), ``evaluate``,
                                   ``total``; those of training over all attempts, the others of the last one
``peak_memory_gb``                 see ``peak_memory_gb``
``resumed_at``                     optimizer steps at which an interrupted run went on; absent if it never did
``wandb_id``                       of the W&B run, which a resumed run continues
``kept``                           for ``keep_levels``: list of ``{"step", "sparsity", "scores", "folder",
                                   "is_retrained"}``, the last false where no step was trained at that sparsity
``exports``                        by format, what ``cap.export`` measured afterwards, see ``cap.formats.exports``
``warnings``                       list of sentences that a reader of the result must know
=================================  =====================================================================================
"""

from __future__ import annotations

import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from cap.base.files import write_json

_PACKAGES = ("torch", "lightning", "transformers", "datasets", "torchmetrics", "numpy")
_BYTES_PER_GB = 1e9
_GIT_TIMEOUT_SECONDS = 10
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def environment() -> dict[str, str | None]:
    """Describe what the process runs on, without naming the host or any folder.

    Returns:
        Versions of Python and of the packages that shape a result (None where one is missing), ``git_commit``,
        ``device`` (the accelerator's name, or the CPU's with its number of threads) and ``platform``.
    """
    versions = {name: _version(name) for name in _PACKAGES}
    return {
        "python": platform.python_version(),
        **versions,
        "git_commit": git_commit(Path(__file__).resolve().parent),
        "device": _device_name(),
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
        The full hash, with ``-dirty`` behind it when a tracked file differs from the commit; None when nothing in the
        folder is tracked (an installed package may lie inside a stranger's checkout) or git cannot be asked.
    """
    if not _git(folder, "ls-files"):
        return None
    commit = _git(folder, "rev-parse", "--verify", "HEAD")
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if not commit or changes is None:
        return None
    return f"{commit}-dirty" if changes else commit


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


def retention(pruned: float | None, teacher: float | None, majority: float | None) -> dict[str, float | str | None]:
    """Say how much of the teacher's score the pruned model keeps, and of its lead over guessing.

    Args:
        pruned: Score of the pruned model; None if it was not evaluated.
        teacher: Score of the teacher on the same rows; None if the run had none.
        majority: Score of always answering the most frequent class; None if the task has no classes.

    Returns:
        ``retention`` and ``retention_above_majority`` as fractions, each None where it has no meaning, and the
        reason for that under the same name with ``_reason`` behind it (None where there is a number).
    """
    reason = _unusable("pruned model", pruned) or _unusable("teacher", teacher)
    ratio = above = None
    ratio_reason = above_reason = reason
    if pruned is not None and teacher is not None and reason is None:
        if teacher > 0:
            ratio = pruned / teacher
        else:
            ratio_reason = (
                f"The teacher's score is {teacher:.4g}: a ratio to a score that is not positive says nothing."
            )
        above_reason = _unusable("majority class", majority)
        if majority is not None and above_reason is None:
            if teacher > majority:
                above = (pruned - majority) / (teacher - majority)
            else:
                above_reason = f"The teacher ({teacher:.4g}) does not beat the majority class ({majority:.4g})."
    return {
        "retention": ratio,
        "retention_reason": ratio_reason,
        "retention_above_majority": above,
        "retention_above_majority_reason": above_reason,
    }


def write_record(run_dir: Path, record: dict[str, Any]) -> None:
    """Write ``record.json`` whole or not at all.

    Args:
        run_dir: The run's folder.
        record: What the module's description lists.

    Raises:
        ValueError: If a value is NaN, infinite or not one of JSON's types; the message names every such key.
    """
    problems = list(_problems(record, ""))
    if problems:
        raise ValueError(
            f"record.json holds JSON's own types and finite numbers, got {'; '.join(problems)}; "
            "store None where a value has no meaning"
        )
    write_json(run_dir / "record.json", record)


def _problems(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                yield f"{path or 'record'} has the key {key!r}, which is no string"
            yield from _problems(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _problems(item, f"{path}[{index}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"{path} = {float(value)}"
    elif value is not None and not isinstance(value, str | int):
        yield f"{path} of type {type(value).__name__}"


def _unusable(whose: str, score: float | None) -> str | None:
    if score is None:
        return "There is no teacher." if whose == "teacher" else f"There is no score of the {whose}."
    return None if math.isfinite(score) else f"The score of the {whose} is not a finite number."


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


def _device_name() -> str:
    if torch.cuda.is_available():
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


__all__ = [
    "device_name",
    "environment",
    "forget_peak_memory",
    "git_commit",
    "peak_memory_gb",
    "retention",
    "write_record",
]
