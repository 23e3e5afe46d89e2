"""The processes of one run on one machine: started here, watched, and ended together."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cap.base.errors import InputError, RunError, StoppedError
from cap.base.signals import STOP_SIGNALS, hand_on

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

_WATCH_SECONDS = 0.2
SECONDS_TO_SAVE = 120
"""What processes that were asked to stop get to finish a pass over the rows and to write a checkpoint."""
_PARENT_SECONDS = 1.0
PARENT = "CAP_PARENT"
"""Variable that names the process which watches this one, by its number."""
_TASKS_OF_SRUN = "SLURM_STEP_NUM_TASKS"

log = logging.getLogger(__name__)


def is_one_of_many() -> bool:
    """Say whether this process was started as one of several: by ``run_processes``, torchrun, SLURM or Lightning."""
    slurm = _is_of_slurm() and int(os.environ[_TASKS_OF_SRUN]) > 1
    return _is_of_torchrun() or slurm or "LOCAL_RANK" in os.environ


def is_first_process() -> bool:
    """Say whether this process writes and speaks for a run of several; true where nobody started several."""
    if not is_one_of_many():
        return True
    names = ("RANK",) if "RANK" in os.environ else ("LOCAL_RANK", "NODE_RANK")
    if _is_of_slurm() and not _is_of_torchrun():
        names = ("SLURM_PROCID",)
    return all(os.environ.get(name, "0") == "0" for name in names)


def _is_of_torchrun() -> bool:
    """Tell, as Lightning does, whether torchrun started this process; every command asks, and Lightning takes long."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def _is_of_slurm() -> bool:
    """Tell whether srun started this process; the script or shell of an allocation starts others by itself.

    Lightning goes by SLURM_NTASKS, which a batch script has, too: a command in it would wait for processes that nothing
    starts.
    """
    return _TASKS_OF_SRUN in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def n_usable_cores() -> int:
    """Count the cores that this process may use: a scheduler or ``taskset`` often leaves it a few of the machine's."""
    try:
        n_cores = len(os.sched_getaffinity(0))
    except AttributeError:  # only Linux tells
        n_cores = os.cpu_count() or 1
    # SLURM does not bind tasks to their cores on every cluster.
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return min(n_cores, int(granted)) if granted.isdecimal() and int(granted) > 0 else n_cores


def check_processes(n_processes: int, n_nodes: int) -> None:
    """Check that as many processes were started as the configuration asks for.

    Args:
        n_processes: ``trainer.devices`` times ``trainer.num_nodes``.
        n_nodes: ``trainer.num_nodes``.

    Raises:
        InputError: If another number was, or several machines need a launcher and there is none.
    """
    if not is_one_of_many():
        if n_nodes > 1:
            raise InputError(
                f"trainer.num_nodes={n_nodes} needs a launcher that starts the processes on every machine, and there "
                f"is none; start this command with torchrun or srun"
            )
        return
    started = os.environ.get("WORLD_SIZE", os.environ.get(_TASKS_OF_SRUN))
    # Independent runs may share a SLURM job, one task each; as may those below a launcher.
    if n_processes > 1 and started is not None and int(started) != n_processes:
        raise InputError(
            f"the launcher started {started} processes, but trainer.devices x trainer.num_nodes is {n_processes}; make "
            f"them equal"
        )
    if n_processes == 1 and _is_of_torchrun() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"the launcher started {started} processes, but trainer.devices is 1; set trainer.devices to the processes "
            f"of a machine, and trainer.strategy=ddp"
        )


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
        InputError: If the input was bad; the processes have said why.
        StoppedError: If this process was asked to stop; the processes have been asked, too.
        RunError: If a process failed.
    """
    # Takes as long as torch itself, and most commands start no other process.
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
        shutdown_timeout=SECONDS_TO_SAVE,
        signals_to_handle=",".join(number.name for number in STOP_SIGNALS),  # a run under nohup outlives the terminal
    )
    log.info("starting %d processes", n_processes)
    changed = {PARENT: str(os.getpid())}
    # Cores are shared; without this every process would use all of them.
    if "OMP_NUM_THREADS" not in os.environ:
        changed["OMP_NUM_THREADS"] = str(max(1, n_usable_cores() // n_processes))
    if visible_devices is not None:
        changed["CUDA_VISIBLE_DEVICES"] = ",".join(visible_devices)
    # The agent leaves a variable and its signal handlers behind.
    before = {name: os.environ.get(name) for name in (*changed, "TORCHELASTIC_SIGNALS_TO_HANDLE")}
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    os.environ.update(changed)
    received: int | None = None
    try:
        elastic_launch(config, sys.executable)("-m", module, *overrides)
    except SignalException as error:
        received = int(error.sigval)
        raise StoppedError(received, is_clean=False) from error
    except ChildFailedError as error:
        raise _as_own(error) from error
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
        hand_on(received, handlers)


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


def _as_own(error: ChildFailedError) -> BaseException:
    codes = {rank: failure.exitcode for rank, failure in sorted(error.failures.items())}
    # Those that were ended because another one failed say nothing: the first failure is the reason.
    rank, first = error.get_first_failure()
    if InputError.exit_code in codes.values():
        return InputError("see the error of the first process above")
    # A process that is still starting has no handler yet, and dies of the signal itself.
    signals = [code - 128 if code > 128 else -code for code in codes.values()]
    if set(signals) <= set(STOP_SIGNALS):
        return StoppedError(signals[0], is_clean=False)
    how = f"was killed by signal {-first.exitcode}" if first.exitcode < 0 else f"ended with exit code {first.exitcode}"
    return RunError(
        f"process {rank} of this run {how}, and the others were ended; see its output above. Repeat the command with "
        f"resume=true to continue from the last checkpoint"
    )


__all__ = [
    "PARENT",
    "SECONDS_TO_SAVE",
    "check_processes",
    "end_with_parent",
    "is_first_process",
    "is_one_of_many",
    "n_usable_cores",
    "run_processes",
]
