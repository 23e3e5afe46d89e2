"""The processes of one run on one machine: started here, watched, and ended together."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Sequence

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cap.errors import InputError, RunError, StoppedError

_WATCH_SECONDS = 0.2
_PARENT_SECONDS = 1.0
PARENT = "CAP_PARENT"
"""Variable that names the process which watches this one, by its number."""
# What a door ends with when the input was bad, see cap.cli.
_BAD_INPUT = 2

log = logging.getLogger(__name__)


def is_one_of_many() -> bool:
    """Say whether this process was started as one of several: by ``run_processes``, torchrun, SLURM or Lightning."""
    slurm = SLURMEnvironment.detect() and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    return TorchElasticEnvironment.detect() or slurm or LightningEnvironment().creates_processes_externally


def own_rank() -> int:
    """Return the rank that whoever started this process gave it; 0 where nobody did."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def run_processes(
    n_processes: int,
    overrides: Sequence[str],
    *,
    module: str = "cap.train",
    visible_devices: Sequence[str] | None = None,
) -> None:
    """Start a command once per process, and wait; if one process ends badly, the others are ended, too.

    Each is a command of its own with the overrides of this one job, so that it makes no difference whether the job was
    typed alone, belongs to a multirun or was started by a sweep's agent.

    Args:
        n_processes: On this machine.
        overrides: What was typed for this job.
        module: The door.
        visible_devices: CUDA devices that the processes may use; None leaves that to the environment.

    Raises:
        InputError: If the input was bad (the processes have said why), or there are fewer devices than processes.
        StoppedError: If this process was asked to stop; the processes have been asked, too.
        RunError: If a process failed.
    """
    if torch.cuda.is_available() and visible_devices is None and n_processes > torch.cuda.device_count():
        raise InputError(
            f"trainer.devices must be at most the number of devices that this process sees, "
            f"{torch.cuda.device_count()}, got {n_processes}; ask for fewer, or set trainer.accelerator=cpu"
        )
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # says the same at length
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n_processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=_WATCH_SECONDS,
    )
    log.info("starting %d processes", n_processes)
    changed = {PARENT: str(os.getpid())}
    # Cores are shared; without this every process would use all of them.
    if "OMP_NUM_THREADS" not in os.environ:
        changed["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // n_processes))
    if visible_devices is not None:
        changed["CUDA_VISIBLE_DEVICES"] = ",".join(visible_devices)
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        elastic_launch(config, sys.executable)("-m", module, *overrides)
    except SignalException as error:
        raise StoppedError(int(error.sigval), is_clean=False) from error
    except ChildFailedError as error:
        raise _as_own(error) from error
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def end_with_parent() -> None:
    """End this process if the one that started it is killed: nobody would watch it any longer."""
    parent = os.environ.get(PARENT)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(_PARENT_SECONDS)
        log.error("the process that started this one is gone; this one ends, too")
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _as_own(error: ChildFailedError) -> Exception:
    codes = {rank: failure.exitcode for rank, failure in sorted(error.failures.items())}
    # Those that were ended because another one failed say nothing: the first failure is the reason.
    rank, first = error.get_first_failure()
    if _BAD_INPUT in codes.values():
        return InputError("what is wrong stands above, in the words of the first process")
    stopped = [code - 128 for code in codes.values() if code in (130, 143)]
    if len(stopped) == len(codes):
        return StoppedError(stopped[0], is_clean=False)
    how = f"was killed by signal {-first.exitcode}" if first.exitcode < 0 else f"ended with exit code {first.exitcode}"
    return RunError(
        f"process {rank} of this run {how}, and the others were ended; what it had to say stands above. Repeat the "
        f"command with resume=true to continue from the last checkpoint"
    )


__all__ = ["PARENT", "end_with_parent", "is_one_of_many", "own_rank", "run_processes"]
