"""Which devices a run of ``cap.train`` may use."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cap.base.errors import InputError
from cap.base.strategies import ON_GPUS
from cap.config.check import Checked
from cap.launch.lease import lease, visible_devices


@dataclass(frozen=True)
class Devices:
    """Hold what a run may use.

    Args:
        places: What Lightning's ``devices`` takes in this process: how many, or which.
        names: The devices for processes started from here; None for whatever they see.
    """

    places: int | list[int]
    names: list[str] | None


@contextmanager
def leased_devices(checked: Checked, *, is_grid: bool) -> Iterator[Devices]:
    """Take devices that no other job has, for as long as the run takes, where jobs of a grid share GPUs.

    A run that was started alone takes what Lightning takes: its user has chosen the device.

    Args:
        checked: The configuration.
        is_grid: Whether the run is a job of a multirun.

    Raises:
        InputError: If there are fewer devices than it wants.
    """
    trainer = checked.config.trainer
    devices = visible_devices() if trainer.accelerator in ON_GPUS else []
    if devices and trainer.devices > len(devices):
        raise InputError(
            f"trainer.devices must be at most the number of devices that this process sees, {len(devices)}, got "
            f"{trainer.devices}; ask for fewer, or set trainer.accelerator=cpu"
        )
    if not devices or not is_grid:
        yield Devices(trainer.devices, None)
        return
    with lease(trainer.devices, devices) as taken, _left_empty():
        # torch leaves out the prefix that CUDA_VISIBLE_DEVICES wants.
        names = [devices[place] for place in taken]
        yield Devices(
            list(taken), [name if name.startswith("MIG-") else f"GPU-{name.removeprefix('GPU-')}" for name in names]
        )


@contextmanager
def _left_empty() -> Iterator[None]:
    """Give back the memory that PyTorch would keep on a GPU for later: the next job there may be another process."""
    try:
        yield
    except BaseException as error:
        _drop_frames(error)
        raise
    finally:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            gc.collect()
            torch.cuda.empty_cache()


def _drop_frames(error: BaseException) -> None:
    """Let go of what the functions held that an error went through: of a forward pass all of its activations."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        found = waiting.pop()
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            traceback.clear_frames(found.__traceback__)  # what still runs keeps its own
            waiting += [found.__cause__, found.__context__]


__all__ = ["Devices", "leased_devices"]
